"""SGD, and what it and BatchNorm do at each step of a run.

All of it is a pure function of the step, so that nothing needs resuming.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from fastuiat.config import OptimizerConfig, parse_schedule
from fastuiat.fast.torch_internals import norm_layers
from fastuiat.fast.view import TrainingView

WARMUP_SHARE = 0.25
INITIAL_DIVISOR = 25.0
FINAL_DIVISOR = 25e4
MOMENTUM_SWING = 0.05
"""How far a cycled momentum goes above and below what is set: 0.95 and 0.85, PyTorch's, at 0.9."""


def cosine_legs(step: int, total: int, begin: float, peak: float, end: float) -> float:
    """From `begin` at step 0 over `peak` to `end` at step total−1, on two half cosines."""
    top = WARMUP_SHARE * total - 1
    last = total - 1
    if step <= top:
        start, stop, share = begin, peak, step / top if top else 1.0
    else:
        start, stop = peak, end
        share = (step - top) / (last - top)
    return stop + (start - stop) / 2 * (1 + math.cos(math.pi * share))


def one_cycle(step: int, total: int, max_lr: float) -> float:
    """Cosine legs from max/25 over max to max/25e4 (Smith and Topin 2018)."""
    return cosine_legs(step, total, max_lr / INITIAL_DIVISOR, max_lr, max_lr / FINAL_DIVISOR)


def linear(step: int, total: int, max_lr: float, place: float) -> float:
    """From 0 up to max at step place·total, and down to 0 at step `total`, which is never made.

    So in the code of RS-FGSM and N-FGSM; GradAlign's is one step ahead.
    """
    top = place * total
    return max_lr * (step / top if step <= top else (total - step) / (total - top))


def learning_rate(config: OptimizerConfig, step: int, total: int) -> float:
    """Of step 0 … total−1."""
    _, place = parse_schedule(config.schedule)
    if place is None:
        return one_cycle(step, total, config.max_lr)
    return linear(step, total, config.max_lr, place)


def momentum(config: OptimizerConfig, step: int, total: int) -> float:
    """Of step 0 … total−1: held, or against the learning rate."""
    if not config.cycle_momentum:
        return config.momentum
    high, low = config.momentum + MOMENTUM_SWING, config.momentum - MOMENTUM_SWING
    return cosine_legs(step, total, high, low, high)


def set_for_step(
    optimizer: torch.optim.Optimizer, config: OptimizerConfig, step: int, total: int
) -> None:
    """Learning rate and momentum of a step, before it is made."""
    values = {
        "lr": learning_rate(config, step, total),
        "momentum": momentum(config, step, total),
    }
    for group in optimizer.param_groups:
        group.update(values)


def make_optimizer(net: nn.Module, config: OptimizerConfig) -> torch.optim.SGD:
    """One group of all parameters, or BatchNorm's in a second group without weight decay.

    Fused: one pass over the weights, the same bits (benchmarks/DECISIONS.md), and the fp16 scaler
    then needs no host sync. The meta device has no such kernel.
    """
    groups: list[dict[str, Any]] = [{"params": list(net.parameters())}]
    if not config.decay_batchnorm:
        norms = [m for m in net.modules() if isinstance(m, norm_layers())]
        spared = [p for norm in norms for p in norm.parameters()]
        known = set(map(id, spared))
        decayed = [p for p in net.parameters() if id(p) not in known]
        groups = [{"params": decayed}, {"params": spared, "weight_decay": 0.0}]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=config.max_lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=next(net.parameters()).device.type != "meta",
    )


def lay_out_state(optimizer: torch.optim.Optimizer) -> None:
    """Momenta in the strides of their parameters: fused optimizers walk both by memory."""
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
                continue
            if value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class BatchNormMomentum:
    """BatchNorm's momentum over a run: 1 throughout the first step, then the one that was set.

    So the running statistics begin as a batch's, not as 0 and 1, which a momentum of 0.01 would
    keep in them for hundreds of steps; as in the trainer of Rebuffi et al. (2021) and of HAT with
    generated images, every training forward of that step overwrites them. A compiled region holds
    the momentum as a constant, so the first step runs eager and the regions are made in the second.
    """

    def __init__(self, view: TrainingView, value: float | None) -> None:
        self.view, self.value = view, value
        nets = (view.net, view.shadow) if value is not None else ()
        layers = norm_layers()
        modules = [module for net in nets for module in net.modules()]
        self._norms: list[Any] = [m for m in modules if isinstance(m, layers)]
        self._set(value)

    def _set(self, momentum: float | None) -> None:
        for norm in self._norms:
            norm.momentum = momentum

    @contextmanager
    def during(self, step: int) -> Iterator[None]:
        """Around the forwards of step 0, 1, …"""
        if self.value is None or step:
            yield
            return
        self._set(1.0)
        try:
            with self.view.eagerly():
                yield
        finally:
            self._set(self.value)
