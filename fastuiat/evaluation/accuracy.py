"""Which images of a set a net gets right, as they are or after a perturbation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastuiat.config import UserError
from fastuiat.data import ImageSet
from fastuiat.distributed import ALONE, Ranks
from fastuiat.network import modes_kept
from fastuiat_kernels import Noise, noise_key

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""
Say = Callable[[str], object]
"""Told a line of what has happened."""
Perturb = Callable[[nn.Module, Tensor, Tensor, Noise], Tensor]
"""(model, x, y, noise) to the images that it is tried on."""


def pixels(images: Any, device: torch.device) -> Tensor:
    """(B, H, W, C), uint8 or fp32 in [0, 1], to fp32 (B, C, H, W) in [0, 1], channels-last."""
    if not isinstance(images, Tensor):
        images = torch.from_numpy(np.asarray(images))
    there = images.to(device)
    x = there.to(torch.float32) / 255 if there.dtype == torch.uint8 else there.to(torch.float32)
    return x.contiguous().permute(0, 3, 1, 2)


def finite_logits(model: Any, x: Tensor) -> Tensor:
    """model(x) without gradient; UserError where a logit is no number."""
    with torch.no_grad():
        logits = model(x)
    if not torch.isfinite(logits).all():
        raise UserError("the network gives non-finite logits: its weights are broken")
    return logits


def padded_batches(
    images: ImageSet,
    rows: np.ndarray,
    batch_size: int,
    device: torch.device,
    ranks: Ranks = ALONE,
) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
    """(x, y, index, count) with the last batch filled up: its first `count` samples are real.

    Of several ranks each has the batches of its number, of those that one process forms.
    """
    total = len(rows)
    batch_size = min(batch_size, total)
    for begin in turns(total, batch_size, ranks):
        batch = rows[np.minimum(np.arange(begin, begin + batch_size), total - 1)]
        yield (
            pixels(images.images[batch], device),
            torch.from_numpy(images.labels[batch]).to(device),
            torch.from_numpy(batch).to(device),
            min(batch_size, total - begin),
        )


def turns(total: int, batch_size: int, ranks: Ranks) -> range:
    """Where this rank's batches begin: batch b is of rank b modulo their number."""
    return range(ranks.rank * batch_size, total, ranks.world * batch_size)


def joined(own: Tensor, total: int, batch_size: int, ranks: Ranks, device: torch.device) -> Tensor:
    """What each rank found in its batches, bool, put together: (total,) on the CPU."""
    every = torch.zeros(total, dtype=torch.uint8)
    begins = turns(total, batch_size, ranks)
    for begin, batch in zip(begins, own.split(batch_size), strict=False):
        every[begin : begin + len(batch)] = batch
    every = every.to(device)
    ranks.add_up(every)
    return every.cpu().bool()


def correct_under(
    model: nn.Module,
    images: ImageSet,
    perturb: Perturb | None,
    *,
    seed: int,
    batch_size: int,
    device: torch.device,
    stream: str,
    restart: int = 0,
    rows: np.ndarray | None = None,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks = ALONE,
) -> Tensor:
    """Which samples the net still gets right after `perturb`, bool (N,) on the CPU.

    In fp32 and eval mode; each module's own mode is put back. The noise is keyed by seed, restart,
    stream and the sample's row, so the batch size does not matter. `rows` int64 picks samples
    (result (R,)); `progress` is called with (done, total). Batches are those of one process, shared
    out over the `ranks`, each of which gets the whole result. UserError on NaN logits.
    """
    correct: list[Tensor] = []
    key = noise_key(seed, restart, 0, stream).to(device)
    rows = np.arange(len(images.labels)) if rows is None else rows
    size = min(batch_size, len(rows))
    with ranks.agreed(), modes_kept(model):
        model.eval()
        for x, y, index, count in padded_batches(images, rows, size, device, ranks):
            if perturb is not None:
                x = perturb(model, x, y, Noise(key, index))
            hit = finite_logits(model, x).argmax(dim=1) == y
            correct.append(hit[:count].cpu())
            if progress:  # the others have done as much
                progress(min(len(correct) * ranks.world * size, len(rows)), len(rows))
    found = torch.cat(correct) if correct else torch.zeros(0, dtype=torch.bool)
    return found if ranks.world == 1 else joined(found, len(rows), size, ranks, device)
