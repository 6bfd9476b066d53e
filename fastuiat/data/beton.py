"""Training images as an FFCV file (.beton), written once and never trusted unchecked."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastuiat.config import UserError
from fastuiat.files import write_json

_WRITERS = 4
_HEADROOM = 64 << 20
"""Bytes beyond the images themselves: metadata and a half-filled page per writer."""


def fingerprint(images: np.ndarray, labels: np.ndarray) -> str:
    """sha256 over shape and content of images uint8 (N, H, W, 3) and labels int64 (N,)."""
    digest = hashlib.sha256(repr(images.shape).encode())
    digest.update(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()


def prepare(images: np.ndarray, labels: np.ndarray, cache_dir: str | Path, name: str) -> Path:
    """The .beton of these images in `cache_dir`, written unless it is there already.

    Its name carries the fingerprint, so another source gets another file. UserError if the file
    there is damaged, OSError if it cannot be written.
    """
    expected = fingerprint(images, labels)
    path = Path(cache_dir) / f"{name}-{expected[:12]}.beton"
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.with_suffix(".lock")):
        if path.exists():
            check(path, expected)
        else:
            _write(path, images, labels, expected)
    return path


def check(path: Path, expected: str) -> None:
    """UserError unless `path` is, byte for byte, what was written for fingerprint `expected`."""
    again = f"delete {path} and it is prepared again"
    try:
        written = json.loads(_sidecar(path).read_text())
        fits = written["fingerprint"] == expected
        whole = written["bytes"] == path.stat().st_size and written["sha256"] == _sha256(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} was not written by fastuiat: {again}") from error
    if not fits:
        raise UserError(f"{path} was made from other images: {again}")
    if not whole:
        raise UserError(f"{path} is truncated or was changed: {again}")


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time, so that two runs that start together write the file once."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Samples:
    """(image, label, index), as FFCV's writer asks for them."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, int]:
        return self.images[index], int(self.labels[index]), int(index)


def _write(path: Path, images: np.ndarray, labels: np.ndarray, source: str) -> None:
    from fastuiat.data.ffcv_loader import torch_threads_kept

    # FFCV's writer waits forever for a child that ran out of space: ask before it starts.
    free, needed = shutil.disk_usage(path.parent).free, images.nbytes + _HEADROOM
    if free < needed:
        raise OSError(f"{path.parent} has {free >> 20} MB free, {needed >> 20} MB are needed")
    with torch_threads_kept():
        from ffcv.fields import IntField, RGBImageField
        from ffcv.writer import DatasetWriter

        fields = {
            "image": RGBImageField(write_mode="raw"),
            "label": IntField(),
            "index": IntField(),
        }
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        partial = Path(name)
        try:
            writer = DatasetWriter(name, fields, num_workers=min(_WRITERS, os.cpu_count() or 1))
            with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
                writer.from_indexed_dataset(_Samples(images, labels))
            _sync(partial)
            written = {
                "fingerprint": source,
                "bytes": partial.stat().st_size,
                "sha256": _sha256(partial),
            }
            write_json(_sidecar(path), written)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
