"""Groups of ranks that stand ready side by side and take their samples in turn.

Each is started as `fastuiat train --processes` starts its ranks, by PyTorch's elastic launcher, and
a single process by itself. All are there at once; while one steps, the others wait and compute
nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from typing import IO, Any

import torch

from fastuiat.bench.rank import ANSWER, Task
from fastuiat.bench.timing import OUT_OF_MEMORY, Call, Provider, WallClock
from fastuiat.children import PARENT

PATIENCE = 20.0
"""Seconds in which ranks end that are asked to."""


class RanksClock(WallClock):
    """Counts the seconds that ranks took by their own clocks, where a call tells them."""

    told: float | None = None

    def seconds(self, call: Call) -> float:
        self.told = None
        by_wall = super().seconds(call)
        return by_wall if self.told is None else self.told


@dataclass
class Group:
    """Some processes that train one net together."""

    name: str
    processes: int
    task: Task
    clock: RanksClock
    min_sample_s: float = 0.0
    """Steps are repeated inside a sample until it lasts so long, once `warmup` calls are over."""
    warmup: int = 2
    """Calls of one step before, the first one among them."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """What each call came to: seconds, steps, and what each rank took."""
    steps: int = 1
    """In the next sample."""
    _process: subprocess.Popen[str] | None = None
    _complaints: IO[bytes] | None = None

    def provider(self) -> Provider:
        return Provider(self.name, self.start)

    def command(self) -> list[str]:
        """By which it is started."""
        rank = ["-m", "fastuiat.bench.rank", self.task.text()]
        if self.processes == 1:
            return [sys.executable, *rank]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--max-restarts", "0"]
        return [sys.executable, *launcher, "--nproc-per-node", str(self.processes), *rank]

    def environment(self) -> dict[str, str]:
        """As `fastuiat train --processes` makes it; a process without a launcher ends with us."""
        own = {name: value for name, value in os.environ.items() if name != PARENT}
        own |= {PARENT: str(os.getpid())} if self.processes == 1 else {}
        return own | {"OMP_NUM_THREADS": str(self.task.threads)}

    def start(self) -> Call:
        """Its processes, on their way; each call is a sample."""
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            self.command(), env=self.environment(), text=True, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._complaints,
            start_new_session=True,  # Ctrl-C is for who asks, who ends them
        )  # fmt: skip
        return self.sample

    def sample(self) -> None:
        """Have all ranks take the steps of a sample; the time of the slowest is the step's."""
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(OSError):  # of a process that is gone: the answer says why
            self._process.stdin.write(f"{self.steps}\n")
            self._process.stdin.flush()
        took = self._answer()["ranks"]
        seconds = max(rank["seconds"] for rank in took) / self.steps
        self.samples.append({"seconds": seconds, "steps": self.steps, "ranks": took})
        self.clock.told = seconds
        if len(self.samples) == self.warmup and self.min_sample_s:
            self.steps = max(1, math.ceil(self.min_sample_s / seconds))

    def _answer(self) -> dict[str, Any]:
        """What the ranks say next; RuntimeError, in one line, where one of them failed."""
        assert self._process is not None and self._process.stdout is not None
        failed: list[dict[str, Any]] = []
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                content: dict[str, Any] = json.loads(line.removeprefix(ANSWER))
                if "error" not in content:
                    return content
                failed.append(content)
        code = self._process.wait()
        # A rank fails by itself, and the others behind it.
        failed.sort(key=lambda one: one["follows"])
        error = failed[0]["error"] if failed else f"exit code {code}{self._last_words()}"
        if error == OUT_OF_MEMORY:
            raise torch.OutOfMemoryError(error)
        raise RuntimeError(error if failed else f"its ranks ended, {error}")

    def _last_words(self) -> str:
        assert self._complaints is not None
        self._complaints.seek(0)
        lines = self._complaints.read().decode(errors="replace").split("\n")
        said = [" ".join(line.split()) for line in lines if any(map(str.isalnum, line))]
        return f": {said[-1][:200]}" if said else ""

    def end(self) -> None:
        """Let them go, and see to it that they do."""
        if self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        for stop in (self._process.terminate, self._process.kill):
            try:
                self._process.wait(PATIENCE)
                break
            except subprocess.TimeoutExpired:
                stop()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        if self._complaints is not None:
            self._complaints.close()
