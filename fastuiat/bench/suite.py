"""What a bench suite is: options, measuring, and how its records are shown, wherever that is.

A file in suites/ that registers one is all it takes: `fastuiat bench NAME` and its help, `bench
compare`, the Markdown of benchmarks/render.py, the figures of `bench gpu`, what is checked when
records are read, and the tour follow from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

from fastuiat.bench import table
from fastuiat.bench.columns import Column, Record, case, count, median, provider
from fastuiat.bench.record import RecordFile
from fastuiat.bench.setting import Setting
from fastuiat.bench.timing import Plan
from fastuiat.config import positive

Records = list[Record]
Done = Callable[[str], object]
"""Is told of progress."""
Columns = Mapping[str, Column]
"""What stands in each column, of a record; `differs` in it sets it apart from its like."""
REGISTRY: dict[str, Suite] = {}
S = TypeVar("S", bound="Suite")


def register(name: str) -> Callable[[type[S]], type[S]]:
    """Make the suite below known under `name`."""

    def add(cls: type[S]) -> type[S]:
        REGISTRY[name] = cls(name)
        return cls

    return add


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How long to measure, and where the records go."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes CUDA where there is one."""
    repeats: int = 5
    """Rounds, each with one sample of every provider."""
    budget: float | None = None
    """Begin no round later than so many seconds after a case's first; one is always done."""
    json: Path | None = None
    """Append the results to this file, a JSON object per line."""

    def __post_init__(self) -> None:
        positive(repeats=self.repeats)
        if self.budget is not None:
            positive(budget=self.budget)

    def plan(self, **more: Any) -> Plan:
        return Plan(rounds=self.repeats, budget_s=self.budget, **more)


@dataclass(frozen=True)
class Rate:
    """A number of each record that is charted instead of its time."""

    what: str
    axis: str
    field: str
    scale: float = 1.0
    """Of the field, in the axis' unit."""
    form: str = ".3g"


@dataclass(frozen=True)
class Size:
    """What fits a machine, for the tour."""

    arch: str
    batch_size: int
    images: int
    """For the loaders."""


@dataclass(frozen=True, kw_only=True)
class Visit:
    """What the tour gives a suite: how to measure, until when, and what keeps the records."""

    setting: Setting
    size: Size
    until: float
    rounds: int
    keep: Callable[[Records], Records]
    """Writes them down and gives them back."""
    done: Done = print
    now: Callable[[], float] = time.perf_counter


class Suite:
    """One by its name. `measure` is its own; what shows its records has a plain default."""

    Options: ClassVar[Any] = Measuring
    """A dataclass of the command line; its docstring and those of its fields are the help."""
    rank: ClassVar[int] = 100
    """Its place among the others, in help and comparisons; lower ones first."""
    help: ClassVar[str] = ""
    """What it measures, in a line of `fastuiat bench --help`."""
    title: ClassVar[str] = ""
    """Heading on a comparison's page."""
    what: ClassVar[str] = "the time of a call"
    """What its times are, there."""
    unit: str = "a call"
    """What a time is of, behind the suite's name or an axis."""
    unit_s: float = 1.0
    """Seconds of the unit that charts count in."""
    rate: ClassVar[Rate | None] = None
    needs: ClassVar[Mapping[str, type]] = {}
    """Fields, and their types, that readers lean on beside those of any record."""
    tour_share: ClassVar[float] = 0.0
    """Part of the tour's time that it has at most: 1 all that is left, 0 where it is not on it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def columns(self) -> Columns:
        """Of its table on the terminal and in Markdown."""
        return {"case": case, "provider": provider, "median": median, "n": count}

    def measure(self, options: Any, done: Done) -> Records:
        """Records of all that the options ask for."""
        raise TypeError(f"{type(self).__name__} measures nothing")

    def run(self, options: Any) -> None:
        """`fastuiat bench NAME`: measure, keep, show."""
        with RecordFile(options.json) as file:
            with table.progress(self.name) as done:
                records = self.measure(options, done)
            file.write(records)
        self.show(records)

    def show(self, records: Sequence[Record]) -> None:
        """On the terminal."""
        columns = self.columns()
        rows = [[column(r) for column in columns.values()] for r in records]
        notes = [f"{r['case']} {r['provider']}: {r['error']}" for r in records if r["error"]]
        table.show(f"{self.name} on {records[0]['device']}", list(columns), rows, notes)

    def seconds(self, record: Record) -> float | None:
        """What is compared; None of a row that failed."""
        return None if record["error"] else record["median_s"]

    def steps(self, record: Record) -> float:
        """Calls in what is compared."""
        return 1

    def amount(self, seconds: float | None) -> str:
        """What is compared as text, in the suite's unit."""
        return table.seconds(seconds)

    def label(self, record: Record) -> str:
        """Its name inside a group."""
        return record["provider"]

    def group(self, record: Record) -> str:
        """What a chart is about: records of one group stand in one."""
        return record["case"]

    def paper_seconds(self, record: Record) -> float | None:
        """The paper's A100 at the same, where the paper has it."""
        return None

    def paper_ratio(self, record: Record, name: str) -> float | None:
        """The paper's, beside the record's ratio of this name."""
        return None

    def remarks(self, records: Sequence[Record]) -> list[str]:
        """Sentences below the Markdown."""
        return []

    def figures(self, records: Sequence[Record]) -> str:
        """The numbers that matter most, in a line of `bench gpu`."""
        known = [r for r in records if r["n"]]
        return ", ".join(f"{self.label(r)} {self.amount(self.seconds(r))}" for r in known)

    def visit(self, visit: Visit) -> Records:
        """Measure and show what fits the tour."""
        raise TypeError(f"{type(self).__name__} is not on the tour")

    def tour_line(self, size: Size, records: Sequence[Record]) -> str:
        """What the visit came to."""
        return f"{self.name}: {self.figures(records)}"
