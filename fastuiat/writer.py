"""One writer per folder: a lock that the kernel lets go of however its holder ends.

The lock is a flock(2) on a file inside the folder, which names the holder. It is of the open file,
so children that inherited it would keep it: exec closes it, and a forked child closes it at once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shlex
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from fastuiat.bounds import parsed_json, plain_text
from fastuiat.config import UserError
from fastuiat.files import remove_unfinished

LOCK = ".lock"
UNSUPPORTED = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""What a file system without locks answers."""
WITHIN = ("checkpoints", "eval", "report-figures")
"""Folders of a run that are written to; they go with its lock."""
WRITTEN = (*WITHIN, "config.json", "environment.json", "metrics.jsonl", "tensorboard")
SECONDS_TO_SIGN = 1.0
"""A holder writes its name right after it has the lock."""

_held: dict[int, tuple[Path, int]] = {}
"""By descriptor: the locked folder, and the thread that holds it."""
_places: dict[str, os.stat_result] = {}
"""Which folder of the disk each locked one is, by its absolute name."""
_forks_watched = False


def _let_go_in_child() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


def _watch_forks() -> None:
    global _forks_watched
    if not _forks_watched:
        os.register_at_fork(after_in_child=_let_go_in_child)
        _forks_watched = True


def command_line() -> str:
    """What this process was called with, as it would be typed."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name
    return shlex.join([name, *sys.argv[1:]])[:200]


def holder_of(path: Path) -> str:
    """Who holds the lock, in words, by what stands in its file."""
    until = time.monotonic() + SECONDS_TO_SIGN
    while True:
        try:
            told = parsed_json(plain_text(path, 1 << 16))
            words = f"{told['command']} (process {told['process']} on {told['host']})"
            return "".join(c for c in words if c.isprintable())
        except FileNotFoundError:
            return "a process that has just ended"
        except (OSError, ValueError, KeyError, TypeError):
            if time.monotonic() > until:
                return "another process"
        time.sleep(0.02)


def _opened(path: Path) -> int:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | flags, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        # Of another user in a shared folder: it can be locked all the same.
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | flags)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the file is still the one of that name: a holder removes it when it is done."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(descriptor)
    return (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino)


def _locked(folder: Path, say: Callable[[str], object], advice: str) -> int:
    """The descriptor of the folder's lock, taken; UserError that names who has it."""
    path = folder / LOCK
    while True:
        try:
            descriptor = _opened(path)
        except OSError as error:
            why = "a link" if error.errno == errno.ELOOP else error.strerror
            raise UserError(f"{path} cannot be opened for writing: {why}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in UNSUPPORTED:
                say(f"{folder} lies where files cannot be locked: let nothing else write there")
                return descriptor
            os.close(descriptor)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise UserError(f"{folder} is being written by {holder_of(path)}: {advice}") from None
        if _is_at(descriptor, path):
            status = os.fstat(descriptor)
            if stat.S_ISREG(status.st_mode) and status.st_nlink == 1:
                return descriptor
            os.close(descriptor)
            raise UserError(f"{path} is somebody's file under another name, or none: remove it")
        os.close(descriptor)


def _sign(descriptor: int) -> None:
    told = {"command": command_line(), "process": os.getpid(), "host": socket.gethostname()}
    with contextlib.suppress(OSError):  # of another user, or a full disk: the lock holds anyway
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(told).encode(), 0)


def refuse_links(folder: Path, names: Collection[str] = WRITTEN) -> None:
    """UserError where what is written inside the folder would end up outside it."""
    home = folder.resolve()
    for name in names:
        path = folder / name
        if path.is_symlink() and home not in Path(os.path.realpath(path)).parents:
            raise UserError(
                f"{path} is a link to {os.readlink(path)}, outside the folder: nothing is written "
                "through it; put a file or folder of its own there"
            )


def is_run_folder(folder: Path) -> bool:
    """Whether a run is in it, or what is left of one."""
    return (folder / "config.json").is_file() or (folder / "checkpoints").is_dir()


@contextlib.contextmanager
def only_writer(
    folder: Path, *, advice: str, say: Callable[[str], object] | None = None
) -> Iterator[None]:
    """Make the folder where it is missing, and be the only one who writes in it meanwhile.

    What killed predecessors left of unfinished files is removed. A thread that holds the folder may
    ask again. UserError of one line where another process or thread holds it (`advice` says what to
    do then), where it cannot be written, or where links lead out of it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}") from error
    place = folder.resolve(), threading.get_ident()
    if place in _held.values():
        yield
        return
    refuse_links(folder)
    _watch_forks()
    descriptor = _locked(folder, say or (lambda note: None), advice)
    _held[descriptor] = place
    _places[os.path.abspath(folder)] = os.stat(folder)
    try:
        _sign(descriptor)
        for part in (folder, *(folder / name for name in WITHIN)):
            remove_unfinished(part)
        yield
    finally:
        _places.pop(os.path.abspath(folder), None)
        if _held.pop(descriptor, None):  # a forked child has nothing to let go of
            with contextlib.suppress(OSError):
                if _is_at(descriptor, folder / LOCK):  # not another's, where the folder is another
                    (folder / LOCK).unlink()
            os.close(descriptor)


def refuse_replaced(folder: Path) -> None:
    """UserError where the folder that this process holds is no longer the one of that name, or
    what is written in it is a link out of it now.

    What stands there may be another writer's.
    """
    place = _places.get(os.path.abspath(folder))
    if place is None:
        return
    with contextlib.suppress(OSError):
        if os.path.samestat(place, os.stat(folder)):
            return refuse_links(folder, WITHIN)  # a log is written anew where it was replaced
    raise UserError(f"{folder} was removed or renamed meanwhile: put it back, and go on")
