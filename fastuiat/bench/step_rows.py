"""The rows of `fastuiat bench step`: one step of a case, built each way and measured in turn."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch

from fastuiat.bench import profile
from fastuiat.bench.call_memory import graph_memory, peak_memory
from fastuiat.bench.events import named_kernels
from fastuiat.bench.passes import Op, inventory, total_flops
from fastuiat.bench.record import make_record
from fastuiat.bench.replay import replay
from fastuiat.bench.setting import Setting, costs
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
    make_net,
    naive_inventory,
    naive_training_step,
    pass_flops,
    training_step,
)
from fastuiat.config import UserError
from fastuiat.fast.fused import instead, takes_net

Way = Literal["naive", "tuned-eager", "fastuiat", "convolutions", "fused", "cudnn"]
PROVIDERS: tuple[Way, ...] = get_args(Way)[:4]
"""Those that are measured unless others are asked for."""
REFERENCE = "fastuiat"


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
