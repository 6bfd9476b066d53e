"""What torchrun tells the processes that it starts, and how they end together.

Without PyTorch: the command line asks before that is imported.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path


class RankFailed(RuntimeError):
    """Another rank has ended, or hangs: in one line, and this one cannot go on."""

    asked_to_end = False
    """Whether a signal has come meanwhile: torchrun ends all ranks where one has ended."""


@dataclass(frozen=True)
class Place:
    """Of this process among those started together: on all machines, and on its own."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    attempt: int = 0
    """How often torchrun has started the ranks again."""


def place() -> Place:
    """As the environment says that torchrun makes; alone without it."""
    if not all(os.environ.get(name) for name in ("MASTER_ADDR", "MASTER_PORT")):
        return Place()
    rank, world = number("RANK", 0), number("WORLD_SIZE", 1)
    if world < 2:
        return Place()
    return Place(
        rank, world, number("LOCAL_RANK", 0), number("LOCAL_WORLD_SIZE", 1),
        number("TORCHELASTIC_RESTART_COUNT", 0),
    )  # fmt: skip


def number(name: str, usual: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else usual


def is_started_by_torchrun() -> bool:
    """Also of a single process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def is_first_rank() -> bool:
    """Whether this process speaks for all."""
    return place().rank == 0


LEFT = "fastuiat-left"
"""In torchrun's folder of a launch: how its ranks have left, those started again not to begin."""


def folder_of_attempt() -> Path | None:
    """What torchrun makes on each machine whenever it starts the ranks, in a folder that it makes
    for each launch; None where it makes none.

    The variable names LAUNCH/attempt_0/RANK/error.json.
    """
    told = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", ""))
    return told.parents[1] if is_started_by_torchrun() and len(told.parents) > 2 else None


def leave_for_good(code: int) -> None:
    """Note that there is nothing to start again: by --max-restarts torchrun would, and does.

    To be called before this rank ends, and with it the others.
    """
    attempt = folder_of_attempt()
    if attempt is None:
        return
    for folder in (attempt, attempt.parent):
        unfinished = folder / f"{LEFT}-{os.getpid()}"
        with contextlib.suppress(OSError):  # a full disk: they will find out for themselves
            unfinished.write_text(f"{code} {place().world}")
            unfinished.replace(folder / LEFT)


def left_for_good() -> int | None:
    """The code with which the ranks of this launch have left before; None where they have not.

    Nor where they are about to, the first one having something to say; nor where machines have come
    or gone since, for then there is something to start again.
    """
    attempt = folder_of_attempt()
    if attempt is None or (attempt / LEFT).exists():
        return None
    try:
        code, _, world = (attempt.parent / LEFT).read_text().partition(" ")
    except OSError:
        return None
    return int(code) if world == str(place().world) else None


PATIENCE = 10.0
"""Seconds in which rank 0 has said what all ranks have met, and its launcher ends the others."""


def wait_for_the_first(code: int, patience: float | None = None) -> None:
    """On other ranks than 0: wait to be ended by torchrun, then exit with `code`.

    It ends all ranks as soon as one has left: before rank 0 has said why, if another leaves first.
    Comes back where nobody ends this one within `patience` seconds, PATIENCE by default: then rank
    0 has nothing to say. Of a machine's ranks the first comes back first.
    """
    patience = PATIENCE if patience is None else patience
    here = place()
    if here.rank == 0:
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))
    time.sleep(patience if here.local_rank == 0 else 2 * patience)
    signal.signal(signal.SIGTERM, before)
