"""`fastuiat bench`: the suites on its way, as far as machine and time allow, and a summary."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from fastuiat.bench import suites, table
from fastuiat.bench.record import RecordFile
from fastuiat.bench.setting import Setting, make_setting
from fastuiat.bench.suite import Done, Record, Records, Size, Suite, Visit
from fastuiat.config import positive

TOUR_BUDGET = 480.0
"""Seconds: what begins before it may end after it, and ten minutes are the limit."""
ROUNDS = 5
LARGE = Size("resnet-18", 128, 50_000)
SMALL = Size("wrn-10-1", 32, 10_000)
"""On two cores, where a step of a resnet-18 would take the whole budget."""


def size_for(device: torch.device) -> Size:
    return LARGE if device.type == "cuda" else SMALL


@dataclass(frozen=True, kw_only=True)
class TourOptions:
    """A tour: a step, the kernels, the loaders and a small Table 2, of a size that fits here."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes CUDA where there is one."""
    budget: float = TOUR_BUDGET
    """Seconds for all of it, compilation included: what is not begun in time is left out."""
    compile: bool = True
    """Compile as training does."""
    json: Path | None = None
    """Append the results to this file, a JSON object per line."""

    def __post_init__(self) -> None:
        positive(budget=self.budget)


def tour(options: TourOptions) -> None:
    setting, note = make_setting(options.device, "auto", options.compile)
    with RecordFile(options.json) as file:
        if note:
            print(note)
        Tour(setting, size_for(setting.device), options.budget, file).run()


@dataclass
class Tour:
    """One tour: the suites print and record what they measure; it keeps it for the summary."""

    setting: Setting
    size: Size
    budget: float
    file: RecordFile
    now: Callable[[], float] = time.perf_counter
    records: dict[str, Records] = field(default_factory=dict)

    def run(self) -> Records:
        """All suites, then the summary; returns every record."""
        self.began = self.now()
        for suite in on_tour():
            with table.progress(suite.name) as done:
                self.records[suite.name] = suite.visit(self.visit(suite, done))
            print()
        for line in self.summary():
            print(line)
        return [r for records in self.records.values() for r in records]

    def visit(self, suite: Suite, done: Done) -> Visit:
        """What a suite is given that begins now."""
        rest = suite.tour_share == 1
        return Visit(
            setting=self.setting,
            size=self.size,
            until=(self.began if rest else self.now()) + suite.tour_share * self.budget,
            rounds=ROUNDS,
            keep=self.keep,
            done=done,
            now=self.now,
        )

    def keep(self, records: Records) -> Records:
        self.file.write(records)
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
            *(f"  {s.tour_line(self.size, self.records[s.name])}" for s in on_tour()),
        ]


def on_tour() -> list[Suite]:
    """What has all that is left comes last."""
    found = [suite for name in suites.names() if (suite := suites.get(name)).tour_share]
    return sorted(found, key=lambda suite: suite.tour_share == 1)


def machine_line(record: Record) -> str:
    gpu, cpu = record["gpu"], record["cpu"]
    threads = "1 thread" if cpu["threads"] == 1 else f"{cpu['threads']} threads"
    power = gpu and gpu["power_limit_w"]
    own = f"driver {gpu['driver']}" + (f", {power:.0f} W" if power else "") if gpu else threads
    return f"{record['device']}, {own}, torch {record['versions']['torch']}"
