"""metrics.jsonl as columns: read line by line, so that a long log is no larger than what is shown.

A log of a million lines is some hundred megabytes as text, several gigabytes as dictionaries, and
a few dozen megabytes as the columns that a report draws and counts.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fastuiat import sealed
from fastuiat.bounds import lines_in
from fastuiat.config import UserError

Line = tuple[np.ndarray, np.ndarray]
"""x and y of a curve."""
CLOCK = "clock."
"""Before the names of what a line has under `clock`."""
MARK = "catastrophic_overfitting"
"""Of epochs: 1 where the training noticed it, else NaN."""
COLUMNS = {
    "epoch": (
        *(f"{part}_{kind}" for part in ("test", "val") for kind in ("natural", "robust")),
        MARK,
        *(f"{CLOCK}{c}" for c in ("images_per_second", "data_wait_percent", "validation_seconds")),
    ),
    "train": ("natural_accuracy", "robust_accuracy", f"{CLOCK}peak_memory_mib"),
}
"""What a report shows of each kind of line, beside its step and epoch."""
NAN = float("nan")


@dataclass(frozen=True)
class Log:
    """The lines of one kind in their order, by column: float64, NaN where a line has no number."""

    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self["epoch"])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns.get(name, np.empty(0))

    def numbers(self, name: str) -> np.ndarray:
        """A column without the lines that do not have it."""
        column = self[name]
        return column[~np.isnan(column)]

    def by_epoch(self, name: str) -> Line:
        """(epochs rising, means over each one's lines); no epoch that has no such number."""
        column = self[name]
        known = ~np.isnan(column)
        epochs, rows = np.unique(self["epoch"][known], return_inverse=True)
        sums = np.bincount(rows, weights=column[known], minlength=len(epochs))
        return epochs, sums / np.bincount(rows, minlength=len(epochs))


class Columns:
    """The columns of one kind of line as they grow."""

    def __init__(self, names: Iterable[str]) -> None:
        self.columns = {name: array("d") for name in ("step", "epoch", *names)}
        appends = {name: column.append for name, column in self.columns.items()}
        self._step, self._epoch = appends.pop("step"), appends.pop("epoch")
        clock = {name for name in appends if name.startswith(CLOCK)}
        self._own = [(name, add) for name, add in appends.items() if name not in clock]
        self._clock = [(name.removeprefix(CLOCK), appends[name]) for name in clock]

    def take(self, values: Mapping[str, Any], step: int, epoch: int) -> None:
        self._step(step)
        self._epoch(epoch)
        fill(self._own, values)
        fill(self._clock, values.get("clock") or {})


def fill(columns: Iterable[tuple[str, Callable[[float], None]]], values: Mapping[str, Any]) -> None:
    """Append to each column the number of its name."""
    get = values.get
    for name, append in columns:
        try:
            append(get(name, NAN))
        except TypeError:  # text, or null
            append(NAN)


class Reader:
    """Takes lines in, and keeps the columns of COLUMNS."""

    def __init__(self) -> None:
        self._kinds = {kind: Columns(names) for kind, names in COLUMNS.items()}

    def take(self, line: bytes) -> None:
        """ValueError, KeyError and the like on a line of something else."""
        values = sealed.unsealed(line)
        kind, step, epoch = values["kind"], int(values["step"]), int(values["epoch"])
        if columns := self._kinds.get(kind):
            columns.take(values, step, epoch)

    def log(self, kind: str) -> Log:
        found = self._kinds[kind].columns
        return Log({name: np.frombuffer(column) for name, column in found.items() if column})


def read_metrics(path: Path) -> tuple[Log, Log]:
    """(epoch lines, step lines); UserError that names a line which is none."""
    reader, count = Reader(), 0
    try:
        for line in lines_in(path):
            count += 1
            try:
                reader.take(line)
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
                damaged = isinstance(error, sealed.Damaged)
                raise UserError(
                    f"{path}, line {count} {'is damaged' if damaged else 'is no line of metrics'}: "
                    f"delete it, or cut it off with fastuiat train --resume {path.parent}"
                ) from error
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error})") from error
    return reader.log("epoch"), reader.log("train")
