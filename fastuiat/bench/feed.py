"""Where the steps of an epoch bench get their batches from: a loader, whose time counts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fastuiat import data
from fastuiat.bench.workload import CIFAR_SAMPLES
from fastuiat.data import Batch, Loader

EPOCH_IMAGES = 50_000
"""min/epoch means so many images, whatever the data set."""


def steps_per_epoch(batch_size: int) -> int:
    """The incomplete last batch is dropped."""
    return max(1, EPOCH_IMAGES // batch_size)


@dataclass(frozen=True)
class Source:
    """Where the batches come from."""

    name: str = "synthetic"
    data_dir: Path = Path("data")
    loader: str = "auto"
    unchecked: bool = False
    """Also files that are not the published ones."""

    @property
    def num_classes(self) -> int:
        return 10 if self.name == "synthetic" else data.dataset_info(self.name).num_classes

    def make(self, batch_size: int, device: torch.device) -> Loader:
        """A real set by its loader; synthetic is random bytes, as many as CIFAR's, resident."""
        if self.name == "synthetic":
            random = np.random.default_rng(0)
            images = random.integers(0, 256, (CIFAR_SAMPLES, 32, 32, 3), dtype=np.uint8)
            labels, kind, flip = random.integers(0, 10, CIFAR_SAMPLES), "resident", True
        else:
            real = data.load(self.name, self.data_dir, "train", unchecked=self.unchecked)
            images, labels, kind = real.images, real.labels, self.loader
            flip = data.dataset_info(self.name).flip
        order = data.Order(seed=0, train_index=np.arange(len(labels)), batch_size=batch_size)
        return data.make_loader(
            kind,
            images,
            labels,
            order,
            device=device,
            flip=flip,
            cache_dir=self.data_dir,
            name=self.name,
        )


class Feed:
    """Batches without end, epoch after epoch, for all the methods that take turns at them.

    As in training the next one is under way, on CUDA, while a step runs.
    """

    def __init__(
        self,
        loader: Loader,
        device: torch.device,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.loader, self.device, self.now = loader, device, now
        self._batches = self._endless()

    def _endless(self) -> Generator[Batch, None, None]:
        epoch = 0
        while True:
            epoch += 1
            yield from data.one_ahead(self.loader.epoch(epoch), self.device)

    @property
    def kind(self) -> str:
        """`resident` or `ffcv`."""
        return "resident" if isinstance(self.loader, data.ResidentLoader) else "ffcv"

    def next(self, epoch: int) -> tuple[Batch, float]:
        """The next batch, as one of `epoch`, and the seconds that the host waited for it."""
        asked = self.now()
        batch = next(self._batches)
        return dataclasses.replace(batch, epoch=epoch), self.now() - asked

    def close(self) -> None:
        self._batches.close()
        self.loader.close()
