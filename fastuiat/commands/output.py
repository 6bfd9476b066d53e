"""What a command says and where: for people, for `--quiet`, for scripts with `--json`."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any, TextIO

import tyro
from rich.console import Console
from rich.table import Table

from fastuiat.config import printable
from fastuiat.torchrun import is_first_rank

Switch = Annotated[bool, tyro.conf.FlagCreatePairsOff]
WIDE = 1000
"""Columns of a pipe: no line is broken there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Options of every command that has something to say."""

    quiet: Switch = False
    """Print the result alone."""
    json: Switch = False
    """Print one JSON document on stdout and nothing else there; progress goes to stderr."""


def split_output(argv: list[str]) -> tuple[OutputOptions, list[str]]:
    """The output options of a command whose other words are parsed into settings of their own."""
    chosen = {name: f"--{name}" in argv for name in ("quiet", "json")}
    return OutputOptions(**chosen), [w for w in argv if w not in ("--quiet", "--json")]


def console(stream: TextIO, *, quiet: bool = False) -> Console:
    """Coloured and as wide as the window on a terminal; elsewhere plain, and no line broken."""
    terminal = stream.isatty()
    return Console(
        file=stream,
        quiet=quiet,
        width=None if terminal else WIDE,
        force_terminal=terminal,
        no_color=not terminal,
    )


class Output:
    """The three ways of speaking: progress and notes, tables, and the result.

    Notes and progress are left out with --quiet, and go to stderr with --json. The result is lines
    for people, or the one JSON document. Of the ranks of a torchrun the first speaks for all.
    """

    def __init__(self, options: OutputOptions) -> None:
        self.json, self.is_mute = options.json, not is_first_rank()
        stream = sys.stderr if options.json else sys.stdout
        self.console = console(stream, quiet=options.quiet or self.is_mute)

    def say(self, text: str) -> None:
        """A note or a line of progress."""
        self.console.print(printable(text), highlight=False, markup=False, soft_wrap=True)

    def result(self, document: Any, *lines: str | Table) -> None:
        """The outcome: `document` with --json, else the lines and tables."""
        if self.is_mute:
            return
        if self.json:
            print(json.dumps(document, indent=2, default=str), flush=True)
            return
        for line in lines:
            if isinstance(line, str):
                print(printable(line))
            else:
                print_table(line)


def print_table(table: Table) -> None:
    """Its title as a line, then rows: framed on a terminal, bare columns elsewhere."""
    if table.title:
        print(table.title)
        table.title = None
    if sys.stdout.isatty():
        console(sys.stdout).print(table)
        return
    table.box, table.pad_edge = None, False
    plain = console(sys.stdout)
    with plain.capture() as text:
        plain.print(table)
    print("\n".join(line.rstrip() for line in text.get().splitlines()))


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns, two spaces between them."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
