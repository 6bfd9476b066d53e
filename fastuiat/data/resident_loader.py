"""The whole data set in the device's memory: for sets that fit, nothing is faster."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch

from fastuiat.data.batch import Batch, augmented, on_device
from fastuiat.data.order import Order


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
        rows = torch.from_numpy(self.order.batches(epoch))
        for step in range(start_step, len(rows)):
            host_index = rows[step]
            index = on_device(host_index, self.device)
            yield augmented(
                self.images[index],
                self.labels[index],
                index,
                seed=self.order.seed,
                epoch=epoch,
                step=step,
                flip=self.flip,
                host_index=host_index,
            )

    def close(self) -> None:
        """Nothing to release."""
