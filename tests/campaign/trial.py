"""One attempt to make fastuiat lose something, or believe what is damaged, and what came of it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

FAULTS = (
    "other bits",
    "lost validation",
    "believed",
    "traceback",
    "hang",
    "no line",
    "left behind",
)
"""What a trial can end in that it should not: a result that differs from an undisturbed run's, an
epoch without its validation line, a damaged file that was used, Python's own words, no end in
time, a failure that nothing is said about, files or processes that nobody removes."""


@dataclass(frozen=True)
class Trial:
    """What was tried, in words that are enough to do it again, and its faults: none where it held.

    `counts` adds to the table what a trial had several of ({"kills": 3}).
    """

    part: str
    what: str
    faults: tuple[str, ...] = ()
    counts: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        assert set(self.faults) <= set(FAULTS), self.faults


Part = Callable[[random.Random, Path], Iterator[Trial]]
"""An endless row of trials, drawn from the generator, in a folder of its own. Closed early it ends
its processes. What does not concern the trials (a run to compare with) is done by its first."""
