"""The whole data set in the device's memory: for sets that fit, nothing is faster."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch

from fastuiat.data.batch import Batch, draw, on_device
from fastuiat.data.order import Order
from fastuiat_kernels import augment


def resident(images: np.ndarray | Sequence[np.ndarray], device: torch.device) -> torch.Tensor:
    """One tensor on the device; a single array on the CPU is shared, not copied."""
    if isinstance(images, np.ndarray):
        return torch.from_numpy(images).to(device)
    total = sum(map(len, images))
    whole = torch.empty((total, *images[0].shape[1:]), dtype=torch.uint8, device=device)
    first = 0
    for part in images:
        whole[first : first + len(part)] = torch.from_numpy(part)
        first += len(part)
    return whole


class ResidentLoader:
    """Batches by indexing images uint8 (N, 32, 32, 3) and labels (N,) on the device."""

    def __init__(
        self,
        images: np.ndarray | Sequence[np.ndarray],
        labels: np.ndarray,
        order: Order,
        *,
        device: torch.device | str,
        flip: bool,
    ) -> None:
        self.order, self.flip, self.device = order, flip, torch.device(device)
        self.images = resident(images, self.device)
        self.labels = torch.from_numpy(labels).to(device)

    @property
    def num_samples(self) -> int:
        return len(self.labels)

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[Batch, None, None]:
        """The batches of one epoch (from 1), from a step on."""
        on_host = torch.from_numpy(self.order.batches(epoch)[start_step:])
        rows, seed = on_device(on_host, self.device), self.order.seed
        draws = draw(seed, epoch, rows, flip=self.flip)
        for i, index in enumerate(rows):
            x = augment(self.images[index], *draws.row(i))
            yield Batch(x, self.labels[index], index, epoch, start_step + i, seed, on_host[i])

    def close(self) -> None:
        """Nothing to release."""
