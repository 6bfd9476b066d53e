"""`fastuiat bench compare`: record files side by side, as tables, CSV and a page."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from fastuiat import machine
from fastuiat.bench import compare_tables as tables
from fastuiat.bench import floors, suites, table
from fastuiat.bench.comparison import Comparison, compare, counted
from fastuiat.bench.reading import read_records
from fastuiat.config import UserError
from fastuiat.files import write_atomically


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Put the records of several devices side by side."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Files that `fastuiat bench SUITE --json FILE` wrote; one may hold several devices."""
    baseline: str | None = None
    """paper: the paper's A100 stands beside table2 and table5. A record file: its device stands
    first, and all ratios refer to it; without it they refer to the first file's first device."""
    html: Path = Path("compare.html")
    """The page."""
    csv: Path | None = None
    """Also a line for each measurement, with its spread, ratios and bounds."""
    bounds: bool = True
    """The least time that each case can take on known GPUs and on this CPU, which is measured."""

    def __post_init__(self) -> None:
        if not self.files:
            raise UserError("name the record files to compare")
        read = {file.resolve() for file in [*self.files, *self.baseline_files]}
        for flag, path in (("--html", self.html), ("--csv", self.csv)):
            if path is None:
                continue
            if path.resolve() in read:
                raise UserError(f"{flag} {path} would overwrite a record file")
            if path.is_dir() or not path.parent.is_dir():
                raise UserError(f"{flag} {path} cannot be written: no such folder, or a folder")

    @property
    def baseline_files(self) -> list[Path]:
        return [] if self.baseline in (None, "paper") else [Path(str(self.baseline))]


def compare_files(options: CompareOptions) -> None:
    """Read, compare, print; then write the page and the CSV."""
    from fastuiat.bench.compare_page import make_page

    notes: list[str] = []
    base = [r for file in options.baseline_files for r in read_records(file, say=notes.append)]
    apart = {file.resolve() for file in options.baseline_files}
    files = [file for file in options.files if file.resolve() not in apart]
    records = [r for file in files for r in read_records(file, say=notes.append)]
    comparison = compare(
        records,
        baseline=base,
        baseline_name=Path(options.baseline or "").name,
        with_paper=options.baseline == "paper",
    )
    for note in notes:
        print(f"fastuiat: {note}", file=sys.stderr)
    cards = bound_cards(comparison) if options.bounds else {}
    show_comparison(comparison, cards)
    page = make_page(comparison, cards)
    if options.csv is not None:
        content = tables.csv_text(comparison, cards).encode()
        write = partial(write_atomically, options.csv, lambda file: file.write(content))
        written("--csv", options.csv, write)
    written("--html", options.html, partial(page.write, options.html))
    print(f"page: {options.html}" + (f"; CSV: {options.csv}" if options.csv else ""))


def written(flag: str, path: Path, write: Callable[[], None]) -> None:
    try:
        write()
    except OSError as error:
        raise UserError(f"{flag} {path} cannot be written: {error.strerror}") from error


def bound_cards(comparison: Comparison) -> dict[str, floors.Rates]:
    """The devices that every case gets a bound for: known GPUs, and this CPU as it is now."""
    cards = {name: floors.datasheets()[name] for name in floors.SHOWN}
    works = [row.work(row.first) for row in comparison.rows]
    needed = sorted({work.precision for work in works if work})
    if needed:
        measured = [floors.cpu_rates(precision) for precision in needed]
        cards["this CPU"] = floors.Rates(
            name=counted(machine.cpu()["name"], machine.cpu()["threads"], "thread"),
            flops_per_s={p: r.flops_per_s[p] for p, r in zip(needed, measured, strict=True)},
            bytes_per_s=measured[0].bytes_per_s,
            cache_bytes=measured[0].cache_bytes,
            source=measured[0].source,
        )
    return cards


def show_comparison(comparison: Comparison, cards: Mapping[str, floors.Rates]) -> None:
    """All suites as tables on the terminal."""
    short = comparison.letters()
    for suite in comparison.suites():
        headings, rows = tables.times(comparison, suite, short)
        table.show(
            f"{suite}: {suites.of(suite).unit}", headings, rows, tables.notes(comparison, suite)
        )
        if ratios := tables.inner(comparison, suite, short):
            said = ["each made inside one run"]
            if comparison.with_paper:
                said.append(tables.PAPER_RATIOS)
            table.show(f"{suite}: ratios between methods", *ratios, said)
        if least := tables.bounds(comparison, suite, short, cards):
            said = ["a bound is computed and not measured: no code can take less at those rates"]
            table.show(f"{suite}: bounds, {suites.of(suite).unit}", *least, said)
    lines = [f"{letter}: {device}" for device, letter in short.items() if letter != device]
    for line in [*lines, *tables.reference_note(comparison, short), *comparison.notes]:
        print(f"  {line}")
