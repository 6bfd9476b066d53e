"""Finished runs on file, a JSON object a line: a table's content when its folders are gone.

Several processes may fill one file: each reads it anew where it matters, and writes under a lock.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path
from typing import IO, Any

from fastuiat import sealed
from fastuiat.bounds import opened
from fastuiat.config import UserError
from fastuiat.reproduce.rows import Row

SETTINGS = (
    "recipe", "dataset", "method", "arch", "activation", "epochs", "batch_size", "train_size",
    "val_size", "extra_data", "extra_share", "weight_averaging", "optimizer", "settings",
)  # fmt: skip
"""Of a run, by which a line is known to be of a row as it stands now."""
NEEDED = ("table", "row", "seed", "settings", "accuracies", "n", "curve", "made")
Line = dict[str, Any]
Lines = dict[tuple[str, int], Line]
"""By row and seed; of two lines of one run the one of more columns counts, or else the first."""


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


def is_run(line: Any) -> bool:
    """Whether what a line says of a run can be: its kinds of values, which its readers lean on."""

    def are_numbers(values: Any, *more: type) -> bool:
        kinds = (int, float, *more)
        return isinstance(values, dict) and all(isinstance(v, kinds) for v in values.values())

    if not isinstance(line, dict):
        return False
    accuracies, made, seconds = (line.get(k) for k in ("accuracies", "made", "seconds_per_epoch"))
    return (
        all(isinstance(line[name], str) for name in ("table", "row"))
        and type(line["seed"]) is int
        and isinstance(line["settings"], dict)
        and isinstance(accuracies, dict)
        and are_numbers(accuracies)
        and all(0 <= value <= 100 for value in accuracies.values())
        and are_numbers(line["n"])
        and isinstance(line["curve"], list)
        and all(are_numbers(end, str, type(None)) for end in line["curve"])
        and isinstance(made, dict)
        and isinstance(made.get("time"), str)
        and isinstance(seconds, int | float | None)
        and isinstance(line.get("data", {}), dict)
    )


class Ledger:
    """The runs of a table on a file. UserError where the file is none of runs.

    A line is parsed once, however often the file grows. Threads may share a ledger.
    """

    def __init__(self, path: Path, table: str) -> None:
        self.path, self.table = path, table
        self._lock = threading.Lock()
        self._forget()
        self.read()

    def _forget(self) -> None:
        self.lines: Lines = {}
        self._inode: int | None = None
        self._end = 0
        """Bytes of the lines that are known."""
        self._count = 0
        self._last = b""
        """Of those lines."""

    def read(self) -> None:
        """Take in what is on the file by now."""
        with self._lock:
            try:
                with opened(self.path) as file:
                    self._take(file)
            except FileNotFoundError:
                self._forget()
            except OSError as error:
                raise UserError(f"{self.path} cannot be read: {error.strerror}") from error

    def _take(self, file: IO[bytes]) -> bool:
        """Take in the lines behind the known ones, or all where those are no longer there.

        Returns whether a line follows that a killed process had begun.
        """
        inode = os.fstat(file.fileno()).st_ino
        file.seek(max(0, self._end - len(self._last)))
        if inode != self._inode or file.read(len(self._last)) != self._last:
            self._forget()
        self._inode = inode
        file.seek(self._end)
        for text in file:
            if not text.endswith(b"\n"):
                if not sealed.is_beginning(text):
                    raise UserError(f"{self.path}, line {self._count + 1}, is damaged")
                return True
            if text.strip():
                self._keep(self._parsed(text))
            self._known(text)
        return False

    def _known(self, text: bytes) -> None:
        self._end, self._count, self._last = self._end + len(text), self._count + 1, text

    def _parsed(self, text: bytes) -> Line:
        number = self._count + 1
        try:
            line: Line = sealed.unsealed(text)
            missing = [name for name in NEEDED if name not in line]
        except sealed.Damaged as error:
            raise UserError(f"{self.path}, line {number}: {error}") from error
        except (ValueError, TypeError):
            missing = list(NEEDED)
        if missing or not is_run(line):
            raise UserError(f"{self.path}, line {number}, is no record of a run")
        return line

    def _keep(self, line: Line) -> None:
        """A line counts if it is of the table, and the first of its run or of more columns."""
        if line["table"] == self.table:
            known = self.lines.setdefault((line["row"], line["seed"]), line)
            if len(line["accuracies"]) > len(known["accuracies"]):
                self.lines[line["row"], line["seed"]] = line

    def find(self, row: Row, seed: int, points: dict[str, int]) -> Line | None:
        """The line of a run that has all columns; UserError on other settings or test images.

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
        return line if points.keys() <= line["accuracies"].keys() else None

    def add(self, row: Row, seed: int, content: dict[str, Any]) -> None:
        """Append a run, unless somebody else has, and wait until it is on the disk."""
        line = {"table": self.table, "row": row.name, "seed": seed, "settings": settings_of(row)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, open(self.path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            is_cut = self._take(file)
            known = self.lines.get((row.name, seed))
            if known and len(known["accuracies"]) >= len(content["accuracies"]):
                return
            if is_cut:
                file.truncate(self._end)
            text = sealed.line(line | content)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            self._known(text)
            self._keep(line | content)
