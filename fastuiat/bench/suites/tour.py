"""`fastuiat bench`: every suite once, as far as this machine and the time allow, and a summary."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fastuiat.bench import table
from fastuiat.bench.feed import Source, steps_per_epoch
from fastuiat.bench.record import RecordFile
from fastuiat.bench.suites import epochs, kernels, loader, step, tables
from fastuiat.bench.timing import Plan, clock_for
from fastuiat.bench.workload import Case

Records = list[dict[str, Any]]
SHARES = {"step": 0.2, "kernels": 0.12, "loader": 0.1}
"""Parts of the budget at most; the table has all that is left."""
ROUNDS = 5


@dataclass(frozen=True)
class Size:
    """What fits a machine."""

    arch: str
    batch_size: int
    images: int
    """For the loaders."""


LARGE = Size("resnet-18", 128, 50_000)
SMALL = Size("wrn-10-1", 32, 10_000)
"""On two cores its UIAT step takes about a second, a resnet-18's at batch 128 about a minute."""


def size_for(device: torch.device) -> Size:
    return LARGE if device.type == "cuda" else SMALL


@dataclass
class Tour:
    """One tour: its parts print and record what they measure, and keep it for the summary."""

    setting: step.Setting
    size: Size
    budget: float
    recorder: RecordFile
    now: Callable[[], float] = time.perf_counter
    records: dict[str, Records] = field(default_factory=dict)

    def run(self) -> Records:
        """All parts, then the summary; returns every record."""
        self.began = self.now()
        for name, part in (
            ("step", self.step),
            ("kernels", self.kernels),
            ("loader", self.loader),
            ("table2", self.table2),
        ):
            with table.progress(name) as done:
                self.records[name] = part(done)
            print()
        for line in self.summary():
            print(line)
        return [r for records in self.records.values() for r in records]

    def until(self, part: str) -> float:
        """When a part that begins now has to be over."""
        return self.now() + SHARES[part] * self.budget

    def keep(self, records: Records) -> Records:
        self.recorder.write(records)
        return records

    def step(self, done: Any) -> Records:
        case = Case(arch=self.size.arch, batch_size=self.size.batch_size)
        plan = Plan(rounds=ROUNDS, until=self.until("step"))
        records = self.keep(step.measure(case, self.setting, plan=plan, done=done))
        step.show(records)
        return records

    def kernels(self, done: Any) -> Records:
        """One operation after another while there is time."""
        device, until = self.setting.device, self.until("kernels")
        if device.type == "cpu" and not self.setting.compiled:
            print("kernels: nothing to compare with eager on a CPU that does not compile")
            return []
        chosen = kernels.cases((), ("cifar10",), False)
        bandwidth = kernels.copy_bandwidth(device, clock_for(device))
        records: Records = []
        for i, case in enumerate(chosen):
            if records and self.now() >= until:
                print(f"kernels: no time left for {len(chosen) - i} of {len(chosen)} operations")
                break
            done(case.name)
            plan = Plan(rounds=ROUNDS, until=until, min_sample_s=kernels.MIN_SAMPLE_S)
            records += self.keep(kernels.measure(case, device, plan=plan, bandwidth=bandwidth))
        kernels.show(records)
        return records

    def loader(self, done: Any) -> Records:
        images = loader.Images(
            n=self.size.images,
            batch_size=self.size.batch_size,
            workers=1,
            device=self.setting.device,
        )
        plan = Plan(warmup=0, rounds=ROUNDS, until=self.until("loader"))
        records = self.keep(loader.measure(images, plan=plan, done=done))
        loader.show(records)
        return records

    def table2(self, done: Any) -> Records:
        plan = epochs.plan_for(
            self.setting.device,
            steps=None,
            steps_per_epoch=steps_per_epoch(self.size.batch_size),
            now=self.now(),
            deadline=self.began + self.budget,
            nets=1,
        )
        records = epochs.measure(
            tables.TABLE2,
            tables.TABLE2.rows,
            Case(arch=self.size.arch, batch_size=self.size.batch_size),
            self.setting,
            source=Source(),
            plan=plan,
            done=done,
        )
        self.keep(records)
        tables.show(tables.TABLE2, records)
        return records

    def summary(self) -> list[str]:
        """What a person wants to know of all of it."""
        every = [r for records in self.records.values() for r in records]
        failed = sum(r["error"] is not None for r in every)
        taken = self.now() - self.began
        return [
            f"Summary, {taken:.0f} s, {len(every)} rows"
            + (f", {failed} of them failed or had no time" if failed else ""),
            f"  machine: {machine_line(every[0])}, {self.setting.precision}, "
            + ("compiled" if self.setting.compiled else "not compiled"),
            f"  a UIAT step of {self.size.arch}, batch {self.size.batch_size}: "
            + step_line(self.records["step"]),
            f"  kernels: {kernels_line(self.records['kernels'])}",
            f"  loaders: {loaders_line(self.records['loader'])}",
            f"  an epoch of {self.size.arch}: {epochs_line(self.records['table2'])}",
        ]


NOTHING = "not measured"


def machine_line(record: dict[str, Any]) -> str:
    gpu, cpu = record["gpu"], record["cpu"]
    threads = "1 thread" if cpu["threads"] == 1 else f"{cpu['threads']} threads"
    power = gpu and gpu["power_limit_w"]
    own = f"driver {gpu['driver']}" + (f", {power:.0f} W" if power else "") if gpu else threads
    return f"{record['device']}, {own}, torch {record['versions']['torch']}"


def step_line(records: Sequence[dict[str, Any]]) -> str:
    ours = next((r for r in records if r["provider"] == step.REFERENCE and r["n"]), None)
    if ours is None:
        return NOTHING
    ratios = [line.removeprefix(f"{step.REFERENCE}: ") for line in step.summary(records)]
    return ", ".join([table.seconds(ours["median_s"]), *ratios])


def kernels_line(records: Sequence[dict[str, Any]]) -> str:
    """By provider, how many times as fast as eager: the middle one of all operations."""
    said = []
    for name in ("inductor", "triton"):
        gains = [1 / r["ratio_median"] for r in records if r["provider"] == name and r["n"]]
        if gains:
            middle = statistics.median(gains)
            said.append(f"{name} {middle:.2g} times as fast as eager, median of {len(gains)}")
    return "; ".join(said) or NOTHING


def loaders_line(records: Sequence[dict[str, Any]]) -> str:
    said = [f"{r['provider']} {r['images_per_s']:,.0f}" for r in records if r["images_per_s"]]
    return f"{', '.join(said)} images/s" if said else NOTHING


def epochs_line(records: Sequence[dict[str, Any]]) -> str:
    """natural, UIAT and one-off in minutes, and what UIAT costs beside natural training."""
    rows = {r["row"]: r for r in records if "phase_share" not in r and r["n"]}
    said = []
    for name in ("natural", "uiat", "uiat-oneoff"):
        if name in rows:
            r = rows[name]
            by_paper = r["paper"]["epoch_s"]
            beside = f" (the paper's A100: {by_paper / 60:.3g})" if by_paper else ""
            mark = "~" if r["extrapolated"] else ""
            said.append(f"{name} {mark}{r['epoch_s'] / 60:.3g}{beside}")
    if not said:
        return NOTHING
    line = f"{', '.join(said)} min"
    ratio = rows["uiat"]["ratios"]["natural"] if "uiat" in rows else None
    if ratio and ratio["median"]:
        net = rows["uiat"]["paper"]["arch"]
        line += f"; uiat is {ratio['median']:.2f} times natural (the paper's {net}: "
        line += f"{ratio['paper']:.2f})"
    return line
