"""SGD with Nesterov momentum, and the one-cycle learning rate."""

from __future__ import annotations

import math

import torch
from torch import nn

MOMENTUM = 0.9
WARMUP_SHARE = 0.25
INITIAL_DIVISOR = 25.0
FINAL_DIVISOR = 25e4


def one_cycle(step: int, total: int, max_lr: float) -> float:
    """The learning rate of step 0 … total−1: cosine legs from max/25 over max to max/25e4.

    A pure function of the step, so that nothing needs resuming (Smith and Topin 2018). Momentum
    stays where it is.
    """
    peak = WARMUP_SHARE * total - 1
    last = total - 1
    if step <= peak:
        begin, end, share = max_lr / INITIAL_DIVISOR, max_lr, step / peak if peak else 1.0
    else:
        begin, end = max_lr, max_lr / FINAL_DIVISOR
        share = (step - peak) / (last - peak)
    return end + (begin - end) / 2 * (1 + math.cos(math.pi * share))


def make_optimizer(
    net: nn.Module, *, lr: float, weight_decay: float, fused: bool
) -> torch.optim.SGD:
    """Weight decay is on every parameter. `fused` keeps the fp16 scaler free of host syncs."""
    return torch.optim.SGD(
        net.parameters(),
        lr=lr,
        momentum=MOMENTUM,
        nesterov=True,
        weight_decay=weight_decay,
        fused=fused,
    )
