"""What PyTorch keeps to itself and this package uses all the same."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch

_ISOLATES = "isolate_recompiles" in inspect.signature(torch.compile).parameters
"""PyTorch 2.14 does, 2.11 does not."""


def compile_alone(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The function as one graph, compiled apart from all else that has been compiled of its code.

    Dynamo keeps what it compiled by code object, eight entries at most, and guards against all of
    them at each call: two nets that share a function would use up each other's.
    """
    options |= {"fullgraph": True}
    if _ISOLATES:
        options |= {"isolate_recompiles": True}
    else:
        function = _with_code_of_its_own(function)
    compiled: Callable[..., Any] = torch.compile(function, **options)
    return compiled


def _with_code_of_its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        return function(*arguments)

    own = types.FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
    return own


@functools.cache
def mend_reductions() -> None:
    """Give each half-precision copy of a sum a scope of its own in Inductor's C++ for CPUs.

    torch 2.14.1 names a copy after its sum, so a kernel that stores one sum twice, as GradAlign's
    double backward through BatchNorm does in bf16, is not C++ ("conflicting declaration").
    """
    from torch._inductor.codegen.cpp import CppVecKernel

    original: Any = CppVecKernel.store_reduction

    @functools.wraps(original)
    def scoped(self: Any, *arguments: Any) -> None:
        self.reduction_suffix.writeline("{")
        original(self, *arguments)
        self.reduction_suffix.writeline("}")

    CppVecKernel.store_reduction = scoped  # type: ignore[method-assign]
