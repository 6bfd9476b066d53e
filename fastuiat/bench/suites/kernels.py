"""`fastuiat bench kernels`: each operation of fastuiat_kernels by all that can run it here.

eager: its plain PyTorch reference. inductor: the same, compiled. triton: the kernel, on a GPU. The
bytes are those that the operation must move at least, so GB/s of different providers compare.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastuiat.bench import table
from fastuiat.bench.floors import copy_bandwidth as copy_bandwidth
from fastuiat.bench.machine import cache_bytes
from fastuiat.bench.memory import peak_memory
from fastuiat.bench.record import make_record
from fastuiat.bench.timing import Call, Clock, Measurement, Plan, Provider, clock_for, interleaved
from fastuiat.config import UserError
from fastuiat_kernels import SIZES, SPECS, KernelSpec, Variant

MIN_SAMPLE_S = 5e-3
"""Far above what a clock or a launch queue can blur."""
POOL_BYTES = 1 << 30


@dataclass(frozen=True)
class KernelCase:
    """One variant of an operation at one size and dtype."""

    spec: KernelSpec
    variant: Variant
    size: str
    dtype: torch.dtype

    @property
    def name(self) -> str:
        return f"{self.variant.name}/{self.size}/{dtype_name(self.dtype)}"

    def inputs(self, device: torch.device) -> dict[str, Any]:
        return self.variant.inputs(SIZES[self.size], self.dtype, device)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def cases(names: Sequence[str], sizes: Sequence[str], every_dtype: bool) -> list[KernelCase]:
    """The chosen operations (all where none is named); UserError on one that does not exist."""
    known = [spec.name for spec in SPECS]
    for name in names:
        if name not in known:
            raise UserError(f"unknown kernel '{name}': choose from {', '.join(known)}")
    return [
        KernelCase(spec, variant, size, dtype)
        for spec in SPECS
        if not names or spec.name in names
        for variant in spec.variants
        for size in sizes
        for dtype in (variant.dtypes if every_dtype else variant.dtypes[:1])
    ]


def input_pool(case: KernelCase, device: torch.device) -> list[dict[str, Any]]:
    """Copies to go around, so that together they leave nothing of the last call in the cache."""
    first = case.inputs(device)
    tensors = [v for v in first.values() if isinstance(v, torch.Tensor)]
    held = sum(t.numel() * t.element_size() for t in tensors)
    wanted = math.ceil(2 * cache_bytes(device) / case.variant.bytes_moved(first))
    copies = max(1, min(wanted, POOL_BYTES // held))
    return [first, *(case.inputs(device) for _ in range(copies - 1))]


def with_gradients(function: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """The function and its gradients in the inputs of these names."""

    def run(**inputs: Any) -> Any:
        with torch.enable_grad():
            leaves = {name: inputs[name].detach().requires_grad_() for name in names}
            return torch.autograd.grad(function(**inputs | leaves), tuple(leaves.values()))

    return run


def providers(case: KernelCase, device: torch.device) -> list[Provider]:
    pool = input_pool(case, device)
    gradients = case.variant.gradients

    def around(function: Callable[..., object]) -> Call:
        inputs: Iterator[dict[str, Any]] = itertools.cycle(pool)
        call = with_gradients(function, gradients) if gradients else function
        return lambda: call(**next(inputs))

    reference, op = case.variant.reference, case.variant.op
    compiled = functools.partial(torch.compile, reference, fullgraph=True, dynamic=False)
    result = [
        Provider("eager", lambda: around(reference)),
        Provider("inductor", lambda: around(compiled())),
    ]
    if device.type == "cuda":
        result.append(Provider("triton", lambda: around(op)))
    return result


def measure(
    case: KernelCase,
    device: torch.device,
    *,
    plan: Plan,
    bandwidth: float,
    clock: Clock | None = None,
    done: Callable[[str], object] = lambda event: None,
) -> list[dict[str, Any]]:
    """Records of one case, a provider each. `bandwidth` is that of a copy, bytes per second."""
    with torch.no_grad():
        measured = interleaved(
            providers(case, device),
            clock=clock or clock_for(device),
            plan=plan,
            peak=peak_memory(device),
            done=done,
        )
        moved = case.variant.bytes_moved(case.inputs(device))
    torch.compiler.reset()
    eager = next((m for m in measured if m.name == "eager" and m.samples), None)
    config = {"kernel": case.spec.name, "variant": case.variant.name, "size": case.size}
    return [
        make_record(
            suite="kernels",
            case=case.name,
            measured=m,
            device=device,
            config=config | {"dtype": dtype_name(case.dtype)},
            bytes_moved=moved,
            copy_bytes_per_s=bandwidth,
            **rates(m, moved, bandwidth, eager),
        )
        for m in measured
    ]


def rates(
    m: Measurement, moved: int, bandwidth: float, eager: Measurement | None
) -> dict[str, Any]:
    if not m.samples:
        return {"bytes_per_s": None, "copy_share": None, "ratio_median": None}
    rate = moved / m.spread.median
    ratio = m.ratio_to(eager).median if eager else None
    return {"bytes_per_s": rate, "copy_share": rate / bandwidth, "ratio_median": ratio}


def show(records: Sequence[dict[str, Any]]) -> None:
    """All cases as one table."""
    headings = (
        "case", "provider", "median", "20–80%", "n", "÷ eager", "GB/s", "of a copy's", "compile"
    )  # fmt: skip
    rows = []
    for r in records:
        span = f"{table.seconds(r['p20_s'])} – {table.seconds(r['p80_s'])}"
        share = r["copy_share"]
        rows.append(
            (
                r["case"],
                r["provider"],
                table.seconds(r["median_s"]),
                table.NONE if r["error"] else span,
                str(r["n"]),
                table.number(r["ratio_median"], ".2f"),
                table.number(r["bytes_per_s"] and r["bytes_per_s"] / 1e9, ".2f"),
                table.NONE if share is None else f"{100 * share:.0f}%",
                table.seconds(r["compile_s"]) if r["provider"] == "inductor" else table.NONE,
            )
        )
    first = records[0]
    notes = [f"{r['case']} {r['provider']}: {r['error']}" for r in records if r["error"]]
    copy = first["copy_bytes_per_s"] / 1e9
    notes.append(f"bytes: what the operation must move at least; a copy moves {copy:.1f} GB/s here")
    table.show(f"kernels on {first['device']}", headings, rows, notes)
