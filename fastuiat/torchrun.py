"""What torchrun tells the processes that it starts, and how they end together.

Without PyTorch: the command line asks before that is imported.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass


class RankFailed(RuntimeError):
    """Another rank has ended, or hangs: in one line, and this one cannot go on."""


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


PATIENCE = 10.0
"""Seconds in which rank 0 has said what all ranks have met, and its launcher ends the others."""


def wait_for_the_first(code: int) -> None:
    """On other ranks than 0: wait to be ended by torchrun, then exit with `code`.

    It ends all ranks as soon as one has left: before rank 0 has said why, if another leaves first.
    Comes back where nobody ends this one: then rank 0 has nothing to say. Of a machine's ranks the
    first comes back first.
    """
    here = place()
    if here.rank == 0:
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))
    time.sleep(PATIENCE if here.local_rank == 0 else 2 * PATIENCE)
    signal.signal(signal.SIGTERM, before)
