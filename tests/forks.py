"""`fastuiat` commands that cost no start: children of a process that has imported it already.

    with Forks() as forks:
        done = forks.run("train", …, folder=folder)
        process = forks.start("train", …, folder=folder, moment=Moment("file", 7))

A real process each, with its own exit code and output, to be signalled and waited for like any. A
start of Python and PyTorch takes seconds, a fork milliseconds; as one thread alone is there to be
forked, OMP_NUM_THREADS is 1.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.moments import Moment
from tests.processes import PATIENCE, Process

ROOT = Path(__file__).parents[1]
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Order:
    """What the server is asked for: `fastuiat WORDS…` in a folder, torchrun's module, or a script.

    `fresh`: Python's own start, which has no moments. `largest`: bytes that a file may have;
    `memory`: MB of address space beside what the imports have taken. `bound`: it heeds the
    permissions of files, as root does not. `counts`: a file for how many of each moment it had.
    """

    words: tuple[str, ...]
    folder: str
    standard: str = ""
    environment: dict[str, str] | None = None
    moment: Moment | None = None
    fresh: bool = False
    module: str = "fastuiat"
    largest: int | None = None
    memory: int | None = None
    bound: bool = False
    counts: str | None = None

    @staticmethod
    def read(line: str) -> Order:
        fields = json.loads(line)
        moment = fields["moment"] and Moment(**fields["moment"])
        return Order(**fields | {"moment": moment, "words": tuple(fields["words"])})


class Forks:
    """Starts commands, as children of this process."""

    def __init__(self) -> None:
        self.started = 0
        self.outputs = Path(tempfile.mkdtemp(prefix="forks-"))
        own, theirs = socket.socketpair()
        path = os.pathsep.join(map(str, (ROOT, ROOT / "kernels")))
        self.environment = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **self.environment, "PYTHONPATH": path},
            cwd=ROOT,
        )
        theirs.close()
        self.channel = own.makefile("rw")

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *exception: object) -> None:
        self.channel.close()
        self.server.wait()
        shutil.rmtree(self.outputs, ignore_errors=True)

    def start(self, *words: object, folder: Path, **how: Any) -> Process:
        """A command under way in the folder; `how` is of Order's fields."""
        self.started += 1
        standard = self.outputs / str(self.started)
        environment = how.pop("environment", {**os.environ, **self.environment})
        order = Order(tuple(map(str, words)), str(folder), str(standard), environment, **how)
        become_reaper(True)
        try:
            self.channel.write(json.dumps(asdict(order)) + "\n")
            self.channel.flush()
            told = json.loads(self.channel.readline())
        finally:
            become_reaper(False)
        return Process(told["pid"], standard, order.moment is not None, told["bare"])

    def run(self, *words: object, folder: Path, seconds: float = PATIENCE, **how: Any) -> Process:
        """`start`, to its end."""
        process = self.start(*words, folder=folder, **how)
        process.ended(seconds)
        return process


def become_reaper(is_reaper: bool) -> None:
    """Whether processes below this one whose parents end become its children: the server's do."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(is_reaper), 0, 0, 0)
