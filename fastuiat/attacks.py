"""Sign-gradient attacks: one function climbs a loss (adversarial) or descends it (inverse)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastuiat.config import parse_radius
from fastuiat.gradients import input_gradient, leaf
from fastuiat.losses import ATTACK_LOSSES, AttackLoss
from fastuiat.network import BatchNormMode, FrozenNetwork, Model, frozen
from fastuiat_kernels import Noise, noise_key, random_start, sign_step

NORMAL_STD = 0.001
"""Standard deviation of the normal start of TRADES, MART and the instance-wise inverse attack."""


def attack_step(
    net: FrozenNetwork,
    x: Tensor,
    x_adv: Tensor,
    y: Tensor,
    target_probs: Tensor | None,
    counts: Tensor | None,
    loss: AttackLoss,
    alpha: float,
    eps: float,
    ascend: bool,
    bn: BatchNormMode,
) -> Tensor:
    """One step from x_adv inside the ball around x; zero and non-finite gradients into counts."""
    stem, behind = net.parted(x)
    grad = input_gradient(behind, x_adv, y, target_probs, loss, bn == "eval", stem)
    step = sign_step if stem is None else stem.sign_step
    return step(x, x_adv, grad, alpha=alpha, eps=eps, ascend=ascend, counts=counts)


def as_noise(noise: Noise | Tensor | int | None, x: Tensor) -> Noise:
    """A key with its sample indices; a bare key or seed numbers the samples 0 … B−1."""
    if isinstance(noise, Noise):
        return noise
    key = noise if isinstance(noise, Tensor) else noise_key(0 if noise is None else noise)
    return Noise(key.to(x.device), torch.arange(x.shape[0], device=x.device))


def starting_point(
    x: Tensor, start: str | Tensor, eps: float, noise: Noise | Tensor | int | None
) -> Tensor:
    """x̂ before the first step, clipped to the pixel range.

    The authors' loops of TRADES, MART and HAT take their first gradient at an unclipped start, and
    clip after each step: with a normal start 7% of the values of padded CIFAR-10 crops (0.6% of the
    images' own) lie outside there, by 0.2 grey levels on average.
    """
    if isinstance(start, Tensor):
        return start.detach().to(x.dtype).clone(memory_format=torch.preserve_format)
    if start == "zero":
        return x.clone(memory_format=torch.preserve_format)
    if start not in ("uniform", "normal"):
        raise ValueError(f"start must be uniform, normal, zero or a tensor, got {start!r}")
    key, index = as_noise(noise, x)
    kind: Any = start
    return random_start(x, index, key, eps=eps if kind == "uniform" else NORMAL_STD, kind=kind)


def pgd(
    model: Model,
    x: Tensor,
    y: Tensor,
    *,
    eps: float | str,
    alpha: float | str,
    steps: int,
    loss: str | AttackLoss = "ce",
    target_probs: Tensor | None = None,
    start: str | Tensor = "uniform",
    project: bool = True,
    bn: BatchNormMode = "eval",
    targeted: bool = False,
    noise: Noise | Tensor | int | None = None,
) -> Tensor:
    """Projected sign-gradient attack in the L∞ ball (Madry et al. 2018), detached.

    x (B, C, H, W) in [0, 1], y int64 (B,); eps and alpha in pixel units, such as 8/255 or "8/255".
    `loss` is `ce`, `margin`, `kl` (needs target_probs) or a function of (logits, y, target_probs)
    summed over the batch; `targeted` descends it. `project=False` keeps only the pixel range.
    `noise` is a Noise, a key or an int seed. ValueError on an unknown loss or start, UserError on
    text that is no radius.

    >>> import torch, fastuiat
    >>> net, x, y = fastuiat.build_model("wrn-10-1"), torch.rand(2, 3, 32, 32), torch.tensor([3, 7])
    >>> x_adv = fastuiat.pgd(net, x, y, eps="8/255", alpha="2/255", steps=2)
    >>> bool(((x_adv - x).abs() <= 8 / 255 + 1e-6).all())
    True
    """
    eps, alpha = (parse_radius(r) if isinstance(r, str) else r for r in (eps, alpha))
    if isinstance(loss, str):
        if loss not in ATTACK_LOSSES:
            raise ValueError(f"unknown loss {loss!r}: choose from {', '.join(ATTACK_LOSSES)}")
        loss = ATTACK_LOSSES[loss]
    x = x.detach()
    x_adv = starting_point(x, start, eps, noise)
    radius = eps if project else float("inf")
    with frozen(model, bn) as net, torch.no_grad():
        counts = net.count(steps * x.numel())
        step = net.region(attack_step)
        constants = (loss, alpha, radius, not targeted, bn)
        for _ in range(steps):
            x_adv = step(net, x, leaf(x_adv), y, target_probs, counts, *constants)
    return x_adv
