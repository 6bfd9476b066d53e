"""Training images as an FFCV file (.beton), written once and never trusted unchecked."""

from __future__ import annotations

import abc
import contextlib
import functools
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

import numpy as np

from fastuiat.config import UserError
from fastuiat.data import checked_once
from fastuiat.data.fingerprint import LARGE, blocks_of, sample_of
from fastuiat.data.on_disk import Images, ImagesOnDisk, Joined, Part, parts_of
from fastuiat.data.published import plain_file
from fastuiat.fast.torch_internals import say_once
from fastuiat.files import json_in, locked, sha256_of, write_atomically, write_json

FORMAT_NAMES = (
    "ALLOC_TABLE_TYPE",
    "FieldDescType",
    "HeaderType",
    "TYPE_ID_HANDLER",
    "get_metadata_type",
)
_PAGE = 8 << 20
"""FFCV's own default, in bytes."""


def dense_parts(images: Images) -> list[Part]:
    """The arrays, dense; none of them is copied if it is so already, or lies on disk."""
    return [p if isinstance(p, ImagesOnDisk) else np.ascontiguousarray(p) for p in parts_of(images)]


def fingerprint(images: Images, labels: np.ndarray) -> str:
    """sha256 over shape and content of the images and labels int64 (N,), however divided."""
    parts = dense_parts(images)
    digest = hashlib.sha256(repr((len(labels), *parts[0].shape[1:])).encode())
    for block in itertools.chain.from_iterable(map(blocks_of, parts)):
        digest.update(block.data)
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()


def prepare(
    images: Images,
    labels: np.ndarray,
    cache_dir: str | Path,
    name: str,
    source: str | None = None,
) -> Path:
    """The .beton of these images in `cache_dir`, written unless it is there already.

    Its name carries `source`, a sum over images and labels (by default `fingerprint`, made here),
    so another source gets another file. A file that is ready is read by whoever may, without a
    lock. UserError if the file there is damaged or of other content, OSError if it cannot be
    written.
    """
    expected = source or fingerprint(images, labels)
    parts = dense_parts(images)
    path = Path(cache_dir) / f"{name}-{expected[:12]}.beton"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")):
            _remove_unfinished(path)
            if not path.exists():
                sha256 = _write(path, parts, labels, expected)
                if path.stat().st_size > LARGE:
                    checked_once.remember(path, sha256)
                return path
    own = _format()
    holds = functools.partial(_holds, path, parts, labels, own) if own else None
    check(path, expected, holds)
    return path


def check(path: Path, expected: str | None = None, holds: Callable[[], bool] | None = None) -> None:
    """UserError unless `path` is, byte for byte, what was written, for fingerprint `expected`.

    `holds` says so of the file itself; without it the sum in the file beside it is believed.
    """
    again = f"delete {path} and it is prepared again"
    plain_file(path)
    try:
        written = json_in(_sidecar(path))
        fits = expected is None or written["fingerprint"] == expected
        whole = written["bytes"] == path.stat().st_size
        if path.stat().st_size > LARGE:
            whole = whole and checked_once.holds(path, written["sha256"])
            whole = whole and (holds is None or holds())
        else:
            whole = whole and (holds() if holds else written["sha256"] == sha256_of(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, PermissionError):
            raise
        raise UserError(f"{path} was not written by fastuiat: {again}") from error
    if not fits:
        raise UserError(f"{path} was made from other images: {again}")
    if not whole:
        raise UserError(f"{path} is truncated or was changed: {again}")


def _holds(path: Path, parts: list[Part], labels: np.ndarray, own: Any) -> bool:
    """Whether the file holds these images and labels, whatever the file beside it says.

    Of a LARGE file, whose sum was compared once, a fixed sample of the images is, and all the rest.
    """
    with path.open("rb") as file:
        if path.stat().st_size > LARGE:
            return _holds_sample(file, parts, _tables(parts, labels, own))
        try:
            _write_content(_Compared(file), parts, labels, own)
        except _Other:
            return False
        return not file.read(1)


def _holds_sample(file: IO[bytes], parts: list[Part], tables: _Tables) -> bool:
    rows = sample_of(len(tables.places))
    sample = Joined(parts)[rows]
    blocks = [(0, tables.before), (tables.end, [tables.allocations])]
    blocks += [(int(tables.places[row]), [one]) for row, one in zip(rows, sample, strict=True)]
    for place, wanted in blocks:
        file.seek(place)
        out = _Compared(file)
        try:
            for block in wanted:
                out.write(np.ascontiguousarray(block).view(np.uint8))
        except _Other:
            return False
    return True


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def _remove_unfinished(path: Path) -> None:
    """Remove what killed processes left of .beton files beside `path`, whose lock is held."""
    for left in path.parent.glob(".*"):
        found = re.fullmatch(r"\.(.+-[0-9a-f]{12})\.(beton|json)-[0-9a-f]{8}", left.name)
        if found is None:
            continue
        lock = left.with_name(f"{found[1]}.lock")
        ours = contextlib.nullcontext() if found[1] == path.stem else locked(lock, wait=False)
        with contextlib.suppress(OSError), ours:  # another process writes it, or another user's
            left.unlink()


class _Output(abc.ABC):
    """What the format's bytes go to, counted."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.bytes = file, 0

    def write(self, data: Any) -> None:
        view = memoryview(data).cast("B")
        self.take(view)
        self.bytes += len(view)

    @abc.abstractmethod
    def take(self, view: memoryview) -> None:
        """Write these bytes, or compare them with what is there."""

    def pad_to(self, offset: int) -> None:
        self.write(bytes(offset - self.bytes))


class _Hashed(_Output):
    """Writes to a file and remembers the sha256 of all of it, so that nothing is read back."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.digest = hashlib.sha256()

    def take(self, view: memoryview) -> None:
        self.file.write(view)
        self.digest.update(view)


class _Other(Exception):
    """The file holds something else."""


class _Compared(_Output):
    """Reads a file beside what would be written to it; _Other where it differs."""

    def take(self, view: memoryview) -> None:
        for first in range(0, len(view), _PAGE):
            wanted = view[first : first + _PAGE]
            found = self.file.read(len(wanted))
            if len(found) != len(wanted) or not np.array_equal(
                np.frombuffer(found, np.uint8), np.frombuffer(wanted, np.uint8)
            ):
                raise _Other


def _write(path: Path, parts: list[Part], labels: np.ndarray, source: str) -> str:
    """Returns the SHA-256 of the file."""
    written: dict[str, Any] = {"fingerprint": source}

    def write(file: IO[bytes]) -> None:
        nonlocal written
        if own := _format():
            out = _Hashed(file)
            _write_content(out, parts, labels, own)
            written |= {"bytes": out.bytes, "sha256": out.digest.hexdigest()}
        else:
            place = Path(file.name)
            _write_by_ffcv(place, parts, labels)
            written |= {"bytes": place.stat().st_size, "sha256": sha256_of(place)}
        write_json(_sidecar(path), written)

    write_atomically(path, write)
    return str(written["sha256"])


def _fields() -> dict[str, Any]:
    """What a sample has, as FFCV names it."""
    from ffcv.fields import IntField, RGBImageField

    return {"image": RGBImageField(write_mode="raw"), "label": IntField(), "index": IntField()}


def _format() -> SimpleNamespace | None:
    """FFCV's own words of its format; None, which the log says, where it has others."""
    from fastuiat.data.ffcv_loader import torch_threads_kept

    with torch_threads_kept():
        try:
            from ffcv import types
            from ffcv.fields.rgb_image import IMAGE_MODES

            names = [*FORMAT_NAMES, "CURRENT_VERSION"]
            found = {name: getattr(types, name) for name in names} | {"IMAGE_MODES": IMAGE_MODES}
            if found["CURRENT_VERSION"] == 2:
                return SimpleNamespace(**found)
            lacking = f"version {found['CURRENT_VERSION']}"
        except (ImportError, AttributeError) as error:
            lacking = str(error)
    say_once(f"FFCV's format is another than known here ({lacking}): it writes itself, slower")
    return None


class _Samples:
    """(image, label, index) one by one, as FFCV's own writer takes them."""

    def __init__(self, parts: list[Part], labels: np.ndarray) -> None:
        self.parts, self.labels = parts, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int, int]:
        row = i
        for part in self.parts:
            if row < len(part):
                return part[row], int(self.labels[i]), int(i)
            row -= len(part)
        raise IndexError(i)


def _write_by_ffcv(path: Path, parts: list[Part], labels: np.ndarray) -> None:
    from fastuiat.data.ffcv_loader import torch_threads_kept

    with torch_threads_kept():
        from ffcv.writer import DatasetWriter

        writer = DatasetWriter(str(path), _fields(), num_workers=1)
        writer.from_indexed_dataset(_Samples(parts, labels))


@dataclass(frozen=True)
class _Tables:
    """All that a .beton of raw images holds beside them, and where they lie."""

    before: list[np.ndarray]
    """Header, fields, metadata."""
    places: np.ndarray
    """Of each image, in bytes."""
    first_page: int
    per_page: int
    """Images."""
    end: int
    """Of the last page, in bytes."""
    allocations: np.ndarray


def _tables(parts: list[Part], labels: np.ndarray, own: Any) -> _Tables:
    fields = _fields()
    _, height, width, _ = parts[0].shape
    count, size = len(labels), int(parts[0][0].nbytes)
    descriptors = np.zeros(len(fields), own.FieldDescType)
    type_ids = {kind: number for number, kind in own.TYPE_ID_HANDLER.items()}
    for descriptor, (name, field) in zip(descriptors, fields.items(), strict=True):
        descriptor["type_id"] = type_ids[type(field)]
        descriptor["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
        descriptor["arguments"][:] = field.to_binary()[0]

    metadata = np.zeros(count, own.get_metadata_type(list(fields.values())))
    begin = own.HeaderType.itemsize + descriptors.nbytes + metadata.nbytes
    first_page = -(-begin // _PAGE)
    per_page = _PAGE // size  # an image never straddles two pages
    number = np.arange(count, dtype=np.uint64)
    places = (first_page + number // per_page) * _PAGE + number % per_page * size
    image, label, index = (metadata[name] for name in cast(Any, metadata.dtype.names))
    image["mode"], image["width"], image["height"] = own.IMAGE_MODES["raw"], width, height
    image["data_ptr"], label[:], index[:] = places, labels, number

    header = np.zeros(1, own.HeaderType)
    header["version"], header["num_fields"] = own.CURRENT_VERSION, len(fields)
    header["page_size"], header["num_samples"] = _PAGE, count
    end = (first_page + -(-count // per_page)) * _PAGE
    header["alloc_table_ptr"] = end
    allocations = np.zeros(count, own.ALLOC_TABLE_TYPE)
    allocations["sample_id"], allocations["ptr"], allocations["size"] = number, places, size
    before = [header, descriptors, metadata]
    return _Tables(before, places, first_page, per_page, end, allocations)


def _write_content(out: _Output, parts: list[Part], labels: np.ndarray, own: Any) -> None:
    """FFCV's format, version 2: header, fields, metadata, pages of raw images, allocations.

    FFCV's own writer calls Python for each sample, in processes that share the machine with the
    training; whole pages at a time are an order faster, and a full disk is an OSError.
    """
    tables = _tables(parts, labels, own)
    for block in tables.before:
        out.write(block.view(np.uint8))
    for page, images in enumerate(_runs(parts, tables.per_page), start=tables.first_page):
        out.pad_to(page * _PAGE)
        for run in images:
            out.write(run)
    out.pad_to(tables.end)
    out.write(tables.allocations.view(np.uint8))


def _runs(parts: list[Part], length: int) -> Iterator[list[np.ndarray]]:
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
