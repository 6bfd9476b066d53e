"""memory_update: the momentum of the target probabilities (paper eq. 8).

    p ← gamma·P[i] + (1 − gamma)·p  where sample i has been seen, else p;   P[i] ← p;   seen[i] ← 1

Shapes: memory (N, K) fp32 or fp16, seen bool (N,), index int64 (B,) without repeats, probs (B, K).
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastuiat_kernels import checks


def memory_update_reference(
    memory: Tensor, seen: Tensor, index: Tensor, probs: Tensor, gamma: float
) -> Tensor:
    old = memory[index].to(probs.dtype)
    mixed = torch.where(seen[index][:, None], gamma * old + (1 - gamma) * probs, probs)
    memory.index_copy_(0, index, mixed.to(memory.dtype))
    seen.index_fill_(0, index, True)
    return mixed


def memory_update(
    memory: Tensor, seen: Tensor, index: Tensor, probs: Tensor, *, gamma: float
) -> Tensor:
    """The mixed probabilities (B, K) in the dtype of `probs`; memory and seen change in place.

    gamma = 0 stores `probs` as they are. Repeated indices are a ValueError on the CPU.
    """
    checks.floating(memory=memory, probs=probs)
    checks.same_device(memory=memory, seen=seen, index=index, probs=probs)
    checks.indices("index", index, memory.shape[0], probs.shape[0])
    if memory.shape[1] != probs.shape[1]:
        raise ValueError(f"probs has {probs.shape[1]} classes, memory {memory.shape[1]}")
    if index.device.type == "cpu" and torch.unique(index).numel() != index.numel():
        raise ValueError("index holds a sample twice")
    return memory_update_reference(memory, seen, index, probs, gamma)
