"""Where the operations meet Triton: its import, the choice of path, and who watches launches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl

    HAVE_TRITON = True
except ImportError:  # the CPU path needs none of it: let the kernel files be imported all the same
    HAVE_TRITON = False

    class _NoTriton:
        """What a kernel file names outside its kernels."""

        @staticmethod
        def jit(function: Any) -> Any:
            return function

    triton = tl = _NoTriton()  # type: ignore[assignment]


@dataclass(frozen=True)
class Launch:
    """One launch as a launcher asked for it: every argument of the kernel by its name."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    """Tensors, numbers, and Triton's tensor descriptors."""
    num_warps: int
    num_stages: int | None = None
    """How deep the loop over tiles is pipelined; None: as Triton does it."""

    @property
    def options(self) -> dict[str, int]:
        stages = {} if self.num_stages is None else {"num_stages": self.num_stages}
        return {"num_warps": self.num_warps, **stages}

    def tensors(self) -> dict[str, Tensor]:
        """The tensors among the arguments, those behind descriptors too."""
        bases = {name: getattr(value, "base", value) for name, value in self.arguments.items()}
        return {name: base for name, base in bases.items() if isinstance(base, Tensor)}


Watcher = Callable[[Launch, Callable[[], None]], None]
_watcher: Watcher | None = None


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Hand each launch to `watcher(launch, run)` meanwhile; it runs only if the watcher runs it."""
    global _watcher
    _watcher, before = watcher, _watcher
    try:
        yield
    finally:
        _watcher = before


def wrap_triton(kernel: Any) -> Any:
    """`torch.library.wrap_triton`, or what stands in for it where someone watches or interprets.

    The name is kept because PyTorch finds the kernels of a `triton_op` by reading its source.
    """
    if _watcher is not None:
        return _Watched(kernel, _watcher)
    return _launchable(kernel)


def _launchable(kernel: Any) -> Any:
    return kernel if triton.knobs.runtime.interpret else torch.library.wrap_triton(kernel)


class _Watched:
    def __init__(self, kernel: Any, watcher: Watcher) -> None:
        self.kernel, self.watcher = kernel, watcher

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def launch(
            *args: Any, num_warps: int, num_stages: int | None = None, **constants: Any
        ) -> None:
            arguments = dict(zip(self.kernel.arg_names, args, strict=False)) | constants
            asked = Launch(self.kernel, grid, arguments, num_warps, num_stages)
            self.watcher(
                asked,
                lambda: _launchable(self.kernel)[grid](*args, **constants, **asked.options),
            )

        return launch


def takes_kernel(*tensors: Tensor) -> bool:
    """Whether the tensors go to the kernel: on a GPU, with Triton installed, and not empty."""
    return HAVE_TRITON and all(t.is_cuda and t.numel() > 0 for t in tensors)


def takes_tiles(*tensors: Tensor) -> bool:
    """Whether the tensors go to a kernel that reads by tensor descriptors: as `takes_kernel`, on a
    GPU that copies tiles by itself and holds several (NVIDIA's Hopper and Blackwell for data
    centres). For others a compiler takes the tiles apart into accesses of one element."""
    return (
        takes_kernel(*tensors)
        and torch.version.hip is None
        and torch.cuda.get_device_capability(tensors[0].device)[0] in (9, 10)
    )


def blocks(size: int, block: int) -> int:
    """How many blocks cover `size`."""
    return -(-size // block)


def next_power_of_2(size: int) -> int:
    return 1 << max(size - 1, 0).bit_length()
