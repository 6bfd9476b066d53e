"""The whole data set in the device's memory: for sets that fit, nothing is faster."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch

from fastuiat.data.batch import Batch, augmented, on_device
from fastuiat.data.order import Order


class ResidentLoader:
    """Batches by indexing images uint8 (N, 32, 32, 3) and labels (N,) on the device."""

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        order: Order,
        *,
        device: torch.device | str,
        flip: bool,
    ) -> None:
        self.order, self.flip, self.device = order, flip, torch.device(device)
        self.images = torch.from_numpy(images).to(device)
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
