"""Training images as an FFCV file (.beton), written once and never trusted unchecked."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from fastuiat.config import UserError
from fastuiat.files import sha256_of, write_atomically, write_json

_PAGE = 8 << 20
"""FFCV's own default, in bytes."""
Images = np.ndarray | Sequence[np.ndarray]
"""uint8 (N, H, W, 3), in one array or in several that follow each other."""


def parts_of(images: Images) -> list[np.ndarray]:
    """The arrays, dense; none of them is copied if it is so already."""
    parts = [images] if isinstance(images, np.ndarray) else list(images)
    return [np.ascontiguousarray(part) for part in parts]


def fingerprint(images: Images, labels: np.ndarray) -> str:
    """sha256 over shape and content of the images and labels int64 (N,), however divided."""
    parts = parts_of(images)
    digest = hashlib.sha256(repr((len(labels), *parts[0].shape[1:])).encode())
    for part in parts:
        digest.update(part.data)
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()


def prepare(images: Images, labels: np.ndarray, cache_dir: str | Path, name: str) -> Path:
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
            _write(path, parts_of(images), labels, expected)
    return path


def check(path: Path, expected: str | None = None) -> None:
    """UserError unless `path` is, byte for byte, what was written, for fingerprint `expected`."""
    again = f"delete {path} and it is prepared again"
    try:
        written = json.loads(_sidecar(path).read_text())
        fits = expected is None or written["fingerprint"] == expected
        whole = written["bytes"] == path.stat().st_size and written["sha256"] == sha256_of(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} was not written by fastuiat: {again}") from error
    if not fits:
        raise UserError(f"{path} was made from other images: {again}")
    if not whole:
        raise UserError(f"{path} is truncated or was changed: {again}")


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time, so that two runs that start together write the file once."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Hashed:
    """Writes to a file and remembers the sha256 of all of it, so that nothing is read back."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.digest, self.bytes = file, hashlib.sha256(), 0

    def write(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        self.file.write(view)
        self.digest.update(view)
        self.bytes += len(view)

    def pad_to(self, offset: int) -> None:
        self.write(bytes(offset - self.bytes))


def _write(path: Path, parts: list[np.ndarray], labels: np.ndarray, source: str) -> None:
    def write(file: IO[bytes]) -> None:
        out = _Hashed(file)
        _write_content(out, parts, labels)
        written = {"fingerprint": source, "bytes": out.bytes, "sha256": out.digest.hexdigest()}
        write_json(_sidecar(path), written)

    write_atomically(path, write)


def _write_content(out: _Hashed, parts: list[np.ndarray], labels: np.ndarray) -> None:
    """FFCV's format, version 2: header, fields, metadata, pages of raw images, allocations.

    FFCV's own writer calls Python for each sample, in processes that share the machine with the
    training; whole pages at a time are an order faster, and a full disk is an OSError.
    """
    from fastuiat.data.ffcv_loader import torch_threads_kept

    with torch_threads_kept():
        from ffcv import types
        from ffcv.fields import IntField, RGBImageField
        from ffcv.fields.rgb_image import IMAGE_MODES

    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField(), "index": IntField()}
    _, height, width, _ = parts[0].shape
    count, size = len(labels), parts[0][0].nbytes
    descriptors = np.zeros(len(fields), types.FieldDescType)
    type_ids = {kind: number for number, kind in types.TYPE_ID_HANDLER.items()}
    for descriptor, (name, field) in zip(descriptors, fields.items(), strict=True):
        descriptor["type_id"] = type_ids[type(field)]
        descriptor["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
        descriptor["arguments"][:] = field.to_binary()[0]

    metadata = np.zeros(count, types.get_metadata_type(list(fields.values())))
    begin = types.HeaderType.itemsize + descriptors.nbytes + metadata.nbytes
    first_page = -(-begin // _PAGE)
    per_page = _PAGE // size  # an image never straddles two pages
    number = np.arange(count, dtype=np.uint64)
    pointers = (first_page + number // per_page) * _PAGE + number % per_page * size
    image, label, index = (metadata[name] for name in cast(Any, metadata.dtype.names))
    image["mode"], image["width"], image["height"] = IMAGE_MODES["raw"], width, height
    image["data_ptr"], label[:], index[:] = pointers, labels, number

    header = np.zeros(1, types.HeaderType)
    header["version"], header["num_fields"] = types.CURRENT_VERSION, len(fields)
    header["page_size"], header["num_samples"] = _PAGE, count
    end = (first_page + -(-count // per_page)) * _PAGE
    header["alloc_table_ptr"] = end
    for block in (header, descriptors, metadata):
        out.write(block.view(np.uint8))
    for page, images in enumerate(_runs(parts, per_page), start=first_page):
        out.pad_to(page * _PAGE)
        for run in images:
            out.write(run)
    out.pad_to(end)
    allocations = np.zeros(count, types.ALLOC_TABLE_TYPE)
    allocations["sample_id"], allocations["ptr"], allocations["size"] = number, pointers, size
    out.write(allocations.view(np.uint8))


def _runs(parts: list[np.ndarray], length: int) -> Iterator[list[np.ndarray]]:
    """The images of all parts, `length` at a time, as slices of them."""
    count = sum(map(len, parts))
    for begin in range(0, count, length):
        runs, first = [], 0
        for part in parts:
            low, high = max(begin - first, 0), min(begin + length - first, len(part))
            if low < high:
                runs.append(part[low:high])
            first += len(part)
        yield runs
