"""A network behind the normalisation that it was published with."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


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
