"""The regular files of a tar archive, gzipped or not, whatever its headers claim."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fastuiat.bounds import Unpacked, opened

LARGEST = 1 << 28
"""Bytes of a file; the largest that is published has 155 MB."""
LARGEST_IN_ALL = 1 << 30
MOST_FILES = 1000


def files_in(archive: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, content) of each, in order; content is read before the next one is asked for.

    Links, pipes and devices are passed over. tarfile.TarError, EOFError, OSError or zlib.error on
    what is damaged, or larger than archives of data sets are: nothing is read beyond that.
    """
    with opened(archive) as packed:
        is_gzip = packed.read(2) == b"\x1f\x8b"
        packed.seek(0)
        stream = gzip.GzipFile(fileobj=packed) if is_gzip else packed
        bounded: Any = Unpacked(stream, LARGEST_IN_ALL, LARGEST)
        with tarfile.open(fileobj=bounded, mode="r:") as tar:
            for count, member in enumerate(tar):
                if count == MOST_FILES or member.size > LARGEST:
                    raise tarfile.ReadError("it holds more than archives of data sets do")
                content = tar.extractfile(member) if member.isreg() else None
                if content is not None:
                    yield member.name, content
