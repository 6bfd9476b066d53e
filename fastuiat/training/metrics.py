"""metrics.jsonl and TensorBoard's events, cut back to a checkpoint on resume."""

from __future__ import annotations

import contextlib
import io
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from fastuiat import sealed
from fastuiat.bounds import MOST_LOG, lines_in, own_copy, plain_bytes
from fastuiat.config import UserError
from fastuiat.files import write_bytes
from fastuiat.writer import refuse_replaced

FILE = "metrics.jsonl"


@contextlib.contextmanager
def said_in_a_line(path: Path) -> Iterator[None]:
    """UserError where a log cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({error.strerror}): mend that, then --resume the run"
        ) from error


class Events:
    """Scalars as TensorBoard reads them, written by whoever calls.

    PyTorch's SummaryWriter writes in a thread of its own, whose errors nobody can catch.
    """

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        """What was written from `purge_step` on, by an earlier process, no longer counts."""
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}"
        self.path = folder / f"{name}.{os.getpid()}.{time.monotonic_ns()}"
        with said_in_a_line(folder):
            folder.mkdir(exist_ok=True)
            self._file = open(self.path, "xb")  # noqa: SIM115 (open for the run's whole life)
            self._records = RecordWriter(self._file)
            self._write(Event(file_version="brain.Event:2"))
            self._write(
                Event(
                    step=purge_step, session_log=SessionLog(status=SessionLog.SessionStatus.START)
                )
            )
            self._file.flush()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._records.write(event.SerializeToString())

    def add(self, kind: str, values: dict[str, Any], step: int) -> None:
        """A scalar for each number, under `kind/name`."""
        numbers = {k: v for k, v in values.items() if isinstance(v, int | float)}
        with said_in_a_line(self.path):
            for name, value in numbers.items():
                scalar = Summary.Value(tag=f"{kind}/{name}", simple_value=float(value))
                self._write(Event(step=step, summary=Summary(value=[scalar])))
            self._file.flush()

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of what could not be written, which was said
            self._file.close()


def existing(path: str, flags: int) -> int:
    """Opens what is there, and makes nothing."""
    return os.open(path, flags & ~os.O_CREAT)


class MetricsLog:
    """One JSON object per line. Clock readings live under `clock` and are no part of identity."""

    def __init__(self, folder: Path, *, offset: int = 0, step: int = 0) -> None:
        """Goes on behind the first `offset` bytes, which `cut_back` says; the rest goes."""
        self.path = folder / FILE
        with said_in_a_line(self.path):
            own_copy(self.path)
            self._file = open(self.path, "a+b")  # noqa: SIM115 (open for the run's whole life)
            self._file.truncate(min(offset, self._file.tell()))
            self._file.seek(0, os.SEEK_END)
        self._events = Events(folder / "tensorboard", purge_step=step + 1)

    def write(self, kind: str, step: int, values: dict[str, Any], clock: dict[str, float]) -> None:
        line = {"kind": kind, "step": step, **values, "clock": clock}
        with said_in_a_line(self.path):
            self._file.write(sealed.line(line))
            self._file.flush()
        self._events.add(kind, {**values, **clock}, step)

    def sync(self) -> int:
        """Force the lines to disk; the byte offset that a checkpoint remembers.

        Where somebody has removed or replaced the file meanwhile, all its lines are written anew.
        """
        with said_in_a_line(self.path):
            self._file.flush()
            while not self._is_there():
                self._file.seek(0)
                write_bytes(self.path, self._file.read())
                with contextlib.suppress(FileNotFoundError):  # gone again
                    there = open(self.path, "a+b", opener=existing)  # noqa: SIM115 (as before)
                    self._file.close()
                    self._file = there
            os.fsync(self._file.fileno())
        return self._file.tell()

    def _is_there(self) -> bool:
        """Whether the file of this name is the one that is written to."""
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return os.path.samestat(os.fstat(self._file.fileno()), there)

    def close(self) -> None:
        """What went away behind the last checkpoint is there again, if this is its folder still."""
        with contextlib.suppress(OSError, UserError):
            refuse_replaced(self.path.parent)
            self.sync()
        with contextlib.suppress(OSError):
            self._file.close()
        self._events.close()


def is_kept(line: bytes, step: int, validated_epoch: int) -> bool:
    """Whether a line is of before a checkpoint, whole and as it was written.

    Of the checkpoint's own step it may be an epoch's, once that was validated.
    """
    try:
        values = sealed.unsealed(line)
        at, epoch = int(values["step"]), int(values["epoch"])
        return at < step or (at == step and (values["kind"] != "epoch" or epoch <= validated_epoch))
    except (ValueError, KeyError, TypeError):
        return False


def cut_back(folder: Path, state: dict[str, Any]) -> tuple[int, str | None]:
    """(byte offset to go on from, note) of the log of a run that goes on from a checkpoint.

    Usually the offset that the checkpoint remembers. Where the file is not what it was, those of
    its lines are kept that are whole and of before the checkpoint, and the note says so.
    """
    path, offset = folder / FILE, int(state["metrics_offset"])
    step, validated = state["step"], state["validated_epoch"]
    behind, size, broken = 0, 0, False  # of the lines that stay; whether one before them goes
    try:
        for line in lines_in(path):  # a log may be larger than the memory
            size += len(line)
            if line.endswith(b"\n") and is_kept(line, step, validated):
                broken |= behind + len(line) != size
                behind += len(line)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not broken and behind == offset:
        return offset, None
    content = plain_bytes(path, MOST_LOG) if size else b""
    whole = list(io.BytesIO(content[: content.rfind(b"\n") + 1]))
    kept = [line for line in whole if is_kept(line, step, validated)]
    write_bytes(path, b"".join(kept))
    what = "is not what it was" if content else "holds nothing of what it held"
    return path.stat().st_size, (
        f"{path} {what} when the checkpoint was saved: the {len(kept)} lines that are there from "
        "before stay"
    )


def cut_off(folder: Path, offset: int) -> None:
    """Remove what stands behind the last line of a finished run, as half a line of a full disk."""
    path = folder / FILE
    with said_in_a_line(path), contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > offset:
            os.truncate(path, offset)
