"""The convolutions and matrix products of a step alone: what is left when all else is free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastuiat.bench.passes import Op, TensorSpec


class OperandPool:
    """One tensor for each spec and operand position: bounded by the net's layers, not by its calls.

    Layers of one shape share their operands, so weights may be warmer in the cache than in a step.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.tensors: dict[tuple[TensorSpec, int], Tensor] = {}

    def operand(self, value: Any, position: int) -> Any:
        if not isinstance(value, TensorSpec):
            return value
        if (value, position) not in self.tensors:
            steps = zip(value.shape, value.stride, strict=True)
            elements = 1 + sum((size - 1) * stride for size, stride in steps)
            # Small normal numbers: no sum grows without end, and none is denormal.
            flat = torch.randn(elements, device=self.device).mul_(0.1).to(value.dtype)
            self.tensors[value, position] = flat.as_strided(value.shape, value.stride)
        return self.tensors[value, position]


def replay(ops: Sequence[Op], device: torch.device) -> Callable[[], None]:
    """A call that runs the operations in their order by PyTorch's own kernels, results dropped."""
    pool = OperandPool(device)
    calls: list[tuple[Any, tuple[Any, ...]]] = [
        (op.function, tuple(pool.operand(a, i) for i, a in enumerate(op.args))) for op in ops
    ]

    def run() -> None:
        with torch.no_grad():
            for function, args in calls:
                function(*args)

    return run
