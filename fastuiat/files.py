"""Files that are written whole or not at all, and what they hold in one number."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from fastuiat import sealed
from fastuiat.bounds import MOST_TEXT, plain_bytes


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Call `write(file)` on a temporary file beside `path`, fsync, rename over `path`.

    Whatever is raised meanwhile is passed on; `path` is then as it was. OSError where a device or
    a pipe stands there, which a superuser's rename would replace.
    """
    refuse_special(path)
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:  # readable by whom the umask says, unlike a mkstemp
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # what is raised says more
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def refuse_special(path: Path) -> None:
    """OSError where something stands that is no file, folder or link."""
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
            raise OSError(errno.EPERM, "it is no plain file", str(path))


TEMPORARY = re.compile(r"\..+-[0-9a-f]{8}")
"""What `write_atomically` calls a file until it is whole."""


def remove_unfinished(folder: Path) -> list[str]:
    """Remove what killed processes left of `write_atomically` in a folder; returns the names.

    Only for who is sure that nobody else writes there.
    """
    removed = []
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if TEMPORARY.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                path.unlink(missing_ok=True)
                removed.append(path.name)
    return removed


def write_bytes(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON, with its checksum."""
    write_bytes(path, sealed.document(value))


def json_in(path: Path) -> Any:
    """What a file of JSON says; OSError, or ValueError where it is none or is damaged."""
    return sealed.unsealed(plain_bytes(path, MOST_TEXT))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """One process at a time, so that two runs that start together write the file once.

    BlockingIOError where another has it, unless it is to `wait`.
    """
    # Who may read the lock of another user's file may take it. Nothing is made behind a link.
    flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)
