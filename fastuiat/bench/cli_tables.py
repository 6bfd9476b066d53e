"""`fastuiat bench table2`, `table5` and the tour: options, and what is done with them."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from fastuiat.bench.record import RecordFile
from fastuiat.config import positive

TABLE_BUDGET = 500.0
"""Seconds until the last round: with what comes before and after it, under ten minutes."""


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Time of an epoch by method and net, beside the paper's."""

    archs: tuple[str, ...] = ()
    """Networks: resnet-18, prn-18 or wrn-D-W; none named: those of the paper's table."""
    methods: tuple[str, ...] = ()
    """Rows; none named: all."""
    batch_size: int = 128
    """Images per step."""
    data: str = "synthetic"
    """synthetic, or a data set whose loader is then part of the time: cifar10, cifar100, …"""
    data_dir: Path = Path("data")
    """Folder with the data sets' published files; downloads land there."""
    loader: Literal["auto", "ffcv", "resident"] = "auto"
    """Loader of a data set: auto takes FFCV where it is installed; synthetic ones are resident."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes CUDA where there is one."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic of all but naive; auto: bf16 where the device has it in hardware, else fp32."""
    compile: bool = True
    """Compile as training does."""
    steps: int | None = None
    """Exactly so many timed steps of each row; by default until the spread is under 3%."""
    budget: float | None = None
    """Seconds for all of it, compilation included; by default 500, without end where --steps is
    given. Every net gets an equal part of what is left when it begins."""
    json: Path | None = None
    """Append the results to this file, a JSON object per line."""

    def __post_init__(self) -> None:
        positive(batch_size=self.batch_size)
        if self.steps is not None:
            positive(steps=self.steps)
        if self.budget is not None:
            positive(budget=self.budget)


class Table2Options(TableOptions):
    """Minutes of an epoch by method and net, beside the paper's Table 2."""


class Table5Options(TableOptions):
    """Seconds of an epoch of single-step methods, with and without UIAT, beside Table 5."""


def table2(options: TableOptions) -> None:
    from fastuiat.bench.suites.tables import TABLE2

    run_table(TABLE2, options)


def table5(options: TableOptions) -> None:
    from fastuiat.bench.suites.tables import TABLE5

    run_table(TABLE5, options)


def run_table(table: Any, options: TableOptions) -> list[dict[str, Any]]:
    """Measure, print and record every net of the table; returns the records."""
    from fastuiat.bench import table as printed
    from fastuiat.bench.feed import Source, steps_per_epoch
    from fastuiat.bench.suites import epochs, tables
    from fastuiat.bench.suites.step import make_setting
    from fastuiat.bench.workload import Case
    from fastuiat.models import build_model

    began = time.perf_counter()
    setting, note = make_setting(options.device, options.precision, options.compile)
    rows, archs = table.chosen(options.methods), options.archs or table.archs
    with torch.device("meta"):
        for arch in archs:
            build_model(arch)  # an unknown net is said before anything is measured
    source = Source(options.data, options.data_dir, options.loader)
    case = Case(batch_size=options.batch_size, num_classes=source.num_classes, epochs=table.epochs)
    budget = options.budget or (None if options.steps else TABLE_BUDGET)
    recorder, every = RecordFile(options.json), []
    if note:
        print(note)
    for i, arch in enumerate(archs):
        plan = epochs.plan_for(
            setting.device,
            steps=options.steps,
            steps_per_epoch=steps_per_epoch(options.batch_size),
            now=time.perf_counter(),
            deadline=None if budget is None else began + budget,
            nets=len(archs) - i,
        )
        one = dataclasses.replace(case, arch=arch)
        with printed.progress(f"{table.name} {arch}") as done:
            records = epochs.measure(table, rows, one, setting, source=source, plan=plan, done=done)
        recorder.write(records)
        tables.show(table, records)
        every += records
    recorder.close()
    return every


TOUR_BUDGET = 480.0
"""Seconds: what begins before it may end after it, and ten minutes are the limit."""


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
    from fastuiat.bench.suites.step import make_setting
    from fastuiat.bench.suites.tour import Tour, size_for

    setting, note = make_setting(options.device, "auto", options.compile)
    recorder = RecordFile(options.json)
    if note:
        print(note)
    Tour(setting, size_for(setting.device), options.budget, recorder).run()
    recorder.close()
