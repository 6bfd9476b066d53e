"""How fast a run goes, what it waits for, and the memory it takes: figures outside its identity."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import torch

T = TypeVar("T")


def peak_memory_mib(device: torch.device) -> float:
    """The most memory held so far: by PyTorch's allocator on CUDA, else by the whole process.

    Not by tensors alone: between replays those of a recorded region are none, and their memory is
    held.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


class Mark(NamedTuple):
    """A moment of a run, to measure from."""

    seconds: float
    steps: int
    waited: float


class StepClock:
    """Counts steps, and the seconds that the host waited for their batches."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.steps = 0
        self.waited = 0.0

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches, each counted as a step."""
        while True:
            asked = time.monotonic()
            batch = next(batches, None)
            self.waited += time.monotonic() - asked
            if batch is None:
                return
            self.steps += 1
            yield batch

    def mark(self) -> Mark:
        return Mark(time.monotonic(), self.steps, self.waited)

    def since(self, mark: Mark) -> dict[str, float]:
        """Steps, images per second, and how much of the time went into waiting for data."""
        seconds = max(time.monotonic() - mark.seconds, 1e-9)
        return {
            "steps": self.steps - mark.steps,
            "images_per_second": (self.steps - mark.steps) * self.batch_size / seconds,
            "data_wait_percent": 100 * (self.waited - mark.waited) / seconds,
        }
