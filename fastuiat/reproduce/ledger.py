"""Finished runs on file, a JSON object a line: a table's content when its folders are gone."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from fastuiat.config import UserError
from fastuiat.reproduce.rows import Row

SETTINGS = (
    "recipe", "dataset", "method", "arch", "epochs", "batch_size", "train_size", "val_size",
    "optimizer", "settings",
)  # fmt: skip
"""Of a run, by which a line is known to be of a row as it stands now."""


def settings_of(row: Row) -> dict[str, Any]:
    """As JSON has them."""
    config = row.config.to_json()
    settings: dict[str, Any] = json.loads(json.dumps({name: config[name] for name in SETTINGS}))
    return settings


def first_difference(line: Any, now: Any, name: str = "") -> str | None:
    """The first setting of the line that is another now; one that the line lacks came later."""
    if isinstance(line, dict) and isinstance(now, dict):
        found = (first_difference(value, now.get(key), key) for key, value in line.items())
        return next((difference for difference in found if difference), None)
    return None if line == now else f"{name} {line}, not {now}"


class Ledger:
    """The runs on a file, by row and seed."""

    def __init__(self, path: Path, table: str) -> None:
        self.path, self.table = path, table
        self.lines: dict[tuple[str, int], dict[str, Any]] = {}
        whole, self._cut = self._read()
        for number, text in enumerate(whole, 1):
            try:
                line = json.loads(text)
                key = line["row"], line["seed"]
                if line["table"] == table:
                    self.lines[key] = line
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number}, is no record of a run") from error

    def _read(self) -> tuple[list[str], int]:
        """The whole lines, and how many bytes follow of one that a killed process had begun."""
        try:
            content = self.path.read_bytes()
            end = content.rfind(b"\n") + 1
            return content[:end].decode().splitlines(), len(content) - end
        except FileNotFoundError:
            return [], 0
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.path} cannot be read: {error}") from error

    def find(self, row: Row, seed: int, points: dict[str, int]) -> dict[str, Any] | None:
        """The line of a run; UserError where it has other settings, or was measured on others.

        `points` are the test images of each column.
        """
        line = self.lines.get((row.name, seed))
        if line is None:
            return None
        difference = first_difference(line["settings"], settings_of(row))
        difference = difference or first_difference(line["n"], points, "n")
        if difference:
            run = f"{row.name}, seed {seed},"
            raise UserError(f"{self.path} has {run} with {difference}: choose another --record")
        return line

    def add(self, row: Row, seed: int, content: dict[str, Any]) -> None:
        """Append a run and wait until it is on the disk."""
        line = {"table": self.table, "row": row.name, "seed": seed, "settings": settings_of(row)}
        line |= content
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            if self._cut:
                file.truncate(file.seek(0, os.SEEK_END) - self._cut)
                self._cut = 0
            file.write(json.dumps(line).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.lines[row.name, seed] = line
