"""`fastuiat bench step`: one training step, four ways, interleaved.

naive: as such code is usually written (bench/baselines.py). tuned-eager: the method's own step,
eager. fastuiat: the step that `fastuiat train` runs. convolutions: the convolutions and matrix
products of that step alone, at PyTorch's own kernels: what is left when all else is free. On
request, fused and cudnn: fastuiat's with the frozen blocks by either way of fast/fused.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from fastuiat.bench import columns, profile, table
from fastuiat.bench.record import RecordFile
from fastuiat.bench.setting import make_setting
from fastuiat.bench.step_rows import PROVIDERS, REFERENCE, Way, measure
from fastuiat.bench.suite import Columns, Measuring, Record, Records, Size, Suite, Visit, register
from fastuiat.bench.timing import Plan
from fastuiat.bench.workload import CIFAR_SIDE, Case, Phase, phases
from fastuiat.config import UserError, positive
from fastuiat.data import refuse_resolution
from fastuiat.models import build_model

MOST_KINDS = 4
"""Of a profile, in a line."""


def summary(records: Sequence[Record]) -> list[str]:
    """The ratios in a sentence; nothing where there is none."""
    by_name = {r["provider"]: r["ratio_median"] for r in records if r["ratio_median"]}
    said = [
        f"{by_name[name]:.2f} times as fast as {name}"
        for name in ("naive", "tuned-eager", "fused", "cudnn")
        if name in by_name
    ]
    if "convolutions" in by_name:
        said.append(f"{1 / by_name['convolutions']:.2f} times the time of its convolutions")
    return [f"fastuiat: {', '.join(said)}"] if said else []


def bound_notes(records: Sequence[Record]) -> list[str]:
    """What fastuiat's step takes at least on this device, computed and not measured."""
    ours = next((r for r in records if r["provider"] == REFERENCE and r.get("bound_s")), None)
    if ours is None or not ours["median_s"]:
        return []
    peak, memory = ours["peak_flops_per_s"] / 1e12, ours["memory_bytes_per_s"] / 1e9
    return [
        f"bound: at {peak:.3g} TFLOP/s and {memory:.3g} GB/s no step takes less than "
        f"{table.seconds(ours['bound_s'])}; fastuiat took {ours['median_s'] / ours['bound_s']:.3g} "
        "times that"
    ]


@dataclass(frozen=True, kw_only=True)
class StepOptions(Measuring):
    """Time one training step of a method, four ways, interleaved in one process."""

    arch: str = "resnet-18"
    """Network: resnet-18, prn-18 or wrn-D-W."""
    batch_size: int = 128
    """Images per step."""
    resolution: int = CIFAR_SIDE
    """Pixels a side of the images, a multiple of 8 from 16 to 224."""
    num_classes: int = 10
    """Classes of the images."""
    method: str = "uiat"
    """Training method."""
    epoch_phase: Literal["all", "before", "at", "after"] = "all"
    """Which part of a one-off run: before, in, or after its epoch T'; each has its own rows."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic of all but naive; auto: bf16 where the device has it in hardware, else fp32."""
    compile: bool = True
    """Compile the fastuiat row, as training does."""
    providers: tuple[Way, ...] = PROVIDERS
    """Which rows."""
    profile: bool = False
    """Also show, and record, where the time of a fastuiat step goes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(batch_size=self.batch_size, num_classes=self.num_classes)
        refuse_resolution(self.resolution)
        if self.profile and "fastuiat" not in self.providers:
            raise UserError("--profile is of the fastuiat row: name it in --providers")


def cases(options: StepOptions, device: torch.device) -> list[Case]:
    """One for each phase that is asked for; UserError on an unknown net, method or phase."""
    with torch.device("meta"):
        build_model(options.arch)
    case = Case(
        arch=options.arch,
        method=options.method,
        batch_size=options.batch_size,
        resolution=options.resolution,
        num_classes=options.num_classes,
    )
    chosen = [p for p in phases(case) if options.epoch_phase in ("all", p.name)]
    if options.epoch_phase != "all" and not chosen:
        raise UserError(f"--epoch-phase {options.epoch_phase}: {options.method} has no such phase")
    if options.profile and device.type == "cuda" and len(chosen) > 1:
        # CUPTI stays, and slows down what comes after it (pytorch#146604).
        raise UserError(
            "on a GPU a profile slows down what is measured after it: choose one phase with "
            f"--epoch-phase {'|'.join(p.name for p in chosen)}"
        )
    whole: list[Phase | None] = [None]
    return [dataclasses.replace(case, phase=phase) for phase in chosen or whole]


@register("step")
class StepSuite(Suite):
    Options = StepOptions
    rank = 1
    help = "one training step: naive, tuned-eager, fastuiat, and its convolutions alone"
    title = "One training step"
    what = "the time of an optimiser step"
    unit = "a step"
    tour_share = 0.2

    def columns(self) -> Columns:
        return {
            "case": columns.case,
            "provider": columns.provider,
            "arithmetic": columns.arithmetic,
            "median": columns.median,
            "20–80%": columns.quantiles,
            "n": columns.count,
            "÷ fastuiat": columns.number("ratio_median", ".2f"),
            "passes": columns.number("passes", ".1f"),
            "TFLOP/s": columns.number("tflops_per_s", ".3g"),
            "of peak": columns.percent("peak_share"),
            "bound, computed": columns.seconds("bound_s"),
        }

    def run(self, options: StepOptions) -> None:
        setting, note = make_setting(options.device, options.precision, options.compile)
        chosen = cases(options, setting.device)
        if note:
            print(note)
        with RecordFile(options.json) as file:
            for case in chosen:
                with table.progress(case.name) as done:
                    records = measure(
                        case,
                        setting,
                        plan=options.plan(),
                        names=options.providers,
                        done=done,
                        profiled=options.profile,
                        keep=file.write,
                    )
                self.show(records, explain=case is chosen[0])
                profile.show(records)

    def show(self, records: Sequence[Record], *, explain: bool = True) -> None:
        """One case as a table; below it errors, ratios, and what each row ran."""
        headings = (
            "provider", "passes", "median", "20–80%", "n", "÷ fastuiat", "images/s", "TFLOP/s",
            "step memory", "compile",
        )  # fmt: skip
        rows = []
        for r in records:
            span = f"{table.seconds(r['p20_s'])} – {table.seconds(r['p80_s'])}"
            rows.append(
                (
                    r["provider"],
                    table.number(r["passes"], ".2f"),
                    table.seconds(r["median_s"]),
                    table.NONE if r["error"] else span,
                    str(r["n"]),
                    table.number(r["ratio_median"], ".2f"),
                    table.number(r["images_per_s"], ",.1f"),
                    table.number(r["tflops_per_s"], ".3f"),
                    table.size(r["peak_bytes"]),
                    table.seconds(r["compile_s"]) if r["config"]["compile"] else table.NONE,
                )
            )
        first = records[0]
        notes = [
            f"{r['provider']}: {r['error'] or r['note']}" for r in records if r["error"] or explain
        ]
        notes += [*summary(records), *bound_notes(records)]
        table.show(f"{first['case']} on {first['device']}", headings, rows, notes)

    def figures(self, records: Sequence[Record]) -> str:
        """Our step of each net, its share of the peak, its profile; the others' times as long."""
        said = []
        for r in records:
            if r["provider"] == REFERENCE and r["n"]:
                share = f", {table.percent(r['peak_share'])} of peak" if r.get("peak_share") else ""
                share += profiled_kinds(r)
                others = [
                    f"{o['provider']} {o['ratio_median']:.2f}×"
                    for o in records
                    if o["case"] == r["case"] and o is not r and o.get("ratio_median")
                ]
                beside = f" ({', '.join(others)})" if others else ""
                said.append(f"{r['case']} {table.seconds(r['median_s'])}{share}{beside}")
        return "; ".join(said)

    def visit(self, visit: Visit) -> Records:
        case = Case(arch=visit.size.arch, batch_size=visit.size.batch_size)
        plan = Plan(rounds=visit.rounds, until=visit.until)
        records = visit.keep(measure(case, visit.setting, plan=plan, done=visit.done))
        self.show(records)
        return records

    def tour_line(self, size: Size, records: Sequence[Record]) -> str:
        ours = next((r for r in records if r["provider"] == REFERENCE and r["n"]), None)
        said = "not measured"
        if ours:
            ratios = [line.removeprefix(f"{REFERENCE}: ") for line in summary(records)]
            said = ", ".join([table.seconds(ours["median_s"]), *ratios])
        return f"a UIAT step of {size.arch}, batch {size.batch_size}: {said}"


def profiled_kinds(record: Record) -> str:
    """Where the time of a step goes, if it was profiled: the kinds that have most of it."""
    if record.get("profile_error") and not record.get("profile"):
        return f", no profile: {record['profile_error']}"
    shares: dict[str, float] = {}
    for row in (record.get("profile") or {}).get("rows", []):
        shares[row["kind"]] = shares.get(row["kind"], 0.0) + row["share"]
    most = sorted(shares, key=lambda kind: -shares[kind])[:MOST_KINDS]
    return "".join(f", {kind} {100 * shares[kind]:.0f}%" for kind in most)
