"""What a net answered inside one batch of an attack, kept for the attack that is killed.

An attack is a function of its random numbers and of the net's answers. Run again from the same
random numbers it asks the same questions in the same order: while the tape lasts they are answered
from it, bit for bit, and the net is asked only from there on. So the attack's own loop stays as its
package has it, and is resumed inside.
"""

from __future__ import annotations

import contextlib
import glob
import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import load, save
from torch import Tensor

from fastuiat.distributed import Ranks

WRITE_EVERY = 10.0
"""Seconds between two writes: what a kill loses."""
QUICK = 64 << 20
"""Bytes of answers: a net that gives so many between two writes is no slow one, and a tape of it
would cost more than asking again."""
LARGEST = 1 << 30
"""Bytes of a tape; later answers are not kept."""
HEAD = struct.Struct("<QI")
"""Of an answer: its length in bytes, its CRC32."""


class Tape:
    """The answers of one batch, in a file; `key` says whose they are.

    A file of another key, and what stands behind a damaged answer, is written anew.
    """

    def __init__(self, path: Path, key: object, device: torch.device) -> None:
        self.path, self.device = path, device
        self._first = json.dumps(key).encode() + b"\n"
        self._kept = self._read() if path.is_file() else iter(())
        self._end = 0
        self._unwritten: list[tuple[Tensor, ...]] = []
        self._bytes = 0  # of the unwritten
        self._written_at = time.monotonic()
        self._recording = True

    def _read(self) -> Iterator[bytes]:
        """The answers that are whole; `_end` is always behind the last one given."""
        with open(self.path, "rb") as file:
            if file.readline(len(self._first)) != self._first:
                return
            self._end = file.tell()
            while answer := whole_answer(file):
                self._end = file.tell()
                yield answer

    def answer(self, ask: Callable[[], Any]) -> Any:
        """What was answered at this place, a tensor or several, else what `ask` says now."""
        if (kept := next(self._kept, None)) is not None:
            named = load(kept)
            tensors = tuple(named[str(i)].to(self.device) for i in range(len(named)))
            return tensors if len(tensors) > 1 else tensors[0]
        answer = ask()
        if self._recording:
            self._keep((answer,) if isinstance(answer, Tensor) else answer)
        return answer

    def _keep(self, answer: tuple[Tensor, ...]) -> None:
        # A copy: an attack may write into what it was given. On the device until it is written, so
        # that nothing waits for a quick one.
        self._unwritten.append(tuple(t.detach().clone() for t in answer))
        self._bytes += sum(t.nbytes for t in answer)
        if time.monotonic() - self._written_at >= WRITE_EVERY:
            self._write()
        elif self._bytes > QUICK:
            self._recording, self._unwritten = False, []

    def _write(self) -> None:
        try:
            with open(self.path, "r+b" if self._end else "wb") as file:
                file.truncate(self._end)
                file.seek(self._end)
                if not self._end:
                    file.write(self._first)
                for answer in self._unwritten:
                    content = save({str(i): t.contiguous().cpu() for i, t in enumerate(answer)})
                    file.write(HEAD.pack(len(content), zlib.crc32(content)) + content)
                self._end = file.tell()
        except OSError:  # a full disk costs the tape, not the attack
            self._recording = False
        self._unwritten, self._bytes, self._written_at = [], 0, time.monotonic()
        self._recording &= self._end < LARGEST


class Tapes:
    """The tapes of the batches that are worked on: files beside the state of an evaluation.

    One process has one, several ranks have one for each batch, by its place in the run: whoever
    takes the batch up again finds it.
    """

    def __init__(self, state: Path | None, ranks: Ranks) -> None:
        self.ranks = ranks
        self.alone = state and state.with_name(f"{state.name}.answers")

    def _of_place(self, alone: Path, place: int) -> Path:
        return alone.with_name(f"{alone.name}-{place}")

    def path(self, place: int) -> Path | None:
        """The file of the batch in this place; None where there is no state."""
        if self.alone is None:
            return None
        own = self._of_place(self.alone, place)
        return own if self.ranks.world > 1 or own.exists() else self.alone

    def adopt(self, place: int) -> None:
        """What one process has left of the batch in this place goes to the rank that has it now."""
        if self.ranks.world > 1 and self.alone and place % self.ranks.world == self.ranks.rank:
            with contextlib.suppress(FileNotFoundError):
                self.alone.replace(self._of_place(self.alone, place))

    def remove(self, places: range) -> None:
        """Those of this rank's batches, which are over."""
        for place in places:
            if place % self.ranks.world == self.ranks.rank and (path := self.path(place)):
                path.unlink(missing_ok=True)

    def clear(self) -> None:
        """All that any number of ranks has left."""
        if self.alone and self.ranks.is_first:
            for name in glob.glob(f"{glob.escape(str(self.alone))}*"):
                Path(name).unlink(missing_ok=True)


def whole_answer(file: BinaryIO) -> bytes | None:
    """The next answer; None at the end, and where it is cut or damaged."""
    head = file.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    length, crc = HEAD.unpack(head)
    content = file.read(min(length, LARGEST))
    return content if len(content) == length and zlib.crc32(content) == crc else None
