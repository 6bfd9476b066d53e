"""Accuracy under attack of any classifier on tensors, by the attacks of `fastuiat eval`."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastuiat.config import UserError, parse_radius, refuse_seed
from fastuiat.convolutions import repeatable
from fastuiat.data import ImageSet
from fastuiat.evaluation import attacks as registry
from fastuiat.evaluation.accuracy import pixels
from fastuiat.evaluation.attacks import Evaluation, Outcome
from fastuiat.evaluation.record import radii_of
from fastuiat.network import modes_kept

BATCH = 200
"""Images at a time, as `fastuiat eval` takes them."""

_log = logging.getLogger(__name__)


def autoattack(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | str,
    version: str = "standard",
    batch_size: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Which samples withstand AutoAttack (Croce and Hein 2020) in the L∞ ball: CPU bool (N,).

    `net` is any classifier from (B, C, H, W) in [0, 1] to logits (B, K), in fp32; it is attacked in
    eval mode where it lies, and comes back as it was. x (N, C, H, W) in [0, 1], y int (N,); `eps`
    in pixel units, such as 8/255 or "8/255". `version` is standard, plus or rand. The outcome
    depends on `batch_size` (200 by default), which random numbers are drawn by. What AutoAttack
    has to say against the net is on the log. UserError on NaN logits, on fewer than two classes,
    and where no AutoAttack package is installed.

    >>> import torch
    >>> from fastuiat.evaluation.arrays import autoattack
    >>> bright = lambda x: 4 * (x.mean(dim=(1, 2, 3)) - 0.5)
    >>> class Brightness(torch.nn.Module):
    ...     def forward(self, x):
    ...         return torch.stack([-bright(x), bright(x)], dim=1)
    >>> x = torch.tensor([0.1, 0.49, 0.9]).view(3, 1, 1, 1).expand(3, 3, 8, 8)
    >>> autoattack(Brightness(), x, torch.tensor([0, 0, 1]), eps="8/255")
    tensor([ True, False,  True])
    """
    batch_size = BATCH if batch_size is None else batch_size
    settings = {"version": version}
    (outcome,) = outcomes(net, x, y, ["autoattack"], eps, batch_size, seed, settings).values()
    return outcome.correct


def evaluate(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    attacks: Sequence[str] = ("clean", "pgd"),
    eps: float | str,
    batch_size: int = BATCH,
    seed: int = 0,
    **settings: Any,
) -> dict[str, float]:
    """Accuracy of a classifier under each attack, in [0, 1]: the numbers of `fastuiat eval`.

    `net`, x, y, `eps` as for `autoattack`; a negative eps is the inverse attack of pgd and cw.
    `attacks` are clean, pgd, cw, autoattack and what else is registered; `settings` are theirs:
    `steps=20`, `alpha="2/255"`, `restarts=1` of pgd and cw, `version="standard"`, `compile="auto"`
    of autoattack. UserError on unknown attacks, settings that none of them has, and NaN logits.

    >>> import torch
    >>> from fastuiat import build_model
    >>> from fastuiat.evaluation.arrays import evaluate
    >>> _ = torch.manual_seed(0)
    >>> net, x = build_model("wrn-10-1"), torch.rand(8, 3, 32, 32)
    >>> y = net.eval()(x).argmax(dim=1)
    >>> found = evaluate(net, x, y, attacks=["clean", "pgd", "cw"], eps="8/255", steps=5)
    >>> found["clean"], found["pgd"] < 1
    (1.0, True)
    """
    found = outcomes(net, x, y, attacks, eps, batch_size, seed, settings)
    return {name: outcome.accuracy for name, outcome in found.items()}


@repeatable()
def outcomes(
    net: nn.Module,
    x: Tensor,
    y: Tensor,
    attacks: Sequence[str],
    eps: float | str,
    batch_size: int,
    seed: int,
    settings: dict[str, Any],
) -> dict[str, Outcome]:
    """What each attack found, by its name."""
    made = registry.chosen(attacks, settings)
    (radius,) = radii_of(parse_radius(eps), made)
    refuse_seed(seed)
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1, got {batch_size}")
    anchor = next(itertools.chain(net.parameters(), net.buffers()), torch.empty(0))
    evaluation = Evaluation(
        model=net, images=as_images(x, y), seed=seed, batch_size=batch_size, device=anchor.device
    )
    found = {}
    with modes_kept(net):
        net.eval()
        refuse_labels(net, evaluation)
        for attack in made:
            found[attack.name] = attack.measure(evaluation, radius)
            for warning in found[attack.name].settings.get("warnings", []):
                _log.warning("%s: %s", attack.name, warning)
    return found


def refuse_labels(net: nn.Module, evaluation: Evaluation) -> None:
    """UserError on labels that the net has no logits for, which nothing would be right on."""
    images, labels = evaluation.images.images, evaluation.images.labels
    with torch.no_grad():
        classes = net(pixels(images[:1], evaluation.device)).shape[-1]
    if labels.min() < 0 or labels.max() >= classes:
        raise UserError(
            f"y must lie in 0 … {classes - 1} for {classes} logits, got {labels.min()} … "
            f"{labels.max()}"
        )


def as_images(x: Tensor, y: Tensor) -> ImageSet:
    """The samples on the CPU, pixels as they are; UserError on what is no such set."""
    if not (isinstance(x, Tensor) and isinstance(y, Tensor)):
        raise UserError(f"x and y must be tensors, got {type(x).__name__}, {type(y).__name__}")
    if x.ndim != 4 or not x.is_floating_point() or len(x) == 0:
        raise UserError(f"x must be (N, C, H, W) in [0, 1], got {x.dtype} {tuple(x.shape)}")
    if y.shape != x.shape[:1] or y.is_floating_point():
        raise UserError(f"y must be integers ({len(x)},), got {y.dtype} {tuple(y.shape)}")
    if not (x.min() >= 0 and x.max() <= 1):
        raise UserError(f"x must lie in [0, 1], got {x.min():g} to {x.max():g}")
    pixels = x.detach().float().permute(0, 2, 3, 1).cpu().numpy()
    labels = y.detach().long().cpu().numpy()
    return ImageSet("tensors", pixels, labels, int(labels.max()) + 1)
