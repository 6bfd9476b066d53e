"""The paper's tables of training time: their rows, and the values that it prints for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastuiat.bench import table as printed
from fastuiat.bench.timing import NO_TIME
from fastuiat.config import UserError
from fastuiat.paper import PaperTable, tables


@dataclass(frozen=True)
class TableRow:
    """One line of a table: a method, by our own step or as it is usually written."""

    name: str
    """What `--methods` calls it."""
    method: str
    provider: str = "fastuiat"
    """`fastuiat` or `naive` (bench/baselines.py)."""


@dataclass(frozen=True, kw_only=True)
class EpochTable:
    """A table of the paper, as it is measured here."""

    name: str
    title: str
    rows: tuple[TableRow, ...]
    archs: tuple[str, ...]
    batch_size: int
    epochs: int
    """Length of a run: the weights of the phases of a one-off follow from it."""
    paper_table: str
    """Its name among the paper's."""
    references: Mapping[str, Callable[[str], str]]
    """Ratios by their name: for the name of a row, the row that its time is divided by."""

    def chosen(self, names: Sequence[str]) -> tuple[TableRow, ...]:
        """The rows of these names in the table's order, all where there are none; UserError."""
        known = [row.name for row in self.rows]
        for name in names:
            if name not in known:
                raise UserError(f"{self.name} has no row '{name}': choose from {', '.join(known)}")
        return tuple(row for row in self.rows if not names or row.name in names)

    @property
    def paper(self) -> PaperTable:
        return tables()[self.paper_table]

    def paper_epoch_s(self, method: str, arch: str, batch_size: int) -> float | None:
        """What the paper prints for an epoch, where it has the net at this batch."""
        return self.paper.epoch_s(method, arch) if batch_size == self.batch_size else None

    def paper_ratio(self, ratio: str, row: TableRow, arch: str) -> float | None:
        """The paper's time of the row over that of its reference."""
        return self.paper.ratio(row.method, self.reference(ratio, row).method, arch)

    def reference(self, ratio: str, row: TableRow) -> TableRow:
        name = self.references[ratio](row.name)
        return next(r for r in self.rows if r.name == name)

    def references_of(self, row: TableRow, rows: Sequence[TableRow]) -> list[TableRow]:
        """Those of the rows that this one's ratios refer to."""
        names = {refer(row.name) for refer in self.references.values()}
        return [other for other in rows if other.name in names]

    def in_building_order(self, rows: Sequence[TableRow]) -> list[TableRow]:
        """First those that others refer to: time may end before all are built."""
        referred = {refer(row.name) for row in rows for refer in self.references.values()}
        return sorted(rows, key=lambda row: row.name not in referred)


def show_table(table: EpochTable, records: Sequence[Mapping[str, Any]]) -> None:
    """One net in two tables: ours and the paper's side by side, and what the time was spent on."""
    first = records[0]
    net, batch = first["config"]["arch"], first["config"]["batch_size"]
    title = f"{table.title}: {net}, batch {batch}, on {first['device']}"
    headings = ["method", table.paper.unit, "20–80%", "n", "paper's A100"]
    for name in table.references:
        headings += [f"÷ {name}", "paper's"]
    printed.show(title, headings, [times(table, r) for r in records], time_notes(records))
    headings = ["what it takes", "passes", "TFLOP/s", "of peak", "data wait", "memory", "compile"]
    notes = ["memory: a step's, its recorded graphs included; compile: the first call's surplus"]
    notes += [f"{r['row']}: {r['note']}" for r in records if r["provider"] == "naive"]
    if ours := next((r for r in records if r["provider"] != "naive"), None):
        batches = f"{ours['config']['data']}, {ours['config']['loader']} loader"
        notes.append(f"all others: {ours['note']}; batches: {batches}")
    printed.show("", headings, [costs(r) for r in records], notes)


def time_notes(records: Sequence[Mapping[str, Any]]) -> list[str]:
    first = records[0]
    net, paper_net = first["config"]["arch"], first["paper"]["arch"]
    failed: dict[str, list[str]] = {}
    for r in records:
        if r["error"] and "phase_share" not in r:  # a row's error names the phase
            failed.setdefault(r["error"], []).append(r["row"])
    notes = [f"{', '.join(rows)}: {error}" for error, rows in failed.items()]
    if any(r["extrapolated"] for r in records):
        images = f"{first['epoch_images']:,}"
        notes.append(f"~ extrapolated: an epoch of {images} images at the median of n samples")
    turns = [r for r in records if r["config"].get("phases") and not r["error"]]
    if any(r["n"] < max(other["n"] for other in records) for r in turns):
        notes.append("phases took turns: n of their row counts samples of all of them")
    if paper_net != net:
        notes.append(f"the paper has no {net}: its ratios here are those of {paper_net}")
    return notes


def label(record: Mapping[str, Any]) -> str:
    """The row's name; phases are set in below it."""
    if "phase_share" in record:
        return f"  {record['config']['phase']} T', {100 * record['phase_share']:.0f}%"
    return record["row"]


def times(table: EpochTable, r: Mapping[str, Any]) -> list[str]:
    def epoch(seconds: float | None) -> str:
        return printed.number(seconds and seconds / table.paper.unit_s, ".3g")

    def paper_value(text: str) -> str:
        return printed.NONE if "phase_share" in r else text  # the paper tells no phases apart

    low, high = (epoch(r[p] and r[p] * r["steps_per_epoch"]) for p in ("p20_s", "p80_s"))
    own = ("~" if r["extrapolated"] else "") + epoch(r["epoch_s"])
    if r["error"]:
        own = "no time" if r["error"] == NO_TIME else "failed"
    row = [
        label(r),
        own,
        printed.NONE if r["error"] else f"{low} – {high}",
        str(r["n"]),
        paper_value(epoch(r["paper"]["epoch_s"])),
    ]
    for ratio in r["ratios"].values():
        row.append(printed.number(ratio["median"], ".2f"))
        row.append(paper_value(printed.number(ratio["paper"], ".2f")))
    return row


def costs(r: Mapping[str, Any]) -> list[str]:
    return [
        label(r),
        printed.number(r["passes"], ".2f"),
        printed.number(r["tflops_per_s"], ".3g"),
        printed.percent(r["peak_share"]),
        printed.percent(r["data_wait_share"]),
        printed.size(r["peak_bytes"]),
        printed.seconds(r["compile_s"]) if r["config"]["compile"] else printed.NONE,
    ]
