"""The whole data set in the device's memory: for sets that fit, nothing is faster."""

from __future__ import annotations

from collections.abc import Generator, Sequence

import numpy as np
import torch

from fastuiat.data.batch import Batch, draw, on_device
from fastuiat.data.fingerprint import blocks_of
from fastuiat.data.on_disk import Images, ImagesOnDisk
from fastuiat.data.order import Order
from fastuiat_kernels import augment


class Parts:
    """Images in several parts that stay where they are, in memory or on disk, indexed as one."""

    def __init__(self, parts: Sequence[np.ndarray | ImagesOnDisk]) -> None:
        self.parts = parts

    def __getitem__(self, index: torch.Tensor) -> torch.Tensor:
        rows, first = index.numpy(), 0
        found = np.empty((len(rows), *self.parts[0].shape[1:]), np.uint8)
        for part in self.parts:
            inside = (rows >= first) & (rows < first + len(part))
            found[inside] = part[rows[inside] - first]
            first += len(part)
        return torch.from_numpy(found)


def resident(images: Images, device: torch.device) -> torch.Tensor | Parts:
    """One tensor on the device; on the CPU nothing is copied."""
    if isinstance(images, ImagesOnDisk):
        images = [images]
    if isinstance(images, np.ndarray):
        return torch.from_numpy(images).to(device)
    if device.type == "cpu":
        return Parts(images)
    total = sum(map(len, images))
    whole = torch.empty((total, *images[0].shape[1:]), dtype=torch.uint8, device=device)
    first = 0
    for part in images:
        for block in blocks_of(part):
            whole[first : first + len(block)] = torch.from_numpy(block)
            first += len(block)
    return whole


class ResidentLoader:
    """Batches by indexing images uint8 (N, 32, 32, 3) and labels (N,) on the device."""

    def __init__(
        self,
        images: Images,
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
        whole = torch.from_numpy(self.order.whole(epoch)[start_step:])
        on_host = self.order.own(whole)
        rows, seed = on_device(on_host, self.device), self.order.seed
        draws = draw(seed, epoch, rows, flip=self.flip)
        for i, index in enumerate(rows):
            x = augment(self.images[index], *draws.row(i))
            yield Batch(
                x, self.labels[index], index, epoch, start_step + i, seed, on_host[i], whole[i]
            )

    def close(self) -> None:
        """Nothing to release."""
