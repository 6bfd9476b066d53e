"""`fastuiat` commands that cost no start: children of a process that has imported it already.

    with Forks() as forks:
        process = forks.start("train", …, folder=folder, moment=Moment("file", 7))

A real process each, with its own exit code and output, to be signalled and waited for like any.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

from tests.campaign.moments import Moment, stop_at

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
IMPORTED = (
    "fastuiat.cli",
    "fastuiat.training.run",
    "fastuiat.evaluation",
    "fastuiat.evaluation.autoattack",
    "fastuiat.reproduce",
    "fastuiat.commands.settings_file",
    "fastuiat.fast.allocator",
    "importlib.resources.readers",
    "pyautoattack",
    "rich._emoji_codes",
    "sklearn.datasets.data",
    "sklearn.datasets.descr",
    "torch.utils.serialization.config",
    "typeguard",
    "tyro._backends._argparse_formatter",
    "tyro._backends._tyro_backend",
    "tyro.constructors._struct_spec_dataclass",
)
"""What commands import as they come to it. Nothing is computed: threads do not survive a fork."""
SLEEP = 0.005
PATIENCE = 240.0
"""Seconds after which a process that has not ended hangs."""
CAPABILITIES = 0x20080522
"""Of capset(2), the version of 64 bits."""
OVERRIDING = 0b110
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""


@dataclass
class Process:
    """A command under way, or ended with `code` (-9 where SIGKILL ended it)."""

    pid: int
    folder: Path
    number: int
    code: int | None = None

    @property
    def said(self) -> str:
        return self.output(1).read_text(errors="replace")

    @property
    def complained(self) -> str:
        return self.output(2).read_text(errors="replace")

    def output(self, descriptor: int) -> Path:
        return self.folder / f".process-{self.number}.{descriptor}"

    def send(self, signum: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, signum)

    def poll(self) -> int | None:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def ended(self, seconds: float = PATIENCE) -> bool:
        """Wait so long for its end, letting go on who stands; killed where it does not come.

        Ranks come to the same moment, each in its time.
        """
        until = time.monotonic() + seconds
        while self.poll() is None:
            self.let_go_on()
            if time.monotonic() > until:
                for pid in (self.pid, *below(self.pid)):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                self.ended()
                return False
            time.sleep(SLEEP)
        return True

    def let_go_on(self) -> None:
        """Whoever of its processes stands at a moment."""
        for pid in (self.pid, *below(self.pid)):
            if state_of(pid)[0] == "T":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def ended_within(self, seconds: float) -> bool:
        """Wait so long at most, and leave it alone."""
        until = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < until:
            time.sleep(SLEEP)
        return self.code is not None

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


def below(pid: int) -> list[int]:
    """Its children and theirs, as long as it lives."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *below(child)]
    return found


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
    """Who still lives in the folder after so long; they are killed, and all are waited for."""
    folder = folder.resolve()
    seen: set[int] = set()
    until = time.monotonic() + seconds
    while (left := living_in(folder)) and time.monotonic() < until:
        seen |= {*left}
        time.sleep(SLEEP)
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for pid in seen:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    return left


class Forks:
    """Starts commands. Those whose parents end become this process's children."""

    def __init__(self) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.started = 0
        own, theirs = socket.socketpair()
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.campaign.forks", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            cwd=Path(__file__).parents[2],
        )
        theirs.close()
        self.channel = own.makefile("rw")

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *exception: object) -> None:
        self.channel.close()
        self.server.wait()

    def start(
        self,
        *words: object,
        folder: Path,
        moment: Moment | None = None,
        fresh: bool = False,
        module: str = "fastuiat",
        largest: int | None = None,
        bound: bool = False,
        counts: Path | None = None,
    ) -> Process:
        """`fastuiat WORDS…` in the folder, or another module that starts it.

        It stops itself at the `moment`; writes how many of each it had to `counts`. As a `fresh`
        one it is Python's own, and has no moments. No file may be larger than `largest` bytes; a
        `bound` one heeds the permissions of files, as root does not.
        """
        self.started += 1
        order = {
            "words": [str(word) for word in words],
            "folder": str(folder),
            "number": self.started,
            "moment": moment and asdict(moment),
            "fresh": fresh,
            "module": module,
            "largest": largest,
            "bound": bound,
            "counts": counts and str(counts),
        }
        self.channel.write(json.dumps(order) + "\n")
        self.channel.flush()
        return Process(int(self.channel.readline()), folder, self.started)

    def run(self, *words: object, folder: Path, seconds: float = PATIENCE, **how: Any) -> Process:
        """`start`, to its end."""
        process = self.start(*words, folder=folder, **how)
        process.ended(seconds)
        return process


class ForkedPopen:
    """`Popen([python, "-m", "fastuiat", …])` by a fork, for commands that start commands."""

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
        assert [python, *words[:2]] == [sys.executable, "-m", "fastuiat"]
        self.args, self.returncode = args, None
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            if start_new_session:
                os.setsid()
            for own, wanted in ((1, stdout), (2, stderr)):
                if wanted == subprocess.DEVNULL:
                    wanted = os.open(os.devnull, os.O_WRONLY)
                if isinstance(wanted, int):
                    os.dup2(wanted, own)
            if env is not None:
                os.environ.clear()
                os.environ.update(env)
            leave(called(words[2:]))

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


def as_started() -> None:
    """What a new process has, and a forked one has from its parent."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.disable(logging.NOTSET)


def called(words: list[str]) -> int:
    """The exit code of `fastuiat WORDS…`, done here; what Python says of an error is said."""
    from fastuiat import cli

    as_started()
    sys.argv = [str(Path(cli.__file__).with_name("__main__.py")), *words]
    try:
        cli.main(words)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


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
    atexit._run_exitfuncs()
    os._exit(code)


def child(order: dict[str, Any]) -> int:
    """The exit code of what was asked for; in a process of its own."""
    os.setpgid(0, 0)
    os.chdir(order["folder"])
    for descriptor in (1, 2):
        name = f".process-{order['number']}.{descriptor}"
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.dup2(file, descriptor)
        os.close(file)
    as_started()
    if order["largest"] is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["largest"], order["largest"]))
    if order["bound"]:
        bind_to_permissions()
    if order["fresh"]:
        os.execv(sys.executable, [sys.executable, "-m", order["module"], *order["words"]])
    fork_what_is_started()
    counts = order["counts"] and Path(order["counts"])
    stop_at(order["moment"] and Moment(**order["moment"]), Path(order["folder"]), counts)
    if order["module"] != "fastuiat":
        from torch.distributed.run import main

        main(order["words"])
        return 0
    return called(order["words"])


def orders(channel: Any) -> Iterator[dict[str, Any]]:
    while line := channel.readline():
        yield json.loads(line)


def serve(descriptor: int) -> int:
    """Fork a child for each order, twice: its parent ends, and it becomes the campaign's own."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    connection = socket.socket(fileno=descriptor)
    channel = connection.makefile("rw")
    for order in orders(channel):
        (begin, begins), (told, tells) = os.pipe(), os.pipe()
        between = os.fork()
        if between == 0:
            pid = os.fork()
            if pid == 0:
                for one in (begins, told, tells, connection.detach()):
                    os.close(one)
                os.read(begin, 1)  # until it is the campaign's
                os.close(begin)
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
                leave(child(order))
            os.write(tells, f"{pid}\n".encode())
            os._exit(0)
        os.waitpid(between, 0)
        connection.sendall(os.read(told, 20))
        for one in (begin, begins, told, tells):
            os.close(one)
    return 0


if __name__ == "__main__":
    sys.exit(serve(int(sys.argv[1])))
