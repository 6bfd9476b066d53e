"""Commands under way: what they have said, how they end, and who else lives in a folder."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SLEEP = 0.005
PATIENCE = 240.0
"""Seconds after which a process that has not ended hangs."""


@dataclass
class Process:
    """A command under way, or ended with `returncode` (-9 where SIGKILL ended it), as Popen has it.

    `standard` begins the names of the files that its output goes to. `stops`: it may stand at a
    moment of its own, in the state T. `bare` and `peak`: MB of memory that a start takes, and that
    this one has taken beyond it at its end.
    """

    pid: int
    standard: Path
    stops: bool = False
    bare: float = 0.0
    peak: float = 0.0
    returncode: int | None = None

    @property
    def stdout(self) -> str:
        return self.output(1).read_text(errors="replace")

    @property
    def stderr(self) -> str:
        return self.output(2).read_text(errors="replace")

    def output(self, descriptor: int) -> Path:
        return self.standard.with_name(f"{self.standard.name}.{descriptor}")

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status, used = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
                self.peak = max(0.0, used.ru_maxrss / 1024 - self.bare)
        return self.returncode

    def ended_within(self, seconds: float) -> bool:
        """Wait so long at most, and leave it alone."""
        if self.poll() is None:
            alive = os.pidfd_open(self.pid)
            with contextlib.closing(select.epoll()) as ends:
                ends.register(alive, select.EPOLLIN)
                ends.poll(seconds)
            os.close(alive)
        return self.poll() is not None

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit code."""
        if not self.ended_within(timeout):
            raise subprocess.TimeoutExpired(self.standard.name, timeout)
        assert self.returncode is not None
        return self.returncode

    def ended(self, seconds: float = PATIENCE) -> bool:
        """Wait so long for its end, letting go on who stands; killed where it does not come.

        Ranks come to the same moment, each in its time.
        """
        until = time.monotonic() + seconds
        while self.stops and self.poll() is None and time.monotonic() < until:
            self.let_go_on()
            time.sleep(SLEEP)
        if self.ended_within(max(0.0, until - time.monotonic())):
            return True
        for pid in (self.pid, *below(self.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.wait()
        return False

    def let_go_on(self) -> None:
        """Whoever of its processes stands at a moment."""
        for pid in (self.pid, *below(self.pid)):
            if state_of(pid)[0] == "T":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def stopped(self, seconds: float = PATIENCE) -> int | None:
        """The process, this one or one below it, that stands at its moment; None at the end."""
        until = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < until:
            for pid in (self.pid, *below(self.pid)):
                if state_of(pid)[0] == "T":
                    return pid
            time.sleep(SLEEP)
        return None


def state_of(pid: int) -> tuple[str, int]:
    """(its letter, its parent) as the kernel has them; nothing of one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0], int(fields[1])
    except OSError:
        return "", 0


def children_of(pid: int) -> list[int]:
    """Those that it has started and that live, in the order of their numbers."""
    found: list[int] = []
    with contextlib.suppress(OSError):  # it, or one of its threads, may end meanwhile
        for task in os.listdir(f"/proc/{pid}/task"):
            listed = Path(f"/proc/{pid}/task/{task}/children").read_text()
            found += map(int, listed.split())
    return sorted(child for child in found if state_of(child)[0] != "Z")


def below(pid: int) -> list[int]:
    """Its children and theirs, as long as it lives."""
    return [one for child in children_of(pid) for one in (child, *below(child))]


def living_in(folder: Path) -> list[int]:
    """The processes whose working directory is in the folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            place = (path / "cwd").readlink()
            if folder in (place, *place.parents) and state_of(int(path.name))[0] != "Z":
                found.append(int(path.name))
    return found


def left_in(folder: Path, seconds: float = 10.0) -> list[int]:
    """Who still lives in the folder after so long; they are killed."""
    folder = folder.resolve()
    until = time.monotonic() + seconds
    while (left := living_in(folder)) and time.monotonic() < until:
        time.sleep(SLEEP)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return left


def memory() -> tuple[int, int]:
    """Bytes that this process has: (of address space, of memory)."""
    pages = Path("/proc/self/statm").read_text().split()
    return int(pages[0]) * resource.getpagesize(), int(pages[1]) * resource.getpagesize()


def exit_code(action: Callable[[], object]) -> int:
    """What Python's own end makes of it, and says of it, where `action` is all that it does."""
    try:
        action()
    except SystemExit as stop:
        if stop.code is not None and not isinstance(stop.code, int):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0
