"""metrics.jsonl and TensorBoard, cut back to a checkpoint on resume."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter


class MetricsLog:
    """One JSON object per line. Clock readings live under `clock` and are no part of identity."""

    def __init__(self, folder: Path, *, offset: int = 0, step: int = 0) -> None:
        self.path = folder / "metrics.jsonl"
        self._file = open(self.path, "ab")  # noqa: SIM115 (open for the run's whole life)
        if self._file.tell() != offset:
            self._file.truncate(offset)
            self._file.seek(offset)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def write(self, kind: str, step: int, values: dict[str, Any], clock: dict[str, float]) -> None:
        line = {"kind": kind, "step": step, **values, "clock": clock}
        self._file.write((json.dumps(line) + "\n").encode())
        self._file.flush()
        for name, value in {**values, **clock}.items():
            if isinstance(value, int | float):
                self._board.add_scalar(f"{kind}/{name}", value, step)

    def sync(self) -> int:
        """Force the lines to disk; the byte offset that a checkpoint remembers."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
        self._board.close()
