"""Whether a file too large to be read at each start is still what was written: read once, and known
from then on by its size, time and inode, which stand in a file beside it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from fastuiat.files import json_in, sha256_of, write_json


def _identity(path: Path) -> dict[str, int]:
    status = os.stat(path)
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}


def _beside(path: Path) -> Path:
    return path.with_suffix(".checked")


def remember(path: Path, sha256: str) -> None:
    """That the file as it lies there has this SHA-256; nothing where the folder is not ours."""
    with contextlib.suppress(OSError):
        write_json(_beside(path), _identity(path) | {"sha256": sha256})


def holds(path: Path, sha256: str) -> bool:
    """Whether the file has this SHA-256; it is read where that is not known of it as it lies there.

    A byte that a disk loses without a write moves no time: what is read of a sample shows that.
    """
    try:
        if json_in(_beside(path)) == _identity(path) | {"sha256": sha256}:
            return True
    except (OSError, ValueError):
        pass
    if sha256_of(path) != sha256:
        return False
    remember(path, sha256)
    return True
