"""What PyTorch keeps to itself and this package uses all the same; nobody else names it.

Each has a way around it, for the version that has it no longer: slower, and said once on the log.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)
MISSING = object()
CPU_UNITS = {
    "amx_tile": "torch.cpu._is_amx_tile_supported",
    "avx512_bf16": "torch.cpu._is_avx512_bf16_supported",
}


@functools.cache
def say_once(text: str) -> None:
    """One line on the log, the first time in a process."""
    logger.warning(text)


def say_missing(name: str, instead: str) -> None:
    say_once(f"this PyTorch ({torch.__version__}) has no {name}: {instead}")


def internal(name: str, instead: str) -> Any:
    """The object of a dotted name; MISSING, and what happens instead on the log, where it is gone.

    Looked up at each use: nothing is imported before it is needed.
    """
    parts = name.split(".")
    if len(parts) == 2 and (at_hand := getattr(torch, parts[1], MISSING)) is not MISSING:
        return at_hand  # asked for at every step
    for length in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        try:
            return functools.reduce(getattr, parts[length:], found)
        except AttributeError:
            break
    say_missing(name, instead)
    return MISSING


def norm_layers() -> tuple[type[nn.Module], ...]:
    """BatchNorm of every kind."""
    found = internal(
        "torch.nn.modules.batchnorm._BatchNorm", "the kinds of BatchNorm are named one by one"
    )
    if found is not MISSING:
        return (found,)
    return nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm


def foreach_copy_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Each source into its target, in few launches."""
    function = internal("torch._foreach_copy_", "tensors are copied one by one")
    if function is not MISSING:
        function(list(targets), list(sources))
        return
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def foreach_add_(tensors: Sequence[Tensor], others: Sequence[Tensor]) -> None:
    """To each tensor its other, in few launches."""
    function = internal("torch._foreach_add_", "tensors are added one by one")
    if function is not MISSING:
        function(list(tensors), list(others))
        return
    for tensor, other in zip(tensors, others, strict=True):
        tensor.add_(other)


def foreach_mul_(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Each tensor times the scalar, in few launches."""
    function = internal("torch._foreach_mul_", "tensors are multiplied one by one")
    if function is not MISSING:
        function(list(tensors), factor)
        return
    for tensor in tensors:
        tensor.mul_(factor)


def foreach_lerp_(tensors: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """Each tensor a part of the way to its end, in few launches."""
    function = internal("torch._foreach_lerp_", "tensors are averaged one by one")
    if function is not MISSING:
        function(list(tensors), list(ends), weight)
        return
    for tensor, end in zip(tensors, ends, strict=True):
        tensor.lerp_(end, weight)


def dispatch_mode() -> Any:
    """The class whose subclasses are shown every operator that runs while one is entered."""
    found = internal("torch.utils._python_dispatch.TorchDispatchMode", "no operation is counted")
    return nullcontext if found is MISSING else found


def cpu_has(unit: str) -> bool:
    """Whether the CPU has what PyTorch calls `amx_tile` or `avx512_bf16`."""
    asked = internal(CPU_UNITS[unit], f"computing as if this CPU had no {unit}")
    return asked is not MISSING and bool(asked())


def compile_alone(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The function as one graph, compiled apart from all else that has been compiled of its code.

    Dynamo keeps what it compiled by code object, eight entries at most, and guards against all of
    them at each call: two nets that share a function would use up each other's.
    """
    options |= {"fullgraph": True}
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:  # from 2.14 on
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


def compiler_errors() -> tuple[type[Exception], ...]:
    """What a call raises whose function does not compile."""
    found = internal("torch._dynamo.exc.TorchDynamoException", "any RuntimeError counts as its")
    return (RuntimeError,) if found is MISSING else (found,)


@contextmanager
def while_compiling() -> Iterator[None]:
    """Around the call that compiles a region."""
    # Without the option torch.autograd.grad breaks the graph.
    options = compiler_config("torch._dynamo.config", trace_autograd_ops=True)
    with options, reductions_mended(), no_word_of_nvcc():
        yield


@contextmanager
def compiler_config(module: str, **options: Any) -> Iterator[None]:
    """Options of a compiler's own meanwhile; one that is gone is left out, and the log says so."""
    config = internal(module, f"{', '.join(options)} cannot be set")
    with ExitStack() as stack:
        for name, value in options.items():
            if config is MISSING or not hasattr(config, name):
                say_missing(f"{module}.{name}", "compiling goes on without it")
            else:
                stack.enter_context(config.patch(**{name: value}))
        yield


@contextmanager
def kernels_named() -> Iterator[None]:
    """What Inductor compiles meanwhile for a CPU tells a profiler its kernels' names."""
    cpp = internal("torch._inductor.config.cpp", "kernels on a CPU have no names in a profile")
    before = getattr(cpp, "enable_kernel_profile", None)
    if before is None:
        yield
        return
    cpp.enable_kernel_profile = True
    try:
        yield
    finally:
        cpp.enable_kernel_profile = before


@contextmanager
def no_word_of_nvcc() -> Iterator[None]:
    """Meanwhile PyTorch does not warn of an nvcc without a GPU: nothing that a user has to mend."""
    loud = logging.getLogger("torch.utils.cpp_extension")
    before = loud.level
    loud.setLevel(logging.ERROR)
    try:
        yield
    finally:
        loud.setLevel(before)


@contextmanager
def reductions_mended() -> Iterator[None]:
    """Each half-precision copy of a sum has a scope of its own in Inductor's C++ for CPUs.

    torch 2.14.1 names a copy after its sum, so a kernel that stores one sum twice, as GradAlign's
    double backward through BatchNorm does in bf16, is not C++ ("conflicting declaration").
    """
    name = "torch._inductor.codegen.cpp.CppVecKernel.store_reduction"
    original = internal(name, "a double backward in bf16 may not compile on a CPU")
    if original is MISSING:
        yield
        return

    @functools.wraps(original)
    def scoped(self: Any, *arguments: Any) -> None:
        suffix = getattr(self, "reduction_suffix", None)
        if suffix is None:
            say_missing(f"{name}'s reduction_suffix", "its C++ is left as it is")
            original(self, *arguments)
            return
        suffix.writeline("{")
        original(self, *arguments)
        suffix.writeline("}")

    kernel: Any = internal("torch._inductor.codegen.cpp.CppVecKernel", "")
    kernel.store_reduction = scoped
    try:
        yield
    finally:
        kernel.store_reduction = original
