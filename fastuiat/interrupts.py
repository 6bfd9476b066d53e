"""Requests to stop: what Ctrl-C does while Python imports, and how a run says that it obeyed."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Meanwhile the system ends this process at Ctrl-C (status 130 in a shell).

    Importing takes seconds in which nothing is begun that could be kept, and nobody is there to
    catch Python's KeyboardInterrupt. What ignores Ctrl-C, or answers it in another way, goes on so.
    """
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is written."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum
