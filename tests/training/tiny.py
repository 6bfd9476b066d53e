"""Runs as small as they can be, and progress that has them stopped in the middle."""

from __future__ import annotations

import os
import signal
from typing import Any

from fastuiat.training.config import TrainConfig

TINY = TrainConfig(
    dataset="digits", arch="wrn-10-1", method="natural", loader="resident", precision="fp32",
    compile=False, device="cpu", val_size=16, train_size=64, batch_size=32,
)  # fmt: skip
"""Epochs of two steps."""


class StopsAt:
    """Progress that shows nothing, and has the run stopped at a step, as Ctrl-C does."""

    def __init__(self, step: int, signum: int = signal.SIGINT) -> None:
        self.at, self.signum = step, signum

    def advance(self, done: int) -> None:
        if done == self.at:
            os.kill(os.getpid(), self.signum)

    def begin(self, *_: Any) -> None: ...
    def step(self, *_: Any) -> None: ...
    def epoch(self, *_: Any) -> None: ...
