"""A batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastuiat_kernels import Noise, noise_key


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device that the host does not wait for: a plain `.to` stalls the GPU's queue.

    The tensor itself where it is there already.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@dataclass(frozen=True)
class Batch:
    """One training batch.

    x fp32 (B, C, H, W) in [0, 1], augmented, channels-last; y, index int64 (B,), all on one device.
    `epoch` counts from 1, `step` from 0 within the epoch. `host_index` is `index` on the CPU, for
    whoever must look at it without stalling the device; `host_whole` that of all samples of the
    step, where this is one part of them.

    >>> import torch, fastuiat
    >>> x, y, index = torch.rand(4, 3, 32, 32), torch.arange(4), torch.arange(4)
    >>> batch = fastuiat.Batch(x, y, index, epoch=1, step=0)
    >>> batch.noise("attack").index.tolist()
    [0, 1, 2, 3]
    """

    x: Tensor
    y: Tensor
    index: Tensor
    epoch: int
    step: int
    seed: int = 0
    host_index: Tensor | None = None
    host_whole: Tensor | None = None

    def __post_init__(self) -> None:
        if self.host_index is None and self.index.device.type == "cpu":
            object.__setattr__(self, "host_index", self.index)
        if self.host_whole is None:
            object.__setattr__(self, "host_whole", self.host_index)

    def noise(self, stream: str) -> Noise:
        """The noise of one purpose: a pure function of (seed, epoch, step, stream, index)."""
        key = noise_key(self.seed, self.epoch, self.step, stream)
        return Noise(on_device(key, self.x.device), self.index)
