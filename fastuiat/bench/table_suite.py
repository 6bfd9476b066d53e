"""A suite of a table of training times: options, measuring net by net, and the paper beside it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch

from fastuiat.bench import columns, epochs, table
from fastuiat.bench.columns import Column
from fastuiat.bench.epoch_table import EpochTable, TableRow, show_table
from fastuiat.bench.feed import Source, steps_per_epoch
from fastuiat.bench.record import RecordFile
from fastuiat.bench.setting import make_setting
from fastuiat.bench.suite import Columns, Record, Records, Suite, Visit
from fastuiat.bench.workload import Case
from fastuiat.config import positive
from fastuiat.models import build_model

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
    unchecked_data: bool = False
    """Use them also where they are not the published ones."""
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


class TableSuite(Suite):
    """Time of an epoch by method and net; a time is that of an epoch throughout."""

    table: ClassVar[EpochTable]
    ratio_names: ClassVar[Mapping[str, str]]
    """How a heading calls what the ratios of the table refer to."""
    needs: ClassVar = {"row": str, "steps_per_epoch": int}

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.unit, self.unit_s = self.table.paper.unit, self.table.paper.unit_s

    def columns(self) -> Columns:
        found: dict[str, Column] = {
            "net": self.group,
            "method": lambda r: columns.named(self.label(r), r),
            self.unit: self.epoch,
            "20–80%": self.epoch_quantiles,
            "n": columns.count,
        }
        for name, heading in self.ratio_names.items():
            found[f"÷ {heading}"] = inner_ratio(name)
            found[f"paper: ÷ {heading}"] = self.by_paper(name)
        return found | {"passes": columns.number("passes", ".1f")}

    def epoch(self, r: Record) -> str:
        if r["error"]:
            return "failed"
        return ("~" if r["extrapolated"] else "") + self.amount(r["epoch_s"])

    def epoch_quantiles(self, r: Record) -> str:
        if not r["n"]:
            return table.NONE
        low, high = (self.amount(r[p] * r["steps_per_epoch"]) for p in ("p20_s", "p80_s"))
        return table.span(low, high)

    def by_paper(self, name: str) -> Column:
        """The paper's own ratio, from its printed table."""
        return lambda r: table.number(self.paper_ratio(r, name), ".2f")

    def run(self, options: TableOptions) -> None:
        began = time.perf_counter()
        setting, note = make_setting(options.device, options.precision, options.compile)
        rows, archs = self.table.chosen(options.methods), options.archs or self.table.archs
        with torch.device("meta"):
            for arch in archs:
                build_model(arch)  # an unknown net is said before anything is measured
        source = Source(options.data, options.data_dir, options.loader, options.unchecked_data)
        case = Case(
            batch_size=options.batch_size,
            num_classes=source.num_classes,
            epochs=self.table.epochs,
        )
        budget = options.budget or (None if options.steps else TABLE_BUDGET)
        with RecordFile(options.json) as file:
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
                with table.progress(f"{self.name} {arch}") as done:
                    records = epochs.measure(
                        self.table, rows, one, setting, source=source, plan=plan, done=done
                    )
                file.write(records)
                self.show(records)

    def show(self, records: Sequence[Record]) -> None:
        show_table(self.table, records)

    def visit(self, visit: Visit) -> Records:
        plan = epochs.plan_for(
            visit.setting.device,
            steps=None,
            steps_per_epoch=steps_per_epoch(visit.size.batch_size),
            now=visit.now(),
            deadline=visit.until,
            nets=1,
        )
        records = epochs.measure(
            self.table,
            self.table.rows,
            Case(
                arch=visit.size.arch,
                batch_size=visit.size.batch_size,
                epochs=self.table.epochs,
            ),
            visit.setting,
            source=Source(),
            plan=plan,
            done=visit.done,
        )
        visit.keep(records)
        self.show(records)
        return records

    def seconds(self, record: Record) -> float | None:
        return None if record["error"] else record.get("epoch_s")

    def steps(self, record: Record) -> float:
        return record["steps_per_epoch"]

    def amount(self, seconds: float | None) -> str:
        """Three digits."""
        if seconds is None:
            return table.NONE
        value = seconds / self.unit_s
        return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"

    def label(self, record: Record) -> str:
        name = record["row"]
        return f"{name}, {record['config'].get('phase')}" if is_phase(record) else name

    def group(self, record: Record) -> str:
        config = record["config"]
        return f"{config.get('arch')}, batch {config.get('batch_size')}"

    def paper_seconds(self, record: Record) -> float | None:
        config = record["config"]
        if is_phase(record):
            return None
        return self.table.paper_epoch_s(
            config.get("method", ""), config.get("arch", ""), config.get("batch_size", 0)
        )

    def paper_ratio(self, record: Record, name: str) -> float | None:
        config = record["config"]
        if is_phase(record) or name not in self.table.references:
            return None
        row = TableRow(record["row"], config.get("method", ""))
        return self.table.paper_ratio(name, row, config.get("arch", ""))

    def remarks(self, records: Sequence[Record]) -> list[str]:
        nets = dict.fromkeys(r["config"]["arch"] for r in records)
        beside = {net: self.table.paper.net_beside(net) for net in nets}
        others = [f"{net} has those of {own}" for net, own in beside.items() if own != net]
        return [f"The paper's ratios: {other}." for other in others]

    def figures(self, records: Sequence[Record]) -> str:
        """Time of an epoch by net and row."""
        nets: dict[str, list[str]] = {}
        for r in records:
            if r["n"] and not is_phase(r):
                said = f"{r['row']} {self.amount(r['epoch_s'])}"
                nets.setdefault(r["config"]["arch"], []).append(said)
        return "; ".join(f"{arch} {', '.join(rows)} {self.unit}" for arch, rows in nets.items())


def is_phase(record: Mapping[str, object]) -> bool:
    """Whether it is a part of a one-off run, beside a record that is the whole."""
    return "phase_share" in record


def inner_ratio(name: str) -> Column:
    """A ratio between two methods on this device."""
    return lambda r: table.number((r.get("ratios", {}).get(name) or {}).get("median"), ".2f")
