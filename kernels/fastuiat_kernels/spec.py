"""KernelSpec: what tests, audit and bench must know of an operation, declared beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastuiat_kernels.launch import next_power_of_2

Inputs = dict[str, Any]
"""Keyword arguments of an operation."""


@dataclass(frozen=True)
class Size:
    """How large a sample input is."""

    batch: int
    channels: int
    height: int
    width: int
    classes: int
    samples: int

    @property
    def elements(self) -> int:
        """Elements of one image."""
        return self.channels * self.height * self.width


SIZES: Mapping[str, Size] = {
    "cifar10": Size(128, 3, 32, 32, 10, 50_000),
    "cifar100": Size(512, 3, 32, 32, 100, 50_000),
    "classes1000": Size(4096, 3, 32, 32, 1000, 100_000),
    "small": Size(16, 3, 16, 16, 10, 512),
    "small100": Size(32, 3, 8, 8, 100, 512),
    "small1000": Size(16, 3, 8, 8, 1000, 512),
}
"""The first three are for bench and the compiler; the interpreter walks the small ones in seconds.
"""


SampleInputs = Callable[[Size, torch.dtype, torch.device], Inputs]
"""Makes an operation's inputs, of a size, in a precision, on a device."""


@dataclass(frozen=True)
class Pointer:
    """What one pointer argument of a kernel may cost.

    `cached` marks what many programs of a launch read again (labels, a class's perturbation): the
    re-reads are served by the caches, so its floor is each byte once, however often it is asked
    for. All others must be asked for no more than `bytes` in total.
    """

    bytes: int
    """Bytes read and written per call, at least."""
    width: int
    """Bytes of one access of a thread, as wide as layout and dtype allow (16 at most)."""
    cached: bool = False


@dataclass(frozen=True)
class Tolerance:
    """How far a kernel may be from its reference where its arithmetic is not exact."""

    rtol: float
    atol: float
    roundings: int = 0
    """Beside these, of a result in its own dtype."""

    def of(self, dtype: torch.dtype) -> dict[str, float]:
        """What `torch.testing.assert_close` is told for a result of this dtype."""
        return {"rtol": self.rtol + self.roundings * torch.finfo(dtype).eps, "atol": self.atol}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to call an operation: `op`, `reference` and `launcher` take the same keywords."""

    name: str
    op: Callable[..., Any]
    """The public function."""
    reference: Callable[..., Any]
    """Plain PyTorch: oracle, CPU path, and what bench gives to eager and Inductor."""
    launcher: Callable[..., Any]
    """Launches the kernel whatever the device: what interpreter and audit call."""
    inputs: SampleInputs
    """Sample input, the same numbers on every device."""
    dtypes: tuple[torch.dtype, ...]
    """Dtypes that the kernel takes for the tensor that may come in several."""
    pointers: Callable[[Inputs], dict[str, Pointer]]
    """The floor per pointer argument, over all launches of one call."""
    elements: Callable[[Inputs], int]
    """What "per element" means."""
    launches: int
    """Kernels launched per call."""
    replaces: int
    """Operators that the eager reference runs, views and allocations apart (a test counts them)."""
    gradients: tuple[str, ...] = ()
    """Inputs of a loss in which its gradient is a part of the work."""
    mutates: tuple[str, ...] = ()
    """Inputs changed in place: bench and tests hand out copies."""
    sizes: Mapping[str, Size] = field(default_factory=lambda: SIZES)
    """What the names of sizes mean; some operations never see images of three channels."""
    by_tiles: bool = False
    """Launched only on GPUs that copy the tiles of tensor descriptors by themselves."""
    flops: Callable[[Inputs], int] = lambda inputs: 0
    """Operations of the products of matrices, where there are such."""
    tolerance: Tolerance | None = None
    """None: equal bits (NaNs in the same places)."""
    audit_sizes: tuple[str, ...] = ("cifar10",)
    """Sizes whose machine code is audited."""
    traffic_sizes: tuple[str, ...] = ("small",)
    """Sizes whose bytes are counted under the interpreter."""

    def bytes_moved(self, inputs: Inputs) -> int:
        """The least bytes that a call must read and write, over all pointers."""
        return sum(pointer.bytes for pointer in self.pointers(inputs).values())


@dataclass(frozen=True)
class KernelSpec:
    """An operation: its formula and its variants."""

    name: str
    formula: str
    variants: tuple[Variant, ...]


def generator(size: Size) -> torch.Generator:
    """Numbers that depend on nothing but the size."""
    return torch.Generator().manual_seed(size.batch * 1009 + size.classes)


def images(size: Size, rows: int, random: torch.Generator, device: torch.device) -> Tensor:
    """(rows, C, H, W) fp32 in [0, 1), channels-last."""
    x = torch.rand(rows, size.height, size.width, size.channels, generator=random)
    return x.to(device).permute(0, 3, 1, 2)


def gradients(
    size: Size, dtype: torch.dtype, random: torch.Generator, device: torch.device
) -> Tensor:
    """(B, C, H, W) normal values, channels-last."""
    g = torch.randn(size.batch, size.height, size.width, size.channels, generator=random)
    return g.to(device, dtype).permute(0, 3, 1, 2)


def labels(size: Size, random: torch.Generator, device: torch.device) -> Tensor:
    return torch.randint(size.classes, (size.batch,), generator=random).to(device)


def row_width(columns: int, tensor: Tensor) -> int:
    """The widest access (bytes) of a warp that takes a row of `columns` elements.

    Each row must stay aligned, and 32 lanes share it: a row of 10 leaves one element to a lane.
    """
    row = columns * tensor.element_size()
    lane = max(1, next_power_of_2(columns) // 32) * tensor.element_size()
    return min(16, row & -row, lane)
