"""The state that a checkpoint would keep: whether it is finite, and sums to compare it by.

Either is asked of the device once.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastuiat.training.step import TrainingStep

NAMED = 3
"""Tensors that a message lists."""


def tensors_of(step: TrainingStep) -> dict[str, Tensor]:
    """All tensors that a step carries on: `optimizer.conv.weight.momentum_buffer` and so on."""
    found = {f"model.{name}": value for name, value in step.net.state_dict().items()}
    if step.averaged is not None:
        found |= {f"averaged.{name}": value for name, value in step.averaged.state_dict().items()}
    names: dict[Tensor, str] = {parameter: name for name, parameter in step.net.named_parameters()}
    for parameter, kept in step.optimizer.state.items():
        owner = names.get(parameter, "parameter")
        found |= {f"optimizer.{owner}.{k}": v for k, v in kept.items() if isinstance(v, Tensor)}
    return found | {f"method.{name}": value for name, value in step.method.state_dict().items()}


@torch.no_grad()
def non_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of those that hold NaN or infinity; integers hold neither.

    A flag a tensor is made where it lies, and all flags of a device are fetched at once.
    """
    floats = {k: v for k, v in tensors.items() if v.is_floating_point() or v.is_complex()}
    bad = []
    for device in {value.device for value in floats.values()}:
        here = {k: v for k, v in floats.items() if v.device == device}
        flags = torch.stack([value.isfinite().all() for value in here.values()]).tolist()
        bad += [name for name, fine in zip(here, flags, strict=True) if not fine]
    return bad


def listed(names: list[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def sums_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """By `model`, `optimizer` …: the sum, modulo 2^64, of the bits of its tensors as integers."""
    sums: dict[str, Tensor] = {}
    for name, value in tensors.items():
        part = name.split(".")[0]
        bits = value.view(WHOLE[value.element_size()]).sum(dtype=torch.int64)
        sums[part] = sums[part] + bits if part in sums else bits
    return dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True)) if sums else {}
