"""The floating-point operations of a step, counted operation by operation.

A pass is one forward of the batch, F. Counting needs no arithmetic: on device="meta" a step of any
net takes about a second. torch.utils.flop_counter.FlopCounterMode itself raises where autograd.grad
is asked for the gradient of a leaf that a module was given, as every attack does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from fastuiat.fast.torch_internals import dispatch_mode

Watching: Any = dispatch_mode()


@dataclass(frozen=True)
class TensorSpec:
    """What a kernel is chosen by: shape, strides (the layout) and dtype of one operand."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        return cls(tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def cast(self, dtype: torch.dtype) -> TensorSpec:
        return TensorSpec(self.shape, self.stride, dtype)


@dataclass(frozen=True)
class Op:
    """One convolution or matrix product; in `args` a TensorSpec stands for each tensor."""

    function: Any
    args: tuple[Any, ...]
    flops: int
    """A multiply-add counts as two."""

    @property
    def kind(self) -> str:
        """forward, backward to the input, to the weights, or both; or matmul."""
        if self.function is not torch.ops.aten.convolution_backward.default:
            is_forward = self.function is torch.ops.aten.convolution.default
            return "forward" if is_forward else "matmul"
        to_input, to_weights, _ = self.args[10]
        return "both" if to_input and to_weights else "input" if to_input else "weights"

    def cast(self, dtype: torch.dtype) -> Op:
        """The same operation in another floating-point dtype."""
        args = tuple(a.cast(dtype) if isinstance(a, TensorSpec) else a for a in self.args)
        return Op(self.function, args, self.flops)


class Inventory(Watching):
    """Notes every operation that has a FLOP formula while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: list[Op] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            specs = tuple(TensorSpec.of(a) if isinstance(a, Tensor) else a for a in args)
            self.ops.append(Op(func, specs, int(formula(*args, **kwargs, out_val=out))))
        return out

    @property
    def flops(self) -> int:
        return total_flops(self.ops)


def inventory(call: Callable[[], object]) -> list[Op]:
    """The convolutions and matrix products of a call, in their order."""
    with Inventory() as mode:
        call()
    return mode.ops


def total_flops(ops: Sequence[Op]) -> int:
    return sum(op.flops for op in ops)


def forward_flops(net: torch.nn.Module, x: Tensor) -> int:
    """F: the operations of one forward of the batch."""
    with torch.no_grad():
        return total_flops(inventory(lambda: net(x)))
