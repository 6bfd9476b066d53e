"""Which ranks are there and how far they have come, as each tells the others twice a second.

A step pays a count for it: a thread of each rank writes, and who reads has met a failure.
"""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from typing import Any

BEAT = 0.5
"""Seconds between two words of a rank."""
LOOK = 6
"""Beats of its own for which a rank listens to the others: longer where the machine is loaded."""
ANSWER = timedelta(seconds=10)
"""How long a store may take that is not gone itself."""


class Presence:
    """This rank's word to the others, by a store that all of them reach; `close` ends it."""

    def __init__(self, store: Any, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self.step = 0
        """The one that is being taken; 0 where none is."""
        self.exchanges = 0
        """That this rank has come to."""
        self._told, self._reader = store.clone(), store.clone()  # the store itself may be waited on
        self._reader.set_timeout(ANSWER)
        self._beats = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._tell, daemon=True)
        self._thread.start()

    def _tell(self) -> None:
        try:
            while True:
                self._beats += 1
                self._told.set(f"rank {self.rank} is there", f"{self._beats} {self.exchanges}")
                if self._closed.wait(BEAT):
                    return
        except RuntimeError:  # the store has ended with its process
            return

    def close(self) -> None:
        """The others hear no more of this rank."""
        self._closed.set()
        self._thread.join()

    def absent(self) -> str:
        """Who does not come: the ranks that are heard no more, else those that have come to fewer
        exchanges than this one. The first rank that asks answers for all."""
        try:
            before = self._words()
            until = self._beats + LOOK
            while self._beats < until and self._thread.is_alive():
                time.sleep(BEAT / 4)
            now = self._words()
            silent = [r for r in range(self.world) if now[r][0] == before[r][0]]
            late = [r for r in range(self.world) if now[r][1] < self.exchanges]
            found = " or ".join(f"rank {r}" for r in silent or late) or "a rank"
            first: bytes = self._reader.compare_set("who does not come", "", found)
            return first.decode()
        except RuntimeError:
            return "a rank"

    def _words(self) -> list[tuple[int, int]]:
        """(beats, exchanges) of each rank as it told them last."""
        keys = [f"rank {rank} is there" for rank in range(self.world)]
        words = [self._reader.get(key) if self._reader.check([key]) else b"0 0" for key in keys]
        return [(int(beat), int(exchanges)) for beat, exchanges in map(bytes.split, words)]

    def where(self) -> str:
        """Where this rank waits for the others."""
        return f"step {self.step}" if self.step else f"exchange {self.exchanges}"
