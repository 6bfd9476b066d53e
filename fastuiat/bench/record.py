"""Results as JSON lines: one for each provider of each case, written as the case ends."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from fastuiat import sealed
from fastuiat.bench.floors import fields
from fastuiat.bench.timing import Interruption, Measurement
from fastuiat.config import UserError
from fastuiat.machine import describe

FORMAT = "fastuiat-bench-1"


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
        self._is_new = path is not None and not path.exists()
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

    def __enter__(self) -> RecordFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def write(self, records: Iterable[dict[str, Any]]) -> None:
        """Keep them; then KeyboardInterrupt where Ctrl-C had ended their measuring."""
        if self._file is not None:
            self._append(self._file, records)
        Interruption.heed()

    def _append(self, file: int, records: Iterable[dict[str, Any]]) -> None:
        lines = b"".join(map(sealed.line, records))
        try:
            # One call: a kill leaves all of it or nothing.
            if os.write(file, lines) < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file)
        except OSError as error:
            raise UserError(f"{self.path} cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """A file that nothing came into is not left behind."""
        if self._file is not None:
            if self._is_new and self.path is not None and os.fstat(self._file).st_size == 0:
                self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None
