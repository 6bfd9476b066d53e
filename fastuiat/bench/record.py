"""Results as JSON lines: one for each provider of each case, written as the case ends; and read."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from fastuiat.bench.floors import fields
from fastuiat.bench.timing import Interruption, Measurement
from fastuiat.config import UserError
from fastuiat.machine import describe

FORMAT = "fastuiat-bench-1"
FAMILY = "fastuiat-bench-"
NEEDED: dict[str, type | tuple[type, ...]] = {
    "suite": str,
    "case": str,
    "provider": str,
    "device": str,
    "n": int,
    "config": dict,
    "config_hash": str,
    "time": str,
}
"""What a reader leans on, and its types; times are numbers, or null where the row failed."""
TIMES = ("median_s", "p20_s", "p80_s")


def config_hash(config: dict[str, Any]) -> str:
    """16 hex digits that two records share if, and only if, their configurations are the same."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_record(
    *,
    suite: str,
    case: str,
    measured: Measurement,
    device: torch.device,
    config: dict[str, Any],
    extrapolated: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """One line: times in seconds, null where the row failed and `error` says why."""
    spread = measured.spread if measured.samples else None
    hardware = describe(device)
    record = {
        "format": FORMAT,
        "suite": suite,
        "case": case,
        "provider": measured.name,
        "device": hardware["device"],
        "median_s": spread.median if spread else None,
        "p20_s": spread.p20 if spread else None,
        "p80_s": spread.p80 if spread else None,
        "n": spread.n if spread else 0,
        "repeats": measured.repeats,
        "extrapolated": extrapolated,
        "error": measured.error,
        "compile_s": measured.compile_s if spread else None,
        "peak_bytes": measured.peak_bytes,
        "graph_bytes": measured.graph_bytes,
        "samples_s": measured.samples,
        **more,
        "config": config,
        "config_hash": config_hash(config),
        **hardware,
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    return {**fields(record, device), **record}


class RecordFile:
    """Appends records to a file, each whole and on disk before the next case begins.

    A run that is killed leaves what it had finished; half a line that another left behind is closed
    first and stays what it was. UserError where the file cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._file: int | None = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":
                os.write(self._file, b"\n")
        except OSError as error:
            raise UserError(f"--json {path} cannot be written: {error.strerror}") from error

    def write(self, records: Iterable[dict[str, Any]]) -> None:
        """Keep them; then KeyboardInterrupt where Ctrl-C had ended their measuring."""
        if self._file is not None:
            self._append(self._file, records)
        Interruption.heed()

    def _append(self, file: int, records: Iterable[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(record) + "\n" for record in records)
        try:
            # One call: a kill leaves all of it or nothing.
            if os.write(file, lines.encode()) < len(lines.encode()):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def read_records(
    path: Path, *, say: Callable[[str], object] = lambda word: None
) -> list[dict[str, Any]]:
    """The records of a file in their order; `say` is told of half a line that a kill left.

    UserError where the file cannot be read, holds nothing, or holds anything but records of this
    format: a number that is doubtful is not compared.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise UserError(f"{path} is no record file: it is not text") from None
    lines = text.splitlines(keepends=True)
    if not text.strip():
        raise UserError(f"{path} is empty: measure with `fastuiat bench SUITE --json {path}`")
    records, broken = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            # A kill ends a file in half a line; the next bench ends that line and goes on.
            if not line.lstrip().startswith("{"):
                raise UserError(f"{path}:{number} is no record: not a line of JSON") from None
            broken.append(number)
            continue
        records.append(checked(value, f"{path}:{number}"))
    if not records:
        raise UserError(f"{path} holds no whole record: its only line was cut off")
    for number in broken:
        say(f"{path}:{number} was cut off, as by a kill, and is left out")
    return records


def checked(value: Any, where: str) -> dict[str, Any]:
    """The record, if it is one of this format whose fields agree with each other."""
    found = value.get("format") if isinstance(value, dict) else None
    if not isinstance(found, str) or not found.startswith(FAMILY):
        raise UserError(f"{where} is no record of fastuiat bench")
    if found != FORMAT:
        raise UserError(
            f"{where} is of format {found}, this version reads {FORMAT}: measure again, or read it "
            "with the version that wrote it"
        )
    wrong = [name for name, kind in NEEDED.items() if not isinstance(value.get(name), kind)]
    times = [value.get(name) for name in TIMES]
    if value.get("error") is None and not all(is_time(t) for t in times):
        wrong += [name for name, t in zip(TIMES, times, strict=True) if not is_time(t)]
    if wrong:
        raise UserError(f"{where} is damaged: no usable {', '.join(wrong)}")
    if config_hash(value["config"]) != value["config_hash"]:
        raise UserError(f"{where} is damaged: its configuration has another hash than it says")
    return value


def is_time(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf
