"""Moments at which a command stops itself, for somebody to kill it there or to change its world.

Hooks are laid in the child that a command runs in; the product knows nothing of them. A process
that stands at its moment is in the state T; SIGCONT lets it go on.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "file"
"""An operation on a file below the folder: opened to be written, made, renamed, removed, synced."""
ENTERED = {
    "start": ["fastuiat.training.run:settle"],
    "assemble": ["fastuiat.training.run:assemble"],
    "read": ["fastuiat.training.run:read", "fastuiat.training.trainer:Trainer.restore"],
    "compile": ["torch._inductor.compile_fx:compile_fx"],
    "step": ["fastuiat.training.trainer:Trainer.take_step"],
    "last step": ["fastuiat.training.trainer:Trainer.take_step"],
    "log": ["fastuiat.training.metrics:MetricsLog.write"],
    "validation": ["fastuiat.training.trainer:Trainer.end_epoch"],
    "checkpoint": ["fastuiat.training.trainer:save_checkpoint"],
    "attack": ["fastuiat.evaluation.autoattack:perturb"],
    "state": ["fastuiat.evaluation.autoattack:write_state"],
    "record": ["fastuiat.evaluation.record:write_json"],
    "table": ["fastuiat.reproduce:write_json"],
    "case": ["fastuiat.bench.record:RecordFile.write"],
    "batch of pictures": ["fastuiat.data.preparation:write_at"],
}
"""Functions, by what begins where they are called."""
NAMES = (FILE, *ENTERED)


@dataclass(frozen=True)
class Moment:
    """The `count`-th time (from 1) that something begins in one process.

    `command` says which of several processes: `train`, or `eval`, that a `reproduce` started.
    """

    name: str
    count: int
    command: str | None = None

    def __str__(self) -> str:
        return f"{self.name} {self.count}{f' of {self.command}' if self.command else ''}"


class Counting:
    """How often each kind of moment has been, in this process."""

    def __init__(self, moment: Moment | None) -> None:
        self.moment = moment
        self.counts: Counter[str] = Counter()
        self.inside = False

    def see(self, name: str) -> None:
        if self.inside:
            return
        self.counts[name] += 1
        wanted = self.moment
        if wanted is None or (name, self.counts[name]) != (wanted.name, wanted.count):
            return
        if wanted.command in (None, sys.argv[1]):
            os.kill(os.getpid(), signal.SIGSTOP)

    def entered(self, place: str, name: str) -> None:
        """Have the function of a place seen whenever it is called."""
        module, _, path = place.partition(":")
        owner: Any = importlib.import_module(module)
        *outer, last = path.split(".")
        for part in outer:
            owner = getattr(owner, part)
        function: Callable[..., Any] = getattr(owner, last)

        @functools.wraps(function)
        def seen(*arguments: Any, **named: Any) -> Any:
            if name != "last step" or arguments[0].step == arguments[0].last_step - 1:
                self.see(name)
            return function(*arguments, **named)

        setattr(owner, last, seen)

    def files_below(self, folder: Path) -> None:
        """Have operations on files below a folder seen, before they are done."""
        home = os.path.abspath(folder)
        changing = os.O_WRONLY | os.O_RDWR | os.O_CREAT

        def hook(event: str, arguments: Any) -> None:
            if event == "open":
                path, _, flags = arguments
                if not flags & changing:
                    return
            elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
                path = arguments[0]
            else:
                return
            if isinstance(path, str | os.PathLike) and not isinstance(path, bytes):
                at = os.path.abspath(path)
                if at.startswith(home + os.sep):
                    self.see(FILE)

        sys.addaudithook(hook)
        sync = os.fsync

        def fsync(descriptor: Any) -> None:
            self.see(FILE)
            sync(descriptor)

        os.fsync = fsync

    def write(self, path: Path) -> None:
        """The larger ones where a process that this one has started has written its own."""
        self.inside = True
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(Counter(before) | self.counts))


def stop_at(moment: Moment | None, folder: Path, counts: Path | None) -> None:
    """Have this process stop at its moment, and write how many there were at its end."""
    counting = Counting(moment)
    names = NAMES if counts else ([moment.name] if moment else [])
    for name in names:
        if name == FILE:
            counting.files_below(folder)
        else:
            for place in ENTERED[name]:
                counting.entered(place, name)
    if counts:
        atexit.register(counting.write, counts)
