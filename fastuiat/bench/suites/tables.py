"""The paper's tables of training time: their rows, and the values that it prints for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastuiat import paper
from fastuiat.bench import table as printed
from fastuiat.bench.timing import NO_TIME
from fastuiat.config import UserError


@dataclass(frozen=True)
class Row:
    """One line of a table: a method, by our own step or as it is usually written."""

    name: str
    """What `--methods` calls it."""
    method: str
    provider: str = "fastuiat"
    """`fastuiat` or `naive` (bench/baselines.py)."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of the paper, as it is measured here."""

    name: str
    title: str
    rows: tuple[Row, ...]
    archs: tuple[str, ...]
    batch_size: int
    epochs: int
    """Length of a run: the weights of the phases of a one-off follow from it."""
    seconds: float
    """Seconds of the unit in which the table gives an epoch."""
    unit: str
    paper_table: str
    paper_columns: Mapping[str, int]
    """Its column for each net."""
    references: Mapping[str, Callable[[str], str]]
    """Ratios by their name: for the name of a row, the row that its time is divided by."""

    def chosen(self, names: Sequence[str]) -> tuple[Row, ...]:
        """The rows of these names in the table's order, all where there are none; UserError."""
        known = [row.name for row in self.rows]
        for name in names:
            if name not in known:
                raise UserError(f"{self.name} has no row '{name}': choose from {', '.join(known)}")
        return tuple(row for row in self.rows if not names or row.name in names)

    def paper_arch(self, arch: str) -> str:
        """The net whose ratios stand beside this one's: itself, or the paper's first."""
        return arch if arch in self.paper_columns else next(iter(self.paper_columns))

    def paper_epoch_s(self, row: Row, arch: str) -> float:
        """Seconds of an epoch that the paper prints for a net of its own."""
        values = paper.tables()[self.paper_table].rows[row.method]
        return values[self.paper_columns[arch]] * self.seconds

    def reference(self, ratio: str, row: Row) -> Row:
        name = self.references[ratio](row.name)
        return next(r for r in self.rows if r.name == name)

    def references_of(self, row: Row, rows: Sequence[Row]) -> list[Row]:
        """Those of the rows that this one's ratios refer to."""
        names = {refer(row.name) for refer in self.references.values()}
        return [other for other in rows if other.name in names]

    def in_building_order(self, rows: Sequence[Row]) -> list[Row]:
        """First those that others refer to: time may end before all are built."""
        referred = {refer(row.name) for row in rows for refer in self.references.values()}
        return sorted(rows, key=lambda row: row.name not in referred)


TABLE2 = Table(
    name="table2",
    title="Table 2, min/epoch",
    rows=(
        Row("natural", "natural"),
        Row("trades-published", "trades", "naive"),
        Row("trades", "trades"),
        Row("hat", "hat"),
        Row("iat", "iat"),
        Row("uiat", "uiat"),
        Row("uiat-oneoff", "uiat-oneoff"),
    ),
    archs=("resnet-18", "wrn-28-10", "wrn-34-10"),
    batch_size=128,
    epochs=100,
    seconds=60.0,
    unit="min/epoch",
    paper_table="table2",
    paper_columns={"resnet-18": 0, "wrn-28-10": 1, "wrn-34-10": 2},
    references={"natural": lambda name: "natural", "uiat": lambda name: "uiat"},
)

TABLE5 = Table(
    name="table5",
    title="Table 5, s/epoch",
    rows=tuple(
        Row(name + added, name + added)
        for name in ("n-fgsm", "rs-fgsm", "gradalign")
        for added in ("", "+uiat")
    ),
    archs=("prn-18",),
    batch_size=128,
    epochs=30,
    seconds=1.0,
    unit="s/epoch",
    paper_table="table5_time",
    paper_columns={"prn-18": 0},
    references={
        "rs-fgsm": lambda name: "rs-fgsm",
        "plain": lambda name: name.removesuffix("+uiat"),
    },
)


def show(table: Table, records: Sequence[Mapping[str, Any]]) -> None:
    """One net in two tables: ours and the paper's side by side, and what the time was spent on."""
    first = records[0]
    net, batch = first["config"]["arch"], first["config"]["batch_size"]
    title = f"{table.title}: {net}, batch {batch}, on {first['device']}"
    headings = ["method", table.unit, "20–80%", "n", "paper's A100"]
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


def times(table: Table, r: Mapping[str, Any]) -> list[str]:
    def epoch(seconds: float | None) -> str:
        return printed.number(seconds and seconds / table.seconds, ".3g")

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
    def share(value: float | None) -> str:
        return printed.NONE if value is None else f"{100 * value:.3g}%"

    return [
        label(r),
        printed.number(r["passes"], ".2f"),
        printed.number(r["tflops_per_s"], ".3g"),
        share(r["peak_share"]),
        share(r["data_wait_share"]),
        printed.size(r["peak_bytes"]),
        printed.seconds(r["compile_s"]) if r["config"]["compile"] else printed.NONE,
    ]
