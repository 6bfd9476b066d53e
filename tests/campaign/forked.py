"""What is tried in a child of the campaign itself, after the imports, and how it ended."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import urllib.request
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from fastuiat.writer import LOCK
from tests.processes import Process, exit_code, memory

SECONDS = 60.0
"""For what is refused and for what begins its work; one is done in a tenth, two share a core."""
MORE_BYTES = 3 << 30
"""Of address space, beside what the imports have taken."""
FILE_BYTES = 1 << 28
HARDWARE = {"device": "a GPU of the campaign", "commit": None}
"""What `bench gpu` is told that the machine has."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code, None where it had to be killed, and what it said.

    `has_begun`: it was past all refusals, at work, and may have been stopped there. `as_json`: it
    was asked for a document on stdout, so that its notes go to stderr.
    """

    code: int | None
    out: str
    err: str
    has_begun: bool
    as_json: bool = False

    def faults(self, changed: bool) -> tuple[str, ...]:
        """What of trial.FAULTS it did; `changed` is whether its folders are other than before."""
        if self.has_begun and self.code == -signal.SIGALRM:
            return self.words()
        if self.code is None:
            return ("hang",)
        found = list(self.words())
        if self.code not in (0, 2) and not found:
            found.append("no line")
        if self.code == 2 and not found:
            line = self.err.removesuffix("\n")
            line = line.split("\n")[-1] if self.as_json else line
            if not (line.startswith("fastuiat: ") and line.isprintable()):
                found.append("no line")
        if self.code == 2 and changed and not self.has_begun:
            found.append("left behind")
        return tuple(found)

    def words(self) -> tuple[str, ...]:
        """Python's own, in place of ours."""
        said = self.out + self.err
        ours = "Traceback (most" not in said and "Warning: " not in said
        return () if ours else ("traceback",)


def run(
    words: Sequence[str],
    folder: Path,
    beside: Path,
    *,
    seconds: float = SECONDS,
    work: float = 0.3,
) -> Outcome:
    """`fastuiat WORDS…` in `folder`; what it says goes into files of the name `beside`.

    It is killed after `seconds`, and stopped `work` seconds after it has begun to train, attack,
    measure or start others. Its own children end with it.
    """
    mark, scratch = (beside.with_name(f"{beside.name}.{name}") for name in ("begun", "tmp"))
    mark.unlink(missing_ok=True)
    scratch.mkdir()

    def command() -> int:
        from fastuiat.cli import main

        tempfile.tempdir = str(scratch)
        bound()
        stop_after_begin(mark, work)
        code = exit_code(lambda: main(list(words)))
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()  # one that does not end would hang the command
        return code

    code, process = done_in_child(command, folder, beside, seconds)
    shutil.rmtree(scratch)
    return Outcome(code, process.stdout, process.stderr, mark.exists(), "--json" in words)


def done_in_child(
    work: Callable[[], int], folder: Path, beside: Path, seconds: float
) -> tuple[int | None, Process]:
    """(the exit code that `work` made in `folder`, None where it had to be killed; the child).

    What it says goes into files of the name `beside`. Its own children end with it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        process = Process(os.fork(), beside)
    if process.pid == 0:
        leave_after(work, folder, process)
    is_ended = process.ended(seconds)
    with contextlib.suppress(ProcessLookupError):  # it had not got as far as its own group
        os.killpg(process.pid, signal.SIGKILL)
    return process.returncode if is_ended else None, process


def leave_after(work: Callable[[], int], folder: Path, process: Process) -> NoReturn:
    """Exits as Python does after main()."""
    code = 70
    try:
        os.setsid()
        redirect([process.output(descriptor) for descriptor in (1, 2)])
        os.chdir(folder)
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                code = 120
        os._exit(code & 255)


def redirect(streams: Sequence[Path]) -> None:
    flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_TRUNC
    for number, path in ((0, None), (1, streams[0]), (2, streams[1])):
        opened = os.open(path, flags, 0o600) if path else os.open(os.devnull, os.O_RDONLY)
        os.dup2(opened, number)
        os.close(opened)
    out, err = (io.BufferedWriter(io.FileIO(number, "w", closefd=False)) for number in (1, 2))
    sys.stdout = io.TextIOWrapper(out, encoding="utf-8")
    sys.stderr = io.TextIOWrapper(err, "utf-8", "backslashreplace", line_buffering=True)


def bound() -> None:
    """Limits on memory and files, one thread, no network."""
    most = memory()[0] + MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    torch.set_num_threads(1)  # those of the parent are not there
    warnings.resetwarnings()  # as a command has them, whatever a test runner has set

    def unreachable(*_: Any, **__: Any) -> Any:
        raise OSError("no network")

    urllib.request.urlopen = unreachable


def begins() -> Iterable[tuple[Any, str]]:
    """(owner, name) of the functions that are past all refusals."""
    from fastuiat.bench import timing
    from fastuiat.evaluation import attacks
    from fastuiat.training.trainer import Trainer

    yield Trainer, "train"
    yield timing._Run, "prepare"
    for name in attacks.names():
        for owner in attacks.get(name).__mro__:
            if "measure" in vars(owner):
                yield owner, "measure"


def stop_after_begin(mark: Path, seconds: float) -> None:
    """The first call of what `begins` leaves a mark and sets the clock that ends this process."""

    def note() -> None:
        if not mark.exists():
            mark.touch()
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def noted(function: Any) -> Any:
        def first(*positional: Any, **named: Any) -> Any:
            note()
            return function(*positional, **named)

        return first

    from fastuiat.bench.gpu import report, runner

    report.hardware = lambda: dict(HARDWARE)
    for owner, name in [*begins(), (runner.Runner, "run")]:
        setattr(owner, name, noted(getattr(owner, name)))
    start = subprocess.Popen.__init__

    def started(self: Any, args: Any, *more: Any, **named: Any) -> None:
        if not isinstance(args, str) and list(args)[:1] == [sys.executable]:
            note()  # another fastuiat, which is tried by itself
        start(self, args, *more, **named)

    subprocess.Popen.__init__ = started  # type: ignore[method-assign]


def contents(folder: Path) -> dict[str, tuple[int, ...]]:
    """What lies in a folder: kind, size, last change by name; links are not followed.

    Not the locks of its writers, which the next one takes away.
    """
    found = {}
    waiting = [folder]
    while waiting:
        for entry in os.scandir(waiting.pop()):
            if entry.name == LOCK:
                continue
            status = entry.stat(follow_symlinks=False)
            is_folder = entry.is_dir(follow_symlinks=False)
            told = () if is_folder else (status.st_size, status.st_mtime_ns)
            found[entry.path] = (status.st_mode, status.st_ino, *told)
            if is_folder:
                waiting.append(Path(entry.path))
    return found


@dataclass(frozen=True)
class Tried:
    """An outcome, its faults, and what has changed around it."""

    outcome: Outcome
    faults: tuple[str, ...]
    changes: list[str]

    def told(self) -> str:
        """For the report of a fault."""
        changes = f"; changed: {', '.join(self.changes)}" if "left behind" in self.faults else ""
        return f" ended in {self.outcome.code}: {self.outcome.err[-2000:]!a}{changes}"


class Place:
    """A folder that commands run in with other files around it, as new before each of them."""

    def __init__(self, folder: Path, fill: Callable[[Path], object]) -> None:
        self.folder, self.fill = folder, fill
        self.here = folder / "here"
        self.before: dict[str, tuple[int, ...]] | None = None

    def run(self, words: Sequence[str], spoil: Callable[[Path], object] | None = None) -> Tried:
        """What comes of a command there; `spoil(folder)` changes the folder for this one alone."""
        if self.before is None or contents(self.folder) != self.before:
            self.renew()
        if spoil:
            spoil(self.folder)
        before = contents(self.folder)
        outcome = run(words, self.here, self.folder)
        after = contents(self.folder)
        changes = [p for p in before | after if before.get(p) != after.get(p)]
        names = [os.path.relpath(path, self.here) for path in changes]
        return Tried(outcome, outcome.faults(bool(changes)), names)

    def renew(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.here.mkdir(parents=True)
        self.fill(self.folder)
        self.before = contents(self.folder)
