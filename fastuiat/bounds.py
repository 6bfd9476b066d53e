"""Bounds on what a file that somebody else wrote can take: memory, time, and what it is at all."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import resource
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

MOST_TEXT = 1 << 28
"""Bytes of a text that is read whole: a log of 2,000 epochs, step by step, has a fifth of it."""
MOST_LOG = 1 << 32
"""Bytes of a log that is gone on with."""
LONGEST_LINE = 1 << 20
"""Bytes of a log's line, of which none has so many."""
MOST_DIRECTORY = 1 << 24
"""Bytes of a zip's table of contents, some 200,000 entries; a checkpoint has hundreds."""
MOST_UNPACKED = 1 << 26
"""Bytes that a packed part may always have, however small it is."""
MOST_PACKED = 100
"""How many times smaller than its content a larger one may be; images are packed two- or
threefold, and drawings tenfold."""


def memory() -> int:
    """Bytes that this process can ever have: the machine's, or what it is limited to."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return physical if limit == resource.RLIM_INFINITY else min(physical, limit)


def packs_too_much(packed: int, size: int) -> bool:
    """Whether so many bytes were packed into so few that the file is made to fill the memory."""
    return size > max(MOST_UNPACKED, MOST_PACKED * packed)


def opened(path: Path) -> IO[bytes]:
    """A plain file, for reading; OSError on anything else, whose other end nothing waits for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no plain file", str(path))
    return open(descriptor, "rb")


def lines_in(path: Path) -> Iterator[bytes]:
    """The lines of a plain file, each up to LONGEST_LINE; OSError where it is none, or too large
    for a log."""
    with opened(path) as file:
        if os.fstat(file.fileno()).st_size > MOST_LOG:
            raise OSError(errno.EFBIG, f"it is above {MOST_LOG:,} bytes", str(path))
        while line := file.readline(LONGEST_LINE):
            yield line


def opened_own(path: Path, flags: int) -> int:
    """The descriptor of a file that only we write, made where it is not there.

    A link of any kind in its place is no file of ours: OSError on a symbolic one, and another name
    of somebody's file gives way to a new one.
    """
    flags |= os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o666)
    if os.fstat(descriptor).st_nlink < 2:
        return descriptor
    os.close(descriptor)
    path.unlink()
    return os.open(path, flags | os.O_EXCL, 0o666)


def plain_bytes(path: Path, most: int) -> bytes:
    """What is in a plain file; OSError where it is none, or has more bytes."""
    with opened(path) as file:
        content = file.read(min(most, os.fstat(file.fileno()).st_size) + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it is above {most:,} bytes", str(path))
    return content


def plain_text(path: Path, most: int = MOST_TEXT) -> str:
    """The UTF-8 text of a plain file; OSError where it has more bytes, ValueError where others."""
    return plain_bytes(path, most).decode()


def own_copy(path: Path) -> None:
    """Give a file that has other names too, which may be somebody's, a content of its own here."""
    with contextlib.suppress(FileNotFoundError):
        if os.stat(path, follow_symlinks=False).st_nlink > 1:
            content = plain_bytes(path, MOST_LOG)
            path.unlink()
            with open(path, "xb") as file:
                file.write(content)


def parsed_json(text: str) -> Any:
    """What a JSON document says; ValueError also on one that is nested without end."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class _ReadABit:
    """A file that refuses to be read in large pieces."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, count: int = -1) -> bytes:
        if count < 0:
            place = self._file.tell()
            count = self._file.seek(0, os.SEEK_END) - place
            self._file.seek(place)
        if count > MOST_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory claims {count:,} bytes")
        return self._file.read(count)


def zip_of(file: IO[bytes]) -> zipfile.ZipFile:
    """The zip archive in an open file, whose end says how much of it a ZipFile reads at once.

    BadZipFile on what is none, or claims a table of contents above MOST_DIRECTORY.
    """
    archive = zipfile.ZipFile(_ReadABit(file))
    archive.fp = file
    return archive


class Unpacked(io.RawIOBase):
    """The first `most` bytes of a packed stream, up to `piece` at once; OSError beyond."""

    def __init__(self, stream: Any, most: int, piece: int) -> None:
        self._stream, self._most, self._piece = stream, most, piece

    def read(self, count: int = -1) -> bytes:
        if not 0 <= count <= self._piece:
            raise OSError(errno.EFBIG, f"a part of it claims {count:,} bytes")
        self._refuse(self.tell() + count)
        content: bytes = self._stream.read(count)
        return content

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        assert whence == os.SEEK_SET
        self._refuse(place)
        return int(self._stream.seek(place))

    def tell(self) -> int:
        return int(self._stream.tell())

    def seekable(self) -> bool:
        return True

    def _refuse(self, place: int) -> None:
        if place > self._most:
            raise OSError(errno.EFBIG, f"it unpacks to more than {self._most:,} bytes")
