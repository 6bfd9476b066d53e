"""A network behind the normalisation that it was published with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastuiat.config import UserError


def constants(mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """(mean, std) (3,) of pixels in [0, 1]; UserError on what cannot be those, as grey levels."""
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise UserError(f"--{name} takes three numbers, one a channel, and got {len(values)}")
        for value in map(float, values):
            if 1 < value <= 255:
                level = f"{value / 255:.4f}"
                raise UserError(
                    f"--{name} is of pixels in [0, 1]: write {level} for {value:g} of 255"
                )
            if not (math.isfinite(value) and 0 <= value <= 1):
                raise UserError(f"--{name} must be three numbers in [0, 1], got {value:g}")
            if name == "std" and value == 0:
                raise UserError("--std must be above 0")
    return torch.tensor([float(v) for v in mean]), torch.tensor([float(v) for v in std])


class Normalised(nn.Module):
    """`net` on (x − mean) / std; both (3,) in pixel units of [0, 1], kept as buffers."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float().view(1, 3, 1, 1))
        self.register_buffer("std", std.float().view(1, 3, 1, 1))
        self.net = net

    def forward(self, x: Tensor, return_features: bool = False) -> Any:
        return self.net(((x - self.mean) / self.std).to(x.dtype), return_features)
