"""The whole data set in the device's memory: for sets that fit, nothing is faster."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import torch

from fastuiat.data.augmentation import Augmentation, Kind
from fastuiat.data.batch import Batch, on_device
from fastuiat.data.fingerprint import blocks_of
from fastuiat.data.on_disk import SMALL, Images, ImagesOnDisk, Joined, parts_of
from fastuiat.data.order import Order


def resident(images: Images, device: torch.device) -> torch.Tensor | Joined:
    """One tensor on the device; where they lie, if that is on disk and they do not fit into it, or
    it is the CPU."""
    parts = parts_of(images)
    if len(parts) == 1 and parts[0].nbytes <= SMALL:
        parts = [parts[0][:]]
    if len(parts) == 1 and isinstance(parts[0], np.ndarray):
        return torch.from_numpy(parts[0]).to(device)
    if device.type == "cpu":
        return Joined(parts)
    if any(isinstance(part, ImagesOnDisk) for part in parts):
        free, _ = torch.cuda.mem_get_info(device)
        if sum(part.nbytes for part in parts) > free / 2:  # the net needs memory too
            return Joined(parts)
    total = sum(map(len, parts))
    whole = torch.empty((total, *parts[0].shape[1:]), dtype=torch.uint8, device=device)
    first = 0
    for block in blocks_of(parts):
        whole[first : first + len(block)] = torch.from_numpy(block)
        first += len(block)
    return whole


class ResidentLoader:
    """Batches by indexing images uint8 (N, R, R, 3) and labels (N,) on the device."""

    def __init__(
        self,
        images: Images,
        labels: np.ndarray,
        order: Order,
        *,
        device: torch.device | str,
        flip: bool,
        augment: Kind = "crop",
    ) -> None:
        self.order, self.device = order, torch.device(device)
        resolution = parts_of(images)[0].shape[1]
        self.augmentation = Augmentation(kind=augment, flip=flip, resolution=resolution)
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
        draws = self.augmentation.draw(seed, epoch, on_host, self.device)
        for i, index in enumerate(rows):
            if isinstance(self.images, Joined):
                images = torch.from_numpy(self.images[on_host[i].numpy()])
            else:
                images = self.images[index]
            x = self.augmentation.apply(on_device(images, self.device), draws.row(i))
            yield Batch(
                x, self.labels[index], index, epoch, start_step + i, seed, on_host[i], whole[i]
            )

    def close(self) -> None:
        """Nothing to release."""
