"""Runs a command and ends it, all of it, as soon as whoever asked for it is gone.

    python keeper.py SIGNAL GRACE COMMAND …     # a file, not a module: it must start at once

The asker holds the other end of standard input. When that closes, by `kill -9` of the asker too,
the command gets SIGNAL, GRACE seconds later its whole process group SIGKILL. A keeper has a session
of its own, so that what kills the asker's group leaves it time for this.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

POLL = 0.1


def keep(stop: int, grace: float, command: list[str]) -> int:
    """The command's exit code, negative for a signal, as Popen says it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        while process.poll() is None and not select.select([0], [], [], POLL)[0]:
            pass
        if process.poll() is None:
            process.send_signal(stop)
            until = time.monotonic() + grace
            while process.poll() is None and time.monotonic() < until:
                time.sleep(POLL)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it left behind holds the GPU's memory
    return process.wait()


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # the asker gets it, and closes; a child has none
    code = keep(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:])
    sys.exit(code if code >= 0 else 128 - code)
