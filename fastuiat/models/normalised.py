"""A network behind the normalisation that it was published with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastuiat.config import UserError
from fastuiat.models.blocks import Classifier


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

    def normalise(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.std).to(x.dtype)

    def forward(self, x: Tensor) -> Any:
        return self.net(self.normalise(x))


class NormalisedClassifier(Normalised):
    """The same of a net that hands out its features."""

    def forward(self, x: Tensor, return_features: bool = False) -> Any:
        return self.net(self.normalise(x), return_features)


def behind(net: nn.Module, mean: Tensor, std: Tensor) -> Normalised:
    """The net behind a normalisation, which hands out what the net does."""
    kind = NormalisedClassifier if isinstance(net, Classifier) else Normalised
    return kind(net, mean, std)


def inner(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """The entries of the net behind a normalisation, under its own names; None without one."""
    own = {key.removeprefix("net."): v for key, v in state.items() if key.startswith("net.")}
    is_behind = bool(own) and state.keys() == {"mean", "std", *(f"net.{key}" for key in own)}
    return own if is_behind else None


def like(net: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """The net, behind a normalisation still to be loaded where a state dict has one."""
    return net if inner(state) is None else behind(net, torch.zeros(3), torch.ones(3))
