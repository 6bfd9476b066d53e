"""What PyTorch keeps to itself and this package uses all the same."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import logging
import types
from collections.abc import Callable, Iterator
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


_log = logging.getLogger(__name__)


@functools.cache
def say_once(text: str) -> None:
    """One line on the log, the first time."""
    _log.warning(text)


def cpu_has(unit: str) -> bool:
    """Whether the CPU has what PyTorch calls `amx_tile` or `avx512_bf16`."""
    ask = getattr(torch.cpu, f"_is_{unit}_supported", None)
    if ask is None:
        say_once(f"this PyTorch does not tell whether the CPU has {unit}: computing as without it")
        return False
    return bool(ask())


@contextlib.contextmanager
def compiler_config(part: str, **options: Any) -> Iterator[None]:
    """`torch.PART.config` (_inductor, _functorch, _dynamo) with other values meanwhile.

    Options that this PyTorch does not have are left out, and the log says so.
    """
    try:
        config: Any = importlib.import_module(f"torch.{part}.config")
    except ImportError:
        config = None
    known = {name: value for name, value in options.items() if hasattr(config, name)}
    if lacking := sorted(options.keys() - known.keys()):
        say_once(f"torch.{part} lacks the options {', '.join(lacking)}: compiled nets are slower")
    before = {name: getattr(config, name) for name in known}
    try:
        for name, value in known.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


@contextlib.contextmanager
def no_word_of_nvcc() -> Iterator[None]:
    """Meanwhile PyTorch does not warn of an nvcc without a GPU: nothing that a user has to mend."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
