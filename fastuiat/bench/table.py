"""How results are shown: a rich table on a terminal that is wide enough, else aligned text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

NONE = "–"


def seconds(value: float | None) -> str:
    """Three digits and a unit that keeps them readable."""
    if value is None:
        return NONE
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if value * scale >= 0.9995 or unit == "µs":
            return (
                f"{value * scale:.3g} {unit}" if value * scale < 999.5 else f"{value:,.0f} {unit}"
            )
    raise AssertionError("unreachable")


def number(value: float | None, form: str = ",.0f") -> str:
    return NONE if value is None else format(value, form)


def percent(share: float | None) -> str:
    return NONE if share is None else f"{100 * share:.3g}%"


def span(low: str, high: str) -> str:
    return low if low == high else f"{low} – {high}"


def size(value: float | None) -> str:
    """Bytes in MB or GB (powers of 1000)."""
    if value is None:
        return NONE
    return f"{value / 1e9:.2f} GB" if value >= 1e9 else f"{value / 1e6:.3g} MB"


def show(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()
) -> None:
    """The first column to the left, the others to the right; notes below."""
    console = Console(highlight=False)
    lines = aligned([headings, *rows])
    frame = 2 + len(headings)  # a bar around each column, where the text has two blanks
    if console.is_terminal and max(map(len, lines)) + frame + 1 <= console.width:
        table = Table(title=title or None, title_justify="left")
        for i, heading in enumerate(headings):
            table.add_column(heading, justify="right" if i else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    else:
        if title:
            print(title)
        for line in lines:
            print("  " + line)
    for note in notes:
        console.print(f"  {note}", soft_wrap=True, markup=False)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


@contextmanager
def progress(title: str) -> Iterator[Any]:
    """`done(event)` shows what is being measured on a terminal, and is silent in a pipe."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda event: None
        return
    with console.status(title) as status:
        yield lambda event: status.update(f"{title}: {event}")
