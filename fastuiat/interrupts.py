"""Requests to stop: Ctrl-C while Python imports or ends, and how a run says that it obeyed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


def end_at_once() -> bool:
    """From now on the system ends this process at Ctrl-C (status 130 in a shell); whether that is
    new. What ignores Ctrl-C, or answers it in a way of its own, goes on so."""
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return False
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return True


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Meanwhile `end_at_once`: importing takes seconds in which nothing is begun that could be
    kept, and nobody is there to catch Python's KeyboardInterrupt."""
    is_new = end_at_once()
    try:
        yield
    finally:
        if is_new:
            signal.signal(signal.SIGINT, signal.default_int_handler)


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is written."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
