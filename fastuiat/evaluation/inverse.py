"""What a net makes of single images: inverse adversarial examples, and natural losses."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastuiat.attacks import pgd
from fastuiat.data import ImageSet
from fastuiat.evaluation.accuracy import Progress, finite_logits, padded_batches, pixels

ALPHA, STEPS = 2 / 255, 5
"""Of the instance-wise inverse attack (paper, appendix A.2)."""


class InverseExamples(NamedTuple):
    """fp32 on the CPU, images (B, C, H, W) in [0, 1], probabilities of the true class (B,)."""

    labels: Tensor
    x: Tensor
    x_inv: Tensor
    """Each image's own inverse example."""
    x_universal: Tensor | None
    """clip(x + z[y], 0, 1), where there is a z."""
    p: Tensor
    p_inv: Tensor
    p_universal: Tensor | None


def first_of_each_class(images: ImageSet, classes: int) -> tuple[Tensor, Tensor]:
    """(x, y): the first image of each of the first so many classes that has one."""
    rows = []
    for label in range(classes):
        found = (images.labels == label).nonzero()[0]
        rows += found[:1].tolist()
    return pixels(images.images[rows], torch.device("cpu")), torch.from_numpy(images.labels[rows])


def inverse_examples(
    model: nn.Module, x: Tensor, y: Tensor, z: Tensor | None, *, eps: float, device: torch.device
) -> InverseExamples:
    """Inverse examples within eps by descending CE from x + 0.001·N(0, 1), and those of z.

    x (B, C, H, W) in [0, 1], y int64 (B,), z (K, C, H, W) or None; eps in pixel units. Eval mode.
    UserError on logits that are no numbers.
    """
    model = model.to(device).eval()
    x, y = x.to(device), y.to(device)
    x_inv = pgd(model, x, y, eps=eps, alpha=ALPHA, steps=STEPS, start="normal", targeted=True)

    def confidence(images: Tensor) -> Tensor:
        probabilities = torch.softmax(finite_logits(model, images), dim=1)
        return probabilities.gather(1, y[:, None])[:, 0].cpu()

    universal = None if z is None else (x + z.to(device)[y]).clamp(0, 1)
    return InverseExamples(
        labels=y.cpu(),
        x=x.cpu(),
        x_inv=x_inv.cpu(),
        x_universal=None if universal is None else universal.cpu(),
        p=confidence(x),
        p_inv=confidence(x_inv),
        p_universal=None if universal is None else confidence(universal),
    )


def natural_losses(
    model: nn.Module,
    images: ImageSet,
    *,
    batch_size: int = 256,
    device: torch.device,
    progress: Progress | None = None,
) -> Tensor:
    """CE of each image as it is, fp32 (N,) on the CPU: what Figures 1 and 4 rank samples by."""
    model = model.to(device).eval()
    losses: list[Tensor] = []
    rows = np.arange(len(images.labels))
    for x, y, _, count in padded_batches(images, rows, batch_size, device):
        loss = nn.functional.cross_entropy(finite_logits(model, x), y, reduction="none")
        losses.append(loss[:count].cpu())
        if progress:
            progress("natural loss", sum(map(len, losses)), len(images.labels))
    return torch.cat(losses)
