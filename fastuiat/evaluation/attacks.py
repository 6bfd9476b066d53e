"""Accuracy of a net over a set of images: clean, PGD and CW."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastuiat.attacks import pgd
from fastuiat.config import UserError
from fastuiat.data import ImageSet
from fastuiat_kernels import Noise, noise_key

Progress = Callable[[str, int, int], None]
"""Called with (what, done, total)."""
LOSSES = {"pgd": "ce", "cw": "margin"}


def pixels(images_u8: np.ndarray | Tensor, device: torch.device) -> Tensor:
    """uint8 (B, H, W, C) to fp32 (B, C, H, W) in [0, 1], channels-last."""
    images = torch.as_tensor(images_u8).to(device)
    return (images.to(torch.float32) / 255).permute(0, 3, 1, 2)


def finite_logits(model: Any, x: Tensor) -> Tensor:
    """model(x) without gradient; UserError where a logit is no number."""
    with torch.no_grad():
        logits = model(x)
    if not torch.isfinite(logits).all():
        raise UserError("the network gives non-finite logits: its weights are broken")
    return logits


def padded_batches(
    images: ImageSet, rows: np.ndarray, batch_size: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor, Tensor, int]]:
    """(x, y, index, count) with the last batch filled up: its first `count` samples are real."""
    total = len(rows)
    batch_size = min(batch_size, total)
    for begin in range(0, total, batch_size):
        batch = rows[np.minimum(np.arange(begin, begin + batch_size), total - 1)]
        yield (
            pixels(images.images[batch], device),
            torch.from_numpy(images.labels[batch]).to(device),
            torch.from_numpy(batch).to(device),
            min(batch_size, total - begin),
        )


def correct_under(
    model: nn.Module,
    images: ImageSet,
    attack: str,
    *,
    eps: float,
    alpha: float = 2 / 255,
    steps: int = 20,
    seed: int = 0,
    batch_size: int = 256,
    device: torch.device,
    progress: Progress | None = None,
    restart: int = 0,
    rows: np.ndarray | None = None,
) -> Tensor:
    """Which samples are still classified correctly at the attack's final point, bool (N,) on CPU.

    `attack` is clean, pgd (CE) or cw (margin); eps and alpha in pixel units. A negative eps is the
    inverse attack, which descends the loss inside |eps|. `rows` int64 picks samples (result (R,)).
    In fp32 and eval mode; noise is keyed by seed, restart and the sample's row, so the batch size
    does not matter. UserError on NaN logits.
    """
    was_training = model.training
    model.eval()
    correct: list[Tensor] = []
    key = noise_key(seed, restart, 0, f"eval-{attack}").to(device)
    rows = np.arange(len(images.labels)) if rows is None else rows
    try:
        for x, y, index, count in padded_batches(images, rows, batch_size, device):
            if attack != "clean" and eps:
                x = pgd(
                    model,
                    x,
                    y,
                    eps=abs(eps),
                    alpha=alpha,
                    steps=steps,
                    loss=LOSSES[attack],
                    targeted=eps < 0,
                    noise=Noise(key, index),
                )
            hit = finite_logits(model, x).argmax(dim=1) == y
            correct.append(hit[:count].cpu())
            if progress:
                progress(attack, sum(map(len, correct)), len(rows))
    finally:
        model.train(was_training)
    return torch.cat(correct) if correct else torch.zeros(0, dtype=torch.bool)


def correct_over_restarts(
    model: nn.Module,
    images: ImageSet,
    attack: str,
    *,
    eps: float,
    alpha: float,
    steps: int,
    restarts: int,
    seed: int,
    batch_size: int,
    device: torch.device,
    progress: Progress | None = None,
) -> tuple[Tensor, list[float]]:
    """(the samples that hold after all restarts, bool (N,); accuracy after each restart).

    The worst case over restarts, so a sample that fell is not attacked again. Of the inverse attack
    (eps < 0), which helps the sample, it is the best case: right after any restart.
    """
    correct = torch.full((len(images.labels),), eps >= 0)
    accuracy = []
    for restart in range(restarts if eps else 1):
        rows = np.flatnonzero(correct.numpy() == (eps >= 0))
        if len(rows):
            correct[torch.from_numpy(rows)] = correct_under(
                model, images, attack, eps=eps, alpha=alpha, steps=steps, seed=seed,
                batch_size=batch_size, device=device, progress=progress, restart=restart, rows=rows,
            )  # fmt: skip
        accuracy.append(int(correct.sum()) / len(correct))
    return correct, accuracy
