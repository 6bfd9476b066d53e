"""`fastuiat bench NAME`: a suite, the tour of them, or what is made of their records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastuiat.bench import suites
from fastuiat.bench.compare import CompareOptions, compare_files
from fastuiat.bench.gpu.runner import GpuOptions, gpu
from fastuiat.bench.tour import TourOptions, tour
from fastuiat.config import UserError

Parse = Callable[..., Any]

USAGE = """usage: fastuiat bench [SUITE] [--help]

  no suite   a tour of them that fits this machine, in under ten minutes, and a summary:
             --json FILE, --device auto|cpu|cuda, --budget SECONDS, --no-compile

{suites}

  compare    record files side by side: A.jsonl B.jsonl … [--baseline paper|FILE]
  gpu        all that a GPU has to show, tests too, in minutes; goes on where it was cut off
"""
OTHERS: dict[str, tuple[type, Callable[[Any], None]]] = {
    "compare": (CompareOptions, compare_files),
    "gpu": (GpuOptions, gpu),
}
"""What runs suites or reads their records, and is none."""


def usage() -> str:
    lines = [f"  {name:<11} {suites.get(name).help}" for name in suites.names()]
    return USAGE.format(suites="\n".join(lines))


def main(argv: list[str], parse: Parse) -> None:
    """Run one suite, or the tour; `parse(cls, argv, prog=…)` makes the options."""
    if argv and argv[0] in ("-h", "--help"):
        print(usage(), end="")
        return
    if not argv or argv[0].startswith("-"):
        tour(parse(TourOptions, argv, prog="fastuiat bench"))
        return
    name, known = argv[0], [*suites.names(), *OTHERS]
    if name not in known:
        raise UserError(f"unknown suite '{name}': choose from {', '.join(known)}")
    if name in OTHERS:
        options, run = OTHERS[name]
    else:
        options, run = suites.get(name).Options, suites.get(name).run
    run(parse(options, argv[1:], prog=f"fastuiat bench {name}"))
