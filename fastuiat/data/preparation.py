"""Pictures prepared as a .beton, once: read on all cores, gone on with after a kill."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np

from fastuiat import bounds, sealed
from fastuiat.config import UserError, legible
from fastuiat.data import checked_once
from fastuiat.data.beton_file import JPEG, PAGE, RAW, BetonImages, finish, first_page_of, write_at
from fastuiat.data.fingerprint import LARGE, Fingerprint, fingerprint_of, sample_sum
from fastuiat.data.picture_workers import PictureWorkers
from fastuiat.data.pictures import Answer, Request
from fastuiat.files import TEMPORARY, json_in, locked, sha256_of, write_json

RAW_UP_TO = 64
"""Pixels a side: larger squares are stored as JPEG, unless they are to be raw."""
LOWEST, HIGHEST, STEP = 16, 224, 8
"""Pixels a side that nets here are trained on."""
MOST_LINE = 1 << 16
"""Bytes of a line in the journal."""
CHUNK = 64
"""Pictures that a process is asked for at a time."""
_FORMAT = 1
"""Of what is prepared from the same pictures in the same way: another one is another file."""

Progress = Callable[[str, int, int], None]
"""Called with (what is prepared, pictures done, pictures in all)."""


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How the pictures of a data set become images of one size."""

    resolution: int | None = None
    """Pixels a side; None: the set's own."""
    seed: int = 0
    """Of the split of a set that has no test images of its own."""
    store: Literal["raw", "jpeg"] | None = None
    """None: as it was prepared, else raw up to 64 pixels and JPEG above."""
    skip_broken: bool = False
    """Leave pictures out that cannot be read."""
    progress: Progress | None = None
    say: Callable[[str], None] | None = None
    """Told of each picture that is left out."""


AS_IT_IS = Preparation()
"""At a set's own resolution."""


def refuse_resolution(resolution: int) -> None:
    """UserError on what no square here may be."""
    if not LOWEST <= resolution <= HIGHEST or resolution % STEP:
        raise UserError(
            f"--resolution must be a multiple of {STEP} from {LOWEST} to {HIGHEST}, got "
            f"{resolution}"
        )


@dataclass(frozen=True)
class Pictures:
    """Pictures to be prepared: their files, or an array (N, H, W, 3 or 1) of them."""

    what: str
    """In words, for the progress."""
    source: Sequence[str] | Any
    labels: np.ndarray
    classes: tuple[str, ...]
    identity: str
    """Another one as soon as one of them changes."""
    not_read: Mapping[str, int] = field(default_factory=dict)
    """How many files beside them are pictures of kinds that are not read, by ending."""

    def block(self, first: int, last: int) -> list[str] | np.ndarray:
        block = self.source[first:last]
        return block if isinstance(block, np.ndarray) else list(block)

    def name(self, i: int) -> str:
        source = self.source
        return f"image {i} of {self.what}" if hasattr(source, "shape") else str(source[i])


@dataclass(frozen=True)
class Prepared:
    """A prepared .beton, opened."""

    images: BetonImages
    fingerprint: Fingerprint
    skipped: int
    """Pictures that could not be read, and were left out."""


def prepared(
    pictures: Pictures, folder: Path, label: str, split: str, name: str, how: Preparation,
    resolution: int,
) -> Prepared:  # fmt: skip
    """The .beton of pictures in `folder`, written unless it is there.

    Its name carries `label`, the split, the resolution and the pictures' identity. UserError on a
    picture that cannot be read, unless it is to be skipped, and where it cannot be written.
    """
    key = repr((_FORMAT, pictures.identity, resolution, pictures.classes))
    stem = f"{label}-{split}-{resolution}px-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    path = folder / f"{stem}.beton"
    try:
        if not _is_ready(path, how.store):
            folder.mkdir(parents=True, exist_ok=True)
            with locked(path.with_suffix(".lock")):
                _remove_unfinished(path, f"{label}-{split}-{resolution}px-")
                if not _is_ready(path, how.store):
                    as_jpeg = (how.store or default_store(resolution)) == "jpeg"
                    _Writer(path, pictures, resolution, as_jpeg, how).write(name, split)
        _remove_finished(path)
        found = _opened(path)
    except OSError as error:
        raise UserError(
            f"cannot prepare {pictures.what} as {path}: {error.strerror or error}"
        ) from error
    if pictures.not_read and how.say:
        kinds = ", ".join(f"{n:,} {ending}" for ending, n in sorted(pictures.not_read.items()))
        how.say(f"{pictures.what}: only JPEG, PNG, WebP and BMP are read, {kinds} are left out")
    if found.skipped and how.say:
        how.say(f"{pictures.what}: {found.skipped} pictures that cannot be read are left out")
    return found


def _remove_unfinished(path: Path, begin: str) -> None:
    """Remove what killed processes left of other pictures of this name, as they were before."""
    for left in path.parent.glob(f".{glob.escape(begin)}*"):
        stem = left.name[1 : len(begin) + 13]
        if stem == path.stem:
            continue
        ours = locked(left.with_name(f"{stem}.lock"), wait=False)
        with contextlib.suppress(OSError), ours:  # another process writes it, or another user's
            left.unlink()


def _remove_finished(path: Path) -> None:
    """Remove what processes left that were killed with the file in place, or about to be."""
    for left in path.parent.glob(f".{glob.escape(path.stem)}.*"):
        journal = left.name.endswith("-journal")
        begun = left.with_name(left.name.removesuffix("-journal")).exists()
        if (journal and not begun) or TEMPORARY.fullmatch(left.name):
            with contextlib.suppress(OSError), locked(path.with_suffix(".lock"), wait=False):
                left.unlink()


def default_store(resolution: int) -> str:
    return "raw" if resolution <= RAW_UP_TO else "jpeg"


def _is_ready(path: Path, store: str | None) -> bool:
    """Whether there is one, stored as it is wanted."""
    beside = path.with_suffix(".json")
    if not (path.exists() and beside.exists()):
        return False
    return store is None or _told(path).get("store") == store


def _told(path: Path) -> dict[str, Any]:
    """What the file beside a .beton says; nothing where it says nothing sensible."""
    try:
        told = json_in(path.with_suffix(".json"))
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _opened(path: Path) -> Prepared:
    """UserError where the file is another than what was written."""
    told, images = _told(path), BetonImages(path)
    try:
        made = Fingerprint.from_json(told["fingerprint"])
        whole = told["bytes"] == path.stat().st_size
        if path.stat().st_size > LARGE and "sha256" in told:  # since files have one
            whole = whole and checked_once.holds(path, told["sha256"])
        whole = whole and told["sum"] == _sum_of(path, images)
        skipped = int(told["skipped"])
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole:
        raise UserError(f"{path} is truncated or was changed: delete it and it is prepared again")
    return Prepared(images, made, skipped)


def _sum_of(path: Path, images: BetonImages) -> str:
    """Of the whole file; of a large one of a fixed sample of its images and all labels."""
    if path.stat().st_size <= LARGE:
        return sha256_of(path)
    return sample_sum(images, images.labels, "")


class _Writer:
    """Writes a .beton beside its place; what is done stands in a journal until it is whole."""

    def __init__(
        self, path: Path, pictures: Pictures, resolution: int, as_jpeg: bool, how: Preparation
    ) -> None:
        self.path, self.pictures, self.how = path, pictures, how
        self.resolution, self.as_jpeg = resolution, as_jpeg
        self.partial = path.with_name(f".{path.stem}.{'jpeg' if as_jpeg else 'raw'}")
        self.journal = self.partial.with_name(f"{self.partial.name}-journal")
        self.at = first_page_of(len(pictures.labels), pictures.classes)
        """Where the next image lies, in bytes."""
        self.places, self.sizes, self.broken = array("q"), array("q"), array("q")
        self.done = 0

    def write(self, name: str, split: str) -> None:
        """Of `name` and `split` is the fingerprint that is kept beside it."""
        file = bounds.opened_own(self.partial, os.O_RDWR)
        try:
            with open(bounds.opened_own(self.journal, os.O_RDWR | os.O_APPEND), "a+b") as journal:
                self._go_on(file, journal)
                self._read_rest(file, journal)
            labels = np.delete(self.pictures.labels, self.broken)
            if not len(labels):
                raise UserError(f"{self.pictures.what} holds no picture that can be read")
            places, sizes = (np.array(values, np.int64) for values in (self.places, self.sizes))
            size = finish(
                file, places, sizes, labels, self.pictures.classes, self.resolution,
                JPEG if self.as_jpeg else RAW,
            )  # fmt: skip
            os.ftruncate(file, size)
            os.fsync(file)
        finally:
            os.close(file)
        images = BetonImages(self.partial)
        made = fingerprint_of(
            images, labels, name=name, split=split, num_classes=len(self.pictures.classes),
            identity=self.pictures.identity,
        )  # fmt: skip
        told: dict[str, Any] = {
            "fingerprint": made.to_json(),
            "bytes": size,
            "sum": _sum_of(self.partial, images),
            "store": "jpeg" if self.as_jpeg else "raw",
            "skipped": len(self.broken),
        }
        if size > LARGE:
            told["sha256"] = sha256_of(self.partial)
        self.path.unlink(missing_ok=True)  # one that is stored otherwise
        write_json(self.path.with_suffix(".json"), told)
        os.replace(self.partial, self.path)
        if size > LARGE:
            checked_once.remember(self.path, told["sha256"])
        self.journal.unlink()

    def _go_on(self, file: int, journal: IO[bytes]) -> None:
        """Take over what a killed process has written, as far as its checksums are right."""
        journal.seek(0)
        end = 0
        while line := journal.readline(MOST_LINE):
            try:
                entry = sealed.unsealed(line)
                self._refuse_impossible(entry)
                places, at = self._places_of(entry["sizes"])
                found = _crc_of(file, places, entry["sizes"])
                if found != entry["crc"] or not line.endswith(b"\n"):
                    break
            except (ValueError, KeyError, TypeError):
                break
            self._take_over(places, entry["sizes"], entry["broken"], at)
            end += len(line)
        journal.truncate(end)
        journal.seek(end)
        if self.done and self.how.say:
            self.how.say(f"{self.pictures.what}: {self.done:,} pictures were prepared before")

    def _refuse_impossible(self, entry: dict[str, Any]) -> None:
        """ValueError on a line of a journal that cannot be ours."""
        rest = len(self.pictures.labels) - self.done
        sizes, broken = entry["sizes"], entry["broken"]
        fits = len(sizes) + len(broken) <= rest and all(type(n) is int for n in sizes + broken)
        if not (fits and all(0 < n <= PAGE for n in sizes) and all(n >= 0 for n in broken)):
            raise ValueError("sizes that cannot be")
        if any(n >= len(self.pictures.labels) for n in broken):
            raise ValueError("no such picture")

    def _read_rest(self, file: int, journal: IO[bytes]) -> None:
        total, what = len(self.pictures.labels), self.pictures.what
        chunks = range(self.done, total, CHUNK)
        requests = (
            Request(self.pictures.block(i, min(i + CHUNK, total)), self.resolution, self.as_jpeg)
            for i in chunks
        )
        with PictureWorkers(len(chunks) if len(chunks) > 1 else 0) as workers:
            for first, answer in zip(chunks, workers.answers(requests), strict=True):
                broken = self._refused(first, answer)
                contents = [memoryview(cast(bytes, square)).cast("B") for square in answer.squares]
                sizes = [len(content) for content in contents]
                places, at = self._places_of(sizes)
                crc = 0
                for place, content in zip(places, contents, strict=True):
                    write_at(file, content, place)
                    crc = zlib.crc32(content, crc)
                journal.write(sealed.line({"sizes": sizes, "broken": broken, "crc": crc}))
                journal.flush()
                self._take_over(places, sizes, broken, at)
                if self.how.progress:
                    self.how.progress(what, self.done, total)

    def _refused(self, first: int, answer: Answer) -> list[int]:
        """The broken pictures of a chunk; UserError that names the first unless they are to be
        skipped."""
        for i, why in answer.broken:
            where = legible(self.pictures.name(first + i), most=1000)
            if not self.how.skip_broken:
                raise UserError(
                    f"{where} cannot be read ({why}): mend or remove it, or leave such pictures "
                    "out by fastuiat data prepare … --skip-broken"
                )
            if self.how.say:
                self.how.say(f"left out: {where} ({why})")
        return [first + i for i, _ in answer.broken]

    def _places_of(self, sizes: Sequence[int]) -> tuple[list[int], int]:
        """Where the next images of these sizes lie, none of them across two pages, and the end."""
        at, places = self.at, []
        for size in sizes:
            if at // PAGE != (at + size - 1) // PAGE:
                at = (at // PAGE + 1) * PAGE
            places.append(at)
            at += size
        return places, at

    def _take_over(
        self, places: Sequence[int], sizes: Sequence[int], broken: Sequence[int], at: int
    ) -> None:
        self.places.extend(places)
        self.sizes.extend(sizes)
        self.broken.extend(broken)
        self.done += len(sizes) + len(broken)
        self.at = at


def _crc_of(file: int, places: Sequence[int], sizes: Sequence[int]) -> int:
    crc = 0
    for place, size in zip(places, sizes, strict=True):
        crc = zlib.crc32(os.pread(file, size, place), crc)
    return crc
