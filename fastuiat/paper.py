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

UNIT_S = {"min/epoch": 60.0, "s/epoch": 1.0}
"""Seconds of the units of the tables of times."""


@dataclass(frozen=True)
class PaperTable:
    """One table: what its columns are, and the values of each row."""

    caption: str
    unit: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]

    def by_column(self, row: str) -> dict[str, float]:
        """A row's values; none of a row that the table does not have."""
        values = self.rows.get(row)
        return {} if values is None else dict(zip(self.columns, values, strict=True))

    @property
    def unit_s(self) -> float:
        """Seconds of the unit, of a table of times."""
        return UNIT_S[self.unit]

    def epoch_s(self, method: str, arch: str) -> float | None:
        """Seconds of an epoch that a table of times prints for a method and net, if it does."""
        value = self.by_column(method).get(arch)
        return None if value is None else value * self.unit_s

    def net_beside(self, arch: str) -> str:
        """The net whose ratios stand beside this one's: itself, or the first of the table's."""
        return arch if arch in self.columns else self.columns[0]

    def ratio(self, method: str, other: str, arch: str) -> float | None:
        """A method's time over another's, on the net beside this one."""
        net = self.net_beside(arch)
        own, base = self.epoch_s(method, net), self.epoch_s(other, net)
        return own / base if own and base else None


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
