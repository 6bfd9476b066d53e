"""Weight averaging with own BatchNorm statistics (Izmailov et al. 2018; Rebuffi et al. 2021)."""

from __future__ import annotations

import copy

import torch
from torch import nn

from fastuiat.fast.torch_internals import foreach_lerp_


class Averaged:
    """An exponential average of parameters and float buffers of a network.

    After step t (from 0) the decay is min(decay, (1 + t) / (10 + t)). The public trainer of Rebuffi
    and HAT averages the parameters alone, and gives both nets the live one's buffers.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.decay = decay
        pairs = list(zip(self.net.state_dict().values(), net.state_dict().values(), strict=True))
        self._averaged = [(a, b) for a, b in pairs if a.is_floating_point()]
        self._copied = [(a, b) for a, b in pairs if not a.is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        mine, live = (list(side) for side in zip(*self._averaged, strict=True))
        foreach_lerp_(mine, live, 1 - decay)
        for own, other in self._copied:
            own.copy_(other)
