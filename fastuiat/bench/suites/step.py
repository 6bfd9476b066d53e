"""`fastuiat bench step`: one training step, four ways, interleaved.

naive: as such code is usually written (bench/baselines.py). tuned-eager: the method's own step,
eager. fastuiat: the step that `fastuiat train` runs. convolutions: the convolutions and matrix
products of that step alone, at PyTorch's own kernels: what is left when all else is free. On
request, fused and cudnn: fastuiat's with the frozen blocks by either way of fast/fused.py.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from fastuiat.bench import columns, profile, table
from fastuiat.bench.call_memory import graph_memory, peak_memory
from fastuiat.bench.events import named_kernels
from fastuiat.bench.passes import Op, inventory, total_flops
from fastuiat.bench.record import RecordFile, make_record
from fastuiat.bench.replay import replay
from fastuiat.bench.setting import Setting, costs, make_setting
from fastuiat.bench.suite import Columns, Measuring, Record, Records, Size, Suite, Visit, register
from fastuiat.bench.timing import (
    QUEUED_S,
    Call,
    Clock,
    Measurement,
    Plan,
    Provider,
    clock_for,
    interleaved,
    release,
)
from fastuiat.bench.workload import (
    CIFAR_SIDE,
    Case,
    Phase,
    floor_inventory,
    make_net,
    naive_inventory,
    naive_training_step,
    pass_flops,
    phases,
    training_step,
)
from fastuiat.config import UserError, positive
from fastuiat.data import refuse_resolution
from fastuiat.fast.fused import instead, takes_net
from fastuiat.models import build_model

Way = Literal["naive", "tuned-eager", "fastuiat", "convolutions", "fused", "cudnn"]
PROVIDERS: tuple[Way, ...] = get_args(Way)[:4]
"""Those that are measured unless others are asked for."""
REFERENCE = "fastuiat"
MOST_KINDS = 4
"""Of a profile, in a line."""


class StepProviders:
    """The four ways of one case, and the operations that each spends, once it is built."""

    def __init__(self, case: Case, setting: Setting, *, keep: bool = False) -> None:
        self.case, self.setting, self.keep = case, setting, keep
        self.flops: dict[str, int] = {}
        self.step: Call | None = None
        """Of fastuiat, once built, where `keep` asks for it."""

    def providers(self, names: Sequence[str]) -> list[Provider]:
        builders: dict[str, Callable[[], Call]] = {
            "naive": self.naive,
            "tuned-eager": functools.partial(self.ours, "tuned-eager", compiled=False),
            "fastuiat": functools.partial(self.ours, "fastuiat", compiled=self.setting.compiled),
            "convolutions": self.convolutions,
            "fused": functools.partial(self.by_way, "fused", fused=True),
            "cudnn": functools.partial(self.by_way, "cudnn", fused=False),
        }
        return [Provider(name, builders[name]) for name in names]

    @functools.cached_property
    def floor(self) -> list[Op]:
        return floor_inventory(self.case)

    def naive(self) -> Call:
        step = naive_training_step(self.case, self.setting.device)
        self.flops["naive"] = total_flops(naive_inventory(self.case))
        return step

    def ours(self, name: str, *, compiled: bool) -> Call:
        self.flops[name] = total_flops(self.floor)
        step = training_step(
            self.case,
            self.setting.device,
            precision=self.setting.precision,
            compiled=compiled,
            replayed=name != "tuned-eager",
        )
        if self.keep and name == REFERENCE:
            self.step = step
        return step

    def by_way(self, name: str, *, fused: bool) -> Call:
        if fused and not takes_net(make_net(self.case, torch.device("meta"))):
            raise UserError(f"no operator takes the blocks of {self.case.arch}")
        with instead(fused):
            return self.ours(name, compiled=self.setting.compiled)

    def convolutions(self) -> Call:
        """Noted in one real eager step: on meta, layouts are not those of the device."""
        step = training_step(
            self.case,
            self.setting.device,
            precision=self.setting.precision,
            compiled=False,
            replayed=False,
        )
        ops = inventory(step)
        self.flops["convolutions"] = total_flops(ops)
        return replay(ops, self.setting.device)

    def profile(self, *, queued: int) -> dict[str, Any]:
        """What fastuiat's record says of where its step goes; `queued` steps make a sample."""
        assert self.step is not None
        setting = self.setting
        return profile.fields(
            self.step, setting.device, precision=setting.precision, ops=self.floor, queued=queued
        )


def measure(
    case: Case,
    setting: Setting,
    *,
    plan: Plan,
    names: Sequence[str] = PROVIDERS,
    clock: Clock | None = None,
    done: Callable[[str], object] = lambda event: None,
    profiled: bool = False,
    keep: Callable[[list[dict[str, Any]]], object] = lambda records: None,
) -> list[dict[str, Any]]:
    """Records of one case, a provider each; `profiled`: fastuiat's with where its time goes.

    `keep` is handed what was measured before anything is profiled, and fastuiat's record once more
    with its profile. Nothing else is kept when it returns.
    """
    ways = StepProviders(case, setting, keep=profiled)
    if setting.device.type == "cuda":
        # Regions are recorded in the second call: no measure of how long a step takes.
        plan = dataclasses.replace(plan, warmup=max(plan.warmup, 3), min_sample_s=QUEUED_S)
    with named_kernels(setting.device) if profiled else contextlib.nullcontext():
        measured = interleaved(
            ways.providers(names),
            clock=clock or clock_for(setting.device),
            plan=plan,
            peak=peak_memory(setting.device),
            graphs=graph_memory(setting.device),
            done=done,
        )
    forward = pass_flops(case)
    reference = next((m for m in measured if m.name == REFERENCE and m.samples), None)
    notes = setting.notes(case)
    records = [
        make_record(
            suite="step",
            case=case.name,
            measured=m,
            device=setting.device,
            config=case.to_json()
            | {
                "precision": "fp32" if m.name == "naive" else setting.precision,
                "compile": setting.compiled and m.name in (REFERENCE, "fused", "cudnn"),
            },
            note=notes[m.name],
            **costs(m, case, ways.flops.get(m.name), forward),
            **ratio(m, reference),
        )
        for m in measured
    ]
    keep(records)
    if ways.step is not None and reference is not None:
        done("fastuiat: profile")
        own = records[measured.index(reference)]
        own |= ways.profile(queued=reference.repeats)
        keep([own])
    ways.step = None
    torch.compiler.reset()  # what was compiled is keyed by code, in eight entries
    with contextlib.suppress(RuntimeError):  # a failed profile may leave a device without answers
        release()
    return records


def ratio(m: Measurement, reference: Measurement | None) -> dict[str, Any]:
    """This row's time over fastuiat's, made round by round."""
    if reference is None or not m.samples:
        return {f"ratio_{key}": None for key in ("median", "p20", "p80")}
    s = m.ratio_to(reference)
    return {"ratio_median": s.median, "ratio_p20": s.p20, "ratio_p80": s.p80}


def summary(records: Sequence[dict[str, Any]]) -> list[str]:
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


def bound_notes(records: Sequence[dict[str, Any]]) -> list[str]:
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
