"""What others publish of a data set, and whether the files that lie here are that."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastuiat.config import UserError
from fastuiat.data.download import fetch
from fastuiat.data.fingerprint import Fingerprint, content_sum
from fastuiat.file_kinds import kind_of

_CHUNK = 1 << 20


@dataclass(frozen=True)
class PublishedFile:
    """A file that others publish: where it is fetched from, and its place in the data folder."""

    url: str
    path: str
    md5: str | None = None
    members: tuple[tuple[str, str], ...] = ()
    """Of an archive: where its members lie once it is unpacked, each with its MD5."""

    def fetched(self, data_dir: Path) -> Path:
        """Its path, downloaded where it is not there; UserError that names URL and place."""
        path = data_dir / self.path
        if path.exists():
            return plain_file(path)
        return fetch(self.url, path, self.md5)

    def differing(self, data_dir: Path) -> Path | None:
        """Of what it is read from here, the first file that has not its published MD5."""
        sums = [(data_dir / path, md5) for path, md5 in self.members]
        if not any(path.parent.is_dir() for path, _ in sums):
            sums = [(data_dir / self.path, self.md5)] if self.md5 else []
        return next((path for path, md5 in sums if md5_of(path) != md5), None)


class FileContent(NamedTuple):
    """Which images and labels of a split come from a file, and their `content_sum`."""

    path: str
    images: slice
    labels: slice
    sha256: str


@dataclass(frozen=True)
class PublishedContent:
    """What a split holds, however its files are packed: `Fingerprint.sha256`, and that by file."""

    n: int
    sha256: str
    files: tuple[FileContent, ...]

    def differing(self, images: np.ndarray, labels: np.ndarray) -> str:
        """The file whose content is another; for a split of another sum."""
        for file in self.files:
            if content_sum(images[file.images], labels[file.labels]) != file.sha256:
                return file.path
        return self.files[-1].path


def plain_file(path: Path) -> Path:
    """The path itself; UserError where something else than a file stands there, such as a pipe."""
    if path.exists() and not path.is_file():
        raise UserError(f"{path} is {kind_of(path)}, not a file")
    return path


def what_else(path: Path, *expected: str) -> str:
    """`: it is a web page (HTML)`, for a message about a file that is not what its name says."""
    kind = kind_of(path)
    return f": it is {kind}" if kind and not kind.startswith(expected) else ""


def md5_of(path: Path) -> str:
    """In hexadecimal; made once of a file that stays as it is."""
    try:
        status = path.stat()
        return _md5(path, (status.st_ino, status.st_size, status.st_mtime_ns))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


@functools.lru_cache(maxsize=64)
def _md5(path: Path, identity: tuple[int, int, int]) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def what_is_checked(
    data_dir: Path,
    files: Iterable[PublishedFile],
    content: PublishedContent | None,
    found: Fingerprint,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    unchecked: bool,
) -> str | None:
    """`Fingerprint.checked` of a split that was read from a folder.

    By its content where that is known, which costs nothing beside the fingerprint, else by the MD5
    of its files. UserError that names a file which differs, unless `unchecked` allows it.
    """
    path: Path | str
    if content:
        if found.sha256 == content.sha256:
            return "published content"
        name = content.differing(images, labels)
        path = data_dir / name
        path = path if path.exists() else f"{name} in {data_dir}"  # it is packed
        size = "" if found.n == content.n else f" ({found.n:,} images, not {content.n:,})"
    else:
        summed = [file for file in files if file.md5 or file.members]
        if not summed:
            return None
        differing = next(filter(None, (file.differing(data_dir) for file in summed)), None)
        if differing is None:
            return "published md5"
        path, size = differing, ""
    if not unchecked:
        raise UserError(
            f"{path} is not what is published of {found.name}{size}: get it anew, or use it as it "
            "is with --unchecked-data"
        )
    return "unchecked"
