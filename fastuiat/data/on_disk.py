"""Images of an uncompressed .npz, read from where they lie: a pool may be larger than memory."""

from __future__ import annotations

import lzma
import os
import struct
import tokenize
import weakref
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from fastuiat import bounds
from fastuiat.config import UserError
from fastuiat.file_kinds import reason_of

SMALL = 64 << 20
"""Bytes up to which an array is read whole: 20,000 images of CIFAR's size."""
_BLOCK = 16 << 20
MOST_NAMED = 6
"""Arrays of a foreign file."""
_LOCAL_HEADER = 30
"""Bytes of a zip member's own header before its name, as the format has it."""
_BROKEN = (
    OSError,
    ValueError,
    EOFError,
    NotImplementedError,
    RuntimeError,  # it is encrypted
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    tokenize.TokenError,  # of a header that is no Python
    SyntaxError,
    AttributeError,
    TypeError,
    KeyError,
)
"""What zipfile and NumPy raise on damaged files."""


@dataclass(frozen=True)
class Header:
    """What an .npy says of itself."""

    shape: tuple[int, ...]
    dtype: np.dtype
    fortran: bool
    begin: int
    """Bytes before the values."""

    @property
    def promised(self) -> int:
        """Bytes of all the values."""
        size = self.dtype.itemsize
        for length in self.shape:
            size *= length
        return size

    def __str__(self) -> str:
        return f"{self.dtype} {self.shape}"


def npy_header(file: IO[bytes]) -> Header:
    """That of the .npy which a file begins with; ValueError on what is none."""
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        raise ValueError(f"version {version} of .npy is not known")
    shape, fortran, dtype = read(file)
    if not all(0 <= length < 1 << 60 for length in shape):
        raise ValueError(f"its header claims a shape of {shape}")
    return Header(shape, dtype, fortran, file.tell())


class ImagesOnDisk:
    """Images (N, H, W, C) of a file that stays open; what is asked for is read.

    Indexed by a slice, a number, or an array of numbers it gives arrays. UserError where the file
    was changed after it was opened.
    """

    def __init__(self, path: Path, offset: int, header: Header, crc: int | None) -> None:
        self.path, self.shape, self.dtype = path, header.shape, header.dtype
        self._file = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._file)
        self._offset, self._crc, self._begin = offset, crc, header.begin
        self._row = header.promised // max(1, len(self))
        self._identity = self._status()

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        return self._row * len(self)

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice):
            first, last, step = rows.indices(len(self))
            if step != 1:
                return self[np.arange(first, last, step)]
            return self._read(first, max(0, last - first))
        if np.ndim(rows) == 0:
            return cast(np.ndarray, self._read(range(len(self))[int(rows)], 1)[0])
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for i, row in enumerate(np.asarray(rows).tolist()):
            self._into(found[i : i + 1], row)
        self._refuse_changes()
        return found

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def blocks(self) -> Iterator[np.ndarray]:
        """All of them in order, some MB at a time; UserError where the zip's checksum differs."""
        crc = zlib.crc32(self._bytes(self._offset - self._begin, self._begin))
        rows = max(1, _BLOCK // max(1, self._row))
        for first in range(0, len(self), rows):
            block = self[first : first + rows]
            crc = zlib.crc32(block.data, crc)
            yield block
        if self._crc is not None and crc != self._crc:
            raise UserError(f"{self.path} is damaged: its images have not their checksum")

    def _read(self, first: int, count: int) -> np.ndarray:
        found = np.empty((count, *self.shape[1:]), self.dtype)
        self._into(found, first)
        self._refuse_changes()
        return found

    def _into(self, rows: np.ndarray, first: int) -> None:
        self._read_into(rows, self._offset + first * self._row)

    def _read_into(self, rows: np.ndarray, at: int) -> None:
        rest: memoryview = rows.reshape(-1).view(np.uint8).data
        while rest:  # a read gives 2 GB at most
            count = os.preadv(self._file, [rest], at)
            if count == 0:
                raise UserError(f"{self.path} was cut short while it was in use")
            rest, at = rest[count:], at + count

    def _bytes(self, at: int, count: int) -> bytes:
        return os.pread(self._file, count, at)

    def _status(self) -> tuple[int, int]:
        status = os.fstat(self._file)
        return status.st_size, status.st_mtime_ns

    def _refuse_changes(self) -> None:
        if self._status() != self._identity:
            raise UserError(f"{self.path} was changed while it was in use")


Part = np.ndarray | ImagesOnDisk


class Joined:
    """Images in several parts that stay where they are, in memory or on disk, indexed as one."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = list(parts)
        self.shape = (sum(map(len, self.parts)), *self.parts[0].shape[1:])
        self.dtype = self.parts[0].dtype
        self.nbytes = sum(part.nbytes for part in self.parts)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Of int numbers (B,) from 0 on."""
        first, found = 0, np.empty((len(rows), *self.shape[1:]), self.dtype)
        for part in self.parts:
            inside = (rows >= first) & (rows < first + len(part))
            found[inside] = part[rows[inside] - first]
            first += len(part)
        return found


Images = Part | Joined | Sequence[Part | Joined]
"""uint8 (N, H, W, 3), in one array or in several that follow each other."""


def parts_of(images: Images) -> list[Part]:
    """The arrays, none of them copied."""
    if isinstance(images, Part):
        return [images]
    nested = images.parts if isinstance(images, Joined) else images
    return [part for one in nested for part in parts_of(one)]


class Npy:
    """The array of an .npy, not read yet; UserError on what is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with bounds.opened(path) as file:
                self.header = npy_header(file)
                held = os.fstat(file.fileno()).st_size - self.header.begin
        except _BROKEN as error:
            raise UserError(f"{path} is truncated or no .npy ({reason_of(error)})") from error
        if self.header.dtype.hasobject:
            raise UserError(f"{path} holds Python objects, which are not read")
        if held != self.header.promised:
            raise UserError(
                f"{path} claims to be {self.header}, {self.header.promised:,} bytes, and has "
                f"{held:,}"
            )

    def array(self) -> np.ndarray:
        """Read whole."""
        try:
            return np.load(self.path, allow_pickle=False)
        except (*_BROKEN, MemoryError) as error:
            raise UserError(f"{self.path} cannot be read ({reason_of(error)})") from error

    def on_disk(self) -> ImagesOnDisk | np.ndarray:
        """The array where it lies; read whole if it is small. UserError on Fortran's order."""
        if self.header.promised <= SMALL or not self.header.shape:
            return self.array()
        if self.header.fortran:
            raise UserError(
                f"{self.path} is in Fortran's order, image by image it cannot be read: save it "
                "by np.save(path, np.ascontiguousarray(images))"
            )
        return ImagesOnDisk(self.path, self.header.begin, self.header, None)


class Npz:
    """The arrays of an .npz by name, none of them read yet; UserError on what is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = bounds.opened(path)
        except _BROKEN as error:
            raise self.damaged(error) from error
        try:
            self._zip = bounds.zip_of(self._file)
            self.members = {m.filename.removesuffix(".npy"): m for m in self._zip.infolist()}
        except _BROKEN as error:
            self._file.close()
            raise self.damaged(error) from error

    def __enter__(self) -> Npz:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def damaged(self, error: Exception) -> UserError:
        return UserError(
            f"{self.path} is truncated or no .npz of plain arrays ({reason_of(error)})"
        )

    def header(self, name: str) -> Header:
        """UserError where it promises other than the archive holds, or Python objects."""
        member = self.members[name]
        try:
            with self._zip.open(member) as file:
                header = npy_header(cast(IO[bytes], file))
        except _BROKEN as error:
            raise self.damaged(error) from error
        if header.dtype.hasobject:
            raise UserError(f"{self.path}: {name!r} holds Python objects, which are not read")
        held = member.file_size - header.begin
        if held != header.promised:
            raise UserError(
                f"{self.path}: {name!r} claims to be {header}, {header.promised:,} bytes, and has "
                f"{held:,}"
            )
        return header

    def array(self, name: str) -> np.ndarray:
        """Read whole. UserError where it does not fit into memory."""
        header = self.header(name)
        too_large = UserError(
            f"{self.path}: {name!r} is compressed or in Fortran's order and takes "
            f"{header.promised / 1e9:.3g} GB, more than there is memory: np.savez writes what is "
            "read from the disk"
        )
        if header.promised > bounds.memory():
            raise too_large
        if bounds.packs_too_much(self.members[name].compress_size, header.promised):
            raise UserError(
                f"{self.path}: {name!r} unpacks to over {bounds.MOST_PACKED} times its size, as no "
                "images do: np.savez writes what is read as it is"
            )
        try:
            with self._zip.open(self.members[name]) as file:
                return np.lib.format.read_array(cast(IO[bytes], file), allow_pickle=False)
        except MemoryError as error:
            raise too_large from error
        except _BROKEN as error:
            raise self.damaged(error) from error

    def on_disk(self, name: str) -> ImagesOnDisk | np.ndarray:
        """The array where it lies, if it lies there as it is; read whole if it is small or does
        not."""
        header, member = self.header(name), self.members[name]
        packed = member.compress_type != zipfile.ZIP_STORED or header.fortran
        if packed or header.promised <= SMALL or not header.shape:
            return self.array(name)
        try:
            with open(self.path, "rb") as file:
                file.seek(member.header_offset)
                fixed = file.read(_LOCAL_HEADER)
            lengths = struct.unpack("<HH", fixed[26:30])
        except (OSError, struct.error) as error:
            raise self.damaged(error) from error
        begin = member.header_offset + _LOCAL_HEADER + sum(lengths) + header.begin
        return ImagesOnDisk(self.path, begin, header, member.CRC)


def described(content: Npz) -> str:
    """What an .npz has, as far as it can be told."""
    words = []
    for name in list(content.members)[:MOST_NAMED]:
        try:
            words.append(f"{name!r} {content.header(name)}")
        except UserError:
            words.append(repr(name))
    if len(content.members) > MOST_NAMED:
        words.append("…")
    return ", ".join(words) or "nothing"
