"""`fastuiat bench kernels`: each operation of fastuiat_kernels by all that can run it here.

eager: its plain PyTorch reference. inductor: the same, compiled. triton: the kernel, on a GPU. The
bytes are those that the operation must move at least, so GB/s of different providers compare.

On a GPU a sample is a replay of many calls (bench/graphs.py), and what a call from Python takes is
told beside it: `call_s`, a median. A provider that cannot be recorded is timed call by call, as all
are on a CPU; `timed` says which, `replay_error` why, and `graph_calls` how many calls a replay has.
`ratio_median` is of two providers timed alike.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from fastuiat.bench import columns, table
from fastuiat.bench.calls import Function, time_ways
from fastuiat.bench.floors import copy_bandwidth
from fastuiat.bench.graphs import Graphs
from fastuiat.bench.record import RecordFile, make_record
from fastuiat.bench.suite import Columns, Measuring, Rate, Record, Records, Suite, Visit, register
from fastuiat.bench.timing import Clock, Measurement, Plan, clock_for
from fastuiat.config import UserError
from fastuiat.device import resolve_device
from fastuiat_kernels import SPECS, KernelSpec, Variant

MIN_SAMPLE_S = 5e-3
"""Far above what a clock or a launch queue can blur."""


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
        return self.variant.inputs(self.variant.sizes[self.size], self.dtype, device)


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


def with_gradients(function: Callable[..., Any], names: tuple[str, ...]) -> Callable[..., Any]:
    """The function and its gradients in the inputs of these names."""

    def run(**inputs: Any) -> Any:
        with torch.enable_grad():
            leaves = {name: inputs[name].detach().requires_grad_() for name in names}
            return torch.autograd.grad(function(**inputs | leaves), tuple(leaves.values()))

    return run


def functions(case: KernelCase, device: torch.device) -> dict[str, Callable[[], Function]]:
    gradients = case.variant.gradients

    def whole(function: Function) -> Function:
        return with_gradients(function, gradients) if gradients else function

    made: dict[str, Callable[[], Function]] = {
        "eager": lambda: whole(case.variant.reference),
        "inductor": functools.cache(lambda: whole(compiled(case.variant.reference))),
    }
    if device.type == "cuda":
        made["triton"] = lambda: whole(case.variant.op)
    return made


def compiled(reference: Function) -> Function:
    return torch.compile(reference, fullgraph=True, dynamic=False)


def measure(
    case: KernelCase,
    device: torch.device,
    *,
    plan: Plan,
    bandwidth: float,
    clock: Clock | None = None,
    graphs: Graphs | None = None,
    done: Callable[[str], object] = lambda event: None,
) -> list[dict[str, Any]]:
    """Records of one case, a provider each. `bandwidth` is that of a copy, bytes per second."""
    moved = case.variant.bytes_moved(case.inputs(device))
    timed = time_ways(
        functions(case, device),
        lambda: case.inputs(device),
        moved,
        device,
        plan=plan,
        clock=clock,
        graphs=graphs,
        done=done,
    )
    config = {"kernel": case.spec.name, "variant": case.variant.name, "size": case.size}
    return [
        make_record(
            suite="kernels",
            case=case.name,
            measured=t.best,
            device=device,
            config=config | {"dtype": dtype_name(case.dtype)},
            bytes_moved=moved,
            copy_bytes_per_s=bandwidth,
            **rates(t.best, moved, bandwidth),
            ratio_median=t.ratio_to(timed["eager"]),
            **t.fields(),
        )
        for t in timed.values()
    ]


def rates(m: Measurement, moved: int, bandwidth: float) -> dict[str, Any]:
    if not m.samples:
        return {"bytes_per_s": None, "copy_share": None}
    rate = moved / m.spread.median
    return {"bytes_per_s": rate, "copy_share": rate / bandwidth}


@dataclass(frozen=True, kw_only=True)
class KernelOptions(Measuring):
    """Time the operations of fastuiat_kernels: eager, Inductor, and Triton on a GPU."""

    kernels: tuple[str, ...] = ()
    """Which operations; none named: all."""
    sizes: tuple[Literal["cifar10", "cifar100", "classes1000"], ...] = ("cifar10",)
    """Batch 128 with 10 classes, 512 with 100, 4096 with 1000."""
    every_dtype: bool = False
    """Also in the other dtypes that an operation takes, not only in its first."""


@register("kernels")
class KernelSuite(Suite):
    Options = KernelOptions
    rank = 2
    help = "the operations of fastuiat_kernels: eager, Inductor, and Triton on a GPU"
    title = "The kernels"
    rate = Rate("memory traffic", "GB/s", "bytes_per_s", scale=1e9)
    needs: ClassVar = {"bytes_moved": int}
    tour_share = 0.12

    def columns(self) -> Columns:
        return {
            "operation": columns.case,
            "provider": columns.provider,
            "median": columns.median,
            "20–80%": columns.quantiles,
            "n": columns.count,
            "÷ eager": columns.number("ratio_median", ".2f"),
            "GB/s": columns.number("bytes_per_s", ".3g", 1e9),
            "of a copy's": columns.percent("copy_share"),
            "timed by": lambda r: r.get("timed", "calls"),  # older records do not say it
            "a call from Python": columns.seconds("call_s"),
        }

    def run(self, options: KernelOptions) -> None:
        device = resolve_device(options.device)
        chosen = cases(options.kernels, options.sizes, options.every_dtype)
        every: Records = []
        with RecordFile(options.json) as file, table.progress(self.name) as done:
            bandwidth = copy_bandwidth(device, clock_for(device))
            for case in chosen:
                done(case.name)
                plan = options.plan(min_sample_s=MIN_SAMPLE_S)
                records = measure(case, device, plan=plan, bandwidth=bandwidth)
                file.write(records)
                every += records
        self.show(every)

    def show(self, records: Sequence[Record]) -> None:
        """All cases as one table; where there are replays, with what a call from Python takes."""
        headings = [
            "case", "provider", "median", "20–80%", "n", "÷ eager", "GB/s", "of a copy's", "compile"
        ]  # fmt: skip
        on_gpu = any(r["timed"] == "replays" or r["replay_error"] for r in records)
        if on_gpu:
            headings += ["timed by", "a call from Python"]
        rows = []
        for r in records:
            span = f"{table.seconds(r['p20_s'])} – {table.seconds(r['p80_s'])}"
            share = r["copy_share"]
            rows.append(
                [
                    r["case"],
                    r["provider"],
                    table.seconds(r["median_s"]),
                    table.NONE if r["error"] else span,
                    str(r["n"]),
                    table.number(r["ratio_median"], ".2f"),
                    table.number(r["bytes_per_s"] and r["bytes_per_s"] / 1e9, ".2f"),
                    table.NONE if share is None else f"{100 * share:.0f}%",
                    table.seconds(r["compile_s"]) if r["provider"] == "inductor" else table.NONE,
                    *([r["timed"], table.seconds(r["call_s"])] if on_gpu else []),
                ]
            )
        first = records[0]
        notes = [f"{r['case']} {r['provider']}: {r['error']}" for r in records if r["error"]]
        notes += [
            f"{r['case']} {r['provider']}: timed by calls, for its replay failed: "
            f"{r['replay_error']}"
            for r in records
            if r["replay_error"] and not r["error"]
        ]
        copy = first["copy_bytes_per_s"] / 1e9
        notes.append(
            f"bytes: what the operation must move at least; a copy moves {copy:.1f} GB/s here"
        )
        table.show(f"kernels on {first['device']}", headings, rows, notes)

    def label(self, record: Record) -> str:
        return f"{record['case'].split('/')[0]}, {record['provider']}"

    def group(self, record: Record) -> str:
        return ", ".join(record["case"].split("/")[1:])

    def figures(self, records: Sequence[Record]) -> str:
        """By provider, how many times as fast as eager: the middle one of all operations."""
        said = []
        for name in ("inductor", "triton"):
            gains = [1 / r["ratio_median"] for r in records if r["provider"] == name and r["n"]]
            if gains:
                middle = statistics.median(gains)
                said.append(f"{name} {middle:.2g} times as fast as eager, median of {len(gains)}")
        return "; ".join(said) or "not measured"

    def visit(self, visit: Visit) -> Records:
        """One operation after another while there is time."""
        device = visit.setting.device
        if device.type == "cpu" and not visit.setting.compiled:
            print("kernels: nothing to compare with eager on a CPU that does not compile")
            return []
        chosen = cases((), ("cifar10",), False)
        bandwidth = copy_bandwidth(device, clock_for(device))
        records: Records = []
        for i, case in enumerate(chosen):
            if records and visit.now() >= visit.until:
                print(f"kernels: no time left for {len(chosen) - i} of {len(chosen)} operations")
                break
            visit.done(case.name)
            plan = Plan(rounds=visit.rounds, until=visit.until, min_sample_s=MIN_SAMPLE_S)
            records += visit.keep(measure(case, device, plan=plan, bandwidth=bandwidth))
        self.show(records)
        return records
