"""`fastuiat bench`."""

from __future__ import annotations

from fastuiat.bench import cli
from fastuiat.commands.parsing import parse


def bench(argv: list[str]) -> None:
    cli.main(argv, parse)
