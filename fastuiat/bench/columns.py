"""Columns of a suite's table: what a record says, as text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastuiat.bench import table

Record = dict[str, Any]
Column = Callable[[Record], str]


def named(name: str, r: Record) -> str:
    """With what sets the record apart from its like."""
    return f"{name} ({r['differs']})" if r.get("differs") else name


def case(r: Record) -> str:
    return named(r["case"], r)


def provider(r: Record) -> str:
    return r["provider"]


def arithmetic(r: Record) -> str:
    return r["config"].get("precision", table.NONE)


def median(r: Record) -> str:
    return "failed" if r["error"] else table.seconds(r["median_s"])


def quantiles(r: Record) -> str:
    return (
        table.span(table.seconds(r["p20_s"]), table.seconds(r["p80_s"])) if r["n"] else table.NONE
    )


def count(r: Record) -> str:
    return str(r["n"])


def number(name: str, form: str, scale: float = 1.0) -> Column:
    """A number of the record, in a form."""

    def text(r: Record) -> str:
        value = r.get(name)
        return table.number(value and value / scale, form)

    return text


def seconds(name: str) -> Column:
    return lambda r: table.seconds(r.get(name))


def percent(name: str) -> Column:
    return lambda r: table.percent(r.get(name))
