"""`fastuiat bench step`: one training step, four ways, interleaved.

naive: as such code is usually written (bench/baselines.py). tuned-eager: the method's own step,
eager. fastuiat: the step that `fastuiat train` runs. convolutions: the convolutions and matrix
products of that step alone, at PyTorch's own kernels: what is left when all else is free.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastuiat.bench import profile, table
from fastuiat.bench.baselines import BASELINES
from fastuiat.bench.call_memory import graph_memory, peak_memory
from fastuiat.bench.events import named_kernels
from fastuiat.bench.passes import Op, inventory, total_flops
from fastuiat.bench.record import make_record
from fastuiat.bench.replay import replay
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
    Case,
    floor_inventory,
    naive_inventory,
    naive_training_step,
    pass_flops,
    training_step,
)
from fastuiat.device import has_bf16, missing_for_compilation, resolve_device, resolve_precision

PROVIDERS = ("naive", "tuned-eager", "fastuiat", "convolutions")
REFERENCE = "fastuiat"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a case is run."""

    device: torch.device
    precision: str
    compiled: bool

    def notes(self, case: Case) -> dict[str, str]:
        """What each row ran, in words."""
        compiled = "compiled" if self.compiled else "not compiled"
        arithmetic = self.precision
        if arithmetic == "fp32" and not has_bf16(self.device):
            arithmetic += " (no bf16 in this hardware)"
        known = BASELINES.get(case.method)
        return {
            "naive": f"eager, fp32, NCHW. {known.source if known else ''}",
            "tuned-eager": f"eager, {arithmetic}, channels-last, the passes of the floor",
            "fastuiat": f"the step of `fastuiat train`: {arithmetic}, {compiled}",
            "convolutions": f"its convolutions and matrix products alone: eager, {arithmetic}",
        }


def make_setting(device: str, precision: str, compiled: bool) -> tuple[Setting, str | None]:
    """The setting that options ask for, and what to say where it is not compiled against them."""
    place = resolve_device(device)
    missing = missing_for_compilation(place) if compiled else None
    setting = Setting(
        device=place,
        precision=resolve_precision(precision, place),
        compiled=compiled and missing is None,
    )
    return setting, f"not compiling: {missing}" if missing else None


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
        setting = self.setting
        step = training_step(
            self.case, setting.device, precision=setting.precision, compiled=compiled
        )
        if self.keep and name == REFERENCE:
            self.step = step
        return step

    def convolutions(self) -> Call:
        """Noted in one real eager step: on meta, layouts are not those of the device."""
        step = training_step(
            self.case, self.setting.device, precision=self.setting.precision, compiled=False
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
                "compile": setting.compiled and m.name == REFERENCE,
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


def costs(m: Measurement, case: Case, flops: float | None, forward: int) -> dict[str, Any]:
    """What the time means: passes, images per second, floating-point operations per second."""
    median = m.spread.median if m.samples else None
    return {
        "passes": flops / forward if flops else None,
        "flops": flops,
        "images_per_s": case.batch_size / median if median else None,
        "tflops_per_s": flops / median / 1e12 if median and flops else None,
    }


def ratio(m: Measurement, reference: Measurement | None) -> dict[str, Any]:
    """This row's time over fastuiat's, made round by round."""
    if reference is None or not m.samples:
        return {f"ratio_{key}": None for key in ("median", "p20", "p80")}
    s = m.ratio_to(reference)
    return {"ratio_median": s.median, "ratio_p20": s.p20, "ratio_p80": s.p80}


def show(records: Sequence[dict[str, Any]], *, explain: bool = True) -> None:
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


def summary(records: Sequence[dict[str, Any]]) -> list[str]:
    """The ratios in a sentence; nothing where there is none."""
    by_name = {r["provider"]: r["ratio_median"] for r in records if r["ratio_median"]}
    said = [
        f"{by_name[name]:.2f} times as fast as {name}"
        for name in ("naive", "tuned-eager")
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
