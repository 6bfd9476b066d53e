"""The numbers that the paper prints, for comparison beside our own."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from importlib import resources
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class PaperTable:
    """One table: what its columns are, and the values of each row."""

    caption: str
    unit: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]


@functools.cache
def tables() -> dict[str, PaperTable]:
    """All tables by name: `table1` … `table6`, and `table5_time`."""
    file = resources.files("fastuiat").joinpath("bench/paper_tables.toml")
    content: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
    result = {}
    for name, table in content.items():
        rows = {row: tuple(map(float, values)) for row, values in table["rows"].items()}
        columns = tuple(table["columns"])
        assert all(len(values) == len(columns) for values in rows.values()), name
        result[name] = PaperTable(table["caption"], table["unit"], columns, rows)
    return result
