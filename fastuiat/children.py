"""`fastuiat` commands as processes of their own, several at a time, ended together.

They end with the process that started them, however that ends.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from types import FrameType
from typing import TypeVar

from fastuiat.config import UserError
from fastuiat.torchrun import is_started_by_torchrun

Task = TypeVar("Task")
Result = TypeVar("Result")
PARENT = "FASTUIAT_PARENT"
"""In a child's environment: the process that it ends with."""
PR_SET_PDEATHSIG = 1
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """In a command that `Children` or torchrun started: end with its starter, by kill -9 too.

    To be called first. Linux sends the signal; it does so when the thread ends that started the
    child, which waits for the child.
    """
    told = os.environ.pop(PARENT, None)  # not for what this process starts itself
    if told is None and not is_started_by_torchrun():
        return
    parent = os.getppid() if told is None else int(told)
    linux = sys.platform == "linux"
    if not linux or ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        threading.Thread(target=watch_parent, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it ended before
        os.kill(os.getpid(), signal.SIGKILL)


def watch_parent(parent: int, seconds: float = 1.0) -> None:
    """What PR_SET_PDEATHSIG does, where there is none: an orphan is somebody else's child."""
    while os.getppid() == parent:
        time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


class Children:
    """At most `jobs` commands at a time; several share the cores and are quiet.

    Their output goes where ours goes, or to `stdout` as Popen takes it.
    """

    def __init__(self, jobs: int, *, stdout: int | None = None) -> None:
        self.jobs, self.stdout = jobs, stdout
        self.alive: set[subprocess.Popen[bytes]] = set()
        self.stopping = False
        # A second signal runs `stop` inside `stop`.
        self._lock = threading.RLock()

    def run(self, *words: str) -> None:
        """`fastuiat WORDS…` to its end; UserError where it fails."""
        environment, quiet = {**os.environ, PARENT: str(os.getpid())}, []
        if self.jobs > 1:
            most = int(environment.get("OMP_NUM_THREADS") or cores())
            environment["OMP_NUM_THREADS"] = str(max(1, min(most, cores()) // self.jobs))
            quiet = ["--quiet"]
        with self._lock:
            if self.stopping:
                raise KeyboardInterrupt
            process = subprocess.Popen(
                [sys.executable, "-m", "fastuiat", *words, *quiet],
                stdout=self.stdout,
                env=environment,
            )
            self.alive.add(process)
        try:
            code = process.wait()
        finally:
            with self._lock:
                self.alive.discard(process)
        if self.stopping or code in STOPPED:
            self.stop()  # here, for this thread's next task may come before the main thread does
            raise KeyboardInterrupt
        if code:
            raise UserError(f"fastuiat {words[0]} ended with exit code {code}")

    def stop(self, signum: int = 0, frame: FrameType | None = None) -> None:
        """Ask all of them to stop, which they do once their state is saved; begin no other."""
        with self._lock:
            self.stopping = True
            for process in self.alive:
                process.terminate()

    def each(
        self, tasks: Iterable[Task], work: Callable[[Task], Result]
    ) -> Iterator[tuple[Task, Result | UserError]]:
        """(task, what `work` made of it, or the UserError that it raised) as each is done.

        KeyboardInterrupt, after all have stopped, on Ctrl-C, SIGTERM or where one was stopped.
        """
        before = signal.signal(signal.SIGTERM, self.stop)
        try:
            with ThreadPoolExecutor(self.jobs) as pool:
                futures = {pool.submit(work, task): task for task in tasks}
                try:
                    for future in as_completed(futures):
                        error = future.exception()
                        if isinstance(error, UserError):
                            yield futures[future], error
                        else:
                            yield futures[future], future.result()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    self.stop()
                    raise
        finally:
            signal.signal(signal.SIGTERM, before)
