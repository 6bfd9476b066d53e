"""The process behind tests/forks.py: it has imported all, and forks a child for each order.

python -m tests.fork_server DESCRIPTOR      # of a socket: a line of JSON answers each
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import json
import logging
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from tests.forks import Order
from tests.imported import import_all
from tests.moments import stop_at
from tests.processes import SLEEP, exit_code, memory

PR_SET_PDEATHSIG = 1
STOPPING = (signal.SIGTERM, signal.SIGINT)
CAPABILITIES = 0x20080522
"""Of capset(2), the version of 64 bits."""
OVERRIDING = 0b110
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""


class ForkedPopen:
    """`Popen([python, "-m", "fastuiat", …])`, or of a script, by a fork: for what starts them."""

    def __init__(
        self,
        args: Any,
        *,
        stdout: int | None = None,
        stderr: int | None = None,
        env: dict[str, str] | None = None,
        start_new_session: bool = False,
        **_: Any,
    ) -> None:
        python, *words = (word for word in args if word != "-u")  # torchrun's
        assert python == sys.executable
        self.args, self.returncode = args, None
        sys.stdout.flush()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)  # for its own handlers
        self.pid = os.fork()
        if self.pid:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        else:
            if start_new_session:
                os.setsid()
            for own, wanted in ((1, stdout), (2, stderr)):
                if wanted == subprocess.DEVNULL:
                    wanted = os.open(os.devnull, os.O_WRONLY)
                if isinstance(wanted, int):
                    os.dup2(wanted, own)
            if env is not None:
                be_in(env)
            leave(begun(*words[1:] if words[0] == "-m" else words))

    def poll(self) -> int | None:
        return self._waited(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        until = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(SLEEP)
        assert self.returncode is not None
        return self.returncode

    def _waited(self, flags: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, flags)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def be_in(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def as_started() -> None:
    """What a new process has, and a forked one has from its parent."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    logging.disable(logging.NOTSET)


def begun(module: str, *words: str) -> int:
    """The exit code of `python -m MODULE WORDS…`, or of a script, done here; what Python says of an
    error is said."""
    as_started()
    if module == "fastuiat":
        from fastuiat import cli

        sys.argv = [str(Path(cli.__file__).with_name("__main__.py")), *words]
        return exit_code(lambda: cli.main([*words]))
    if module == "torch.distributed.run":
        from torch.distributed.run import main

        return exit_code(lambda: main([*words]))
    assert module.endswith(".py"), module
    sys.argv = [module, *words]
    sys.path.insert(0, str(Path(module).parent))
    return exit_code(lambda: runpy.run_path(module, run_name="__main__"))


def fork_what_is_started() -> None:
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    from fastuiat import children

    children.subprocess = SimpleNamespace(**{**vars(subprocess), "Popen": ForkedPopen})
    subprocess_handler.Popen = ForkedPopen


def bind_to_permissions() -> None:
    """Have root obey the permissions of files and folders that belong to it."""
    if os.geteuid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(CAPABILITIES, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 bits
    assert libc.capget(header, sets) == 0
    for i in range(3):
        sets[i] &= ~OVERRIDING
    assert libc.capset(header, sets) == 0, ctypes.get_errno()


def leave(code: int) -> NoReturn:
    """As at the end of Python, but for its tidying up, which would copy all that is shared."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # there Python itself speaks of Ctrl-C
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    atexit._run_exitfuncs()
    os._exit(code)


def limit(which: int, most: int) -> None:
    resource.setrlimit(which, (most, most))


def child(order: Order) -> int:
    """The exit code of what was asked for; in a process of its own."""
    os.setpgid(0, 0)
    os.chdir(order.folder)
    for descriptor in (1, 2):
        name = f"{order.standard}.{descriptor}"
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o666)
        os.dup2(file, descriptor)
        os.close(file)
    as_started()
    if order.environment is not None:
        be_in(order.environment)
    if order.largest is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        limit(resource.RLIMIT_FSIZE, order.largest)
    if order.bound:
        bind_to_permissions()
    if order.fresh:
        os.execv(sys.executable, [sys.executable, "-m", order.module, *order.words])
    if order.memory is not None:
        limit(resource.RLIMIT_AS, memory()[0] + (order.memory << 20))
    fork_what_is_started()
    stop_at(order.moment, Path(order.folder), order.counts and Path(order.counts))
    return begun(order.module, *order.words)


def serve(descriptor: int) -> int:
    """Fork a child for each order, twice: its parent ends, and it becomes the asker's own."""
    import_all()
    gc.freeze()
    connection = socket.socket(fileno=descriptor)
    channel = connection.makefile("rw")
    while line := channel.readline():
        order = Order.read(line)
        (begin, begins), (told, tells) = os.pipe(), os.pipe()
        between = os.fork()
        if between == 0:
            pid = os.fork()
            if pid == 0:
                for one in (begins, told, tells, connection.detach()):
                    os.close(one)
                os.read(begin, 1)  # until it is the asker's
                os.close(begin)
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                leave(child(order))
            os.write(tells, f"{pid}".encode())
            os._exit(0)
        os.waitpid(between, 0)
        answer = {"pid": int(os.read(told, 20)), "bare": memory()[1] / (1 << 20)}
        connection.sendall(json.dumps(answer).encode() + b"\n")
        for one in (begin, begins, told, tells):
            os.close(one)
    return 0


if __name__ == "__main__":
    sys.exit(serve(int(sys.argv[1])))
