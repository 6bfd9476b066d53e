"""Fetches a published file: whole or not at all, and never hanging on a dead network."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import http.client
import os
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.progress import wrap_file

from fastuiat.config import UserError
from fastuiat.files import write_atomically

_TIMEOUT_S = 10
_CHUNK = 1 << 20


def fetch(url: str, path: Path, md5: str | None = None) -> Path:
    """Downloads `url` to `path` through a temporary file beside it.

    UserError, naming the URL and the place for the file, if anything fails.
    """
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as response:
            path.parent.mkdir(parents=True, exist_ok=True)
            length = int(response.headers.get("Content-Length") or 0)
            what = f"downloading {path.name}"
            with only_one(path.parent) as alone:
                if path.exists():  # another process was the first
                    return path
                if alone:
                    remove_unfinished(path)
                write_atomically(path, lambda file: _copy(response, file, length, md5, what))
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise UserError(
            f"cannot download {url} ({error}): get the file yourself and place it at {path}"
        ) from error
    return path


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[bool]:
    """One process at a time downloads or unpacks in a folder; False where that cannot be had."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            alone = True
        except OSError:  # a network's file system may not lock folders
            alone = False
        yield alone
    finally:
        os.close(descriptor)


def remove_unfinished(path: Path) -> None:
    """Remove what killed processes left of a file or folder that they wrote beside its place."""
    for left in path.parent.glob(f".{glob.escape(path.name)}-*"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _copy(response: Any, file: IO[bytes], length: int, md5: str | None, description: str) -> None:
    digest, received = hashlib.md5(usedforsecurity=False), 0
    console = Console(stderr=True)
    with wrap_file(response, length, description=description, console=console) as source:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            received += file.write(chunk)
    if length and received != length:
        raise ValueError(f"{received} of {length} bytes arrived")
    if md5 is not None and digest.hexdigest() != md5:
        raise ValueError("its checksum is not the published one")
