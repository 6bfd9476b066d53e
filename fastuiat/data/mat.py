"""Arrays of numbers from a MATLAB file of version 5, as SVHN is published in.

SciPy reads more of the format, and takes the process with it (a bus error) on some damaged files.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

_LARGEST = 1 << 29
"""Bytes of an array, and of all that is unpacked; the larger one of SVHN's has 225 MB."""
_MOST = 1000
"""Parts of a file; SVHN's have two."""
_MATRIX, _COMPRESSED = 14, 15
_STORED = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
"""How numbers lie in the file, by the number of their type."""
_CLASSES = {
    6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip
"""What they are in MATLAB: doubles that are small whole numbers are stored as bytes."""


def read_mat(path: Path) -> dict[str, np.ndarray | None]:
    """The variables by name, None for what is no dense array of real numbers.

    OSError, ValueError, EOFError, zlib.error or struct.error on a damaged file.
    """
    found: dict[str, np.ndarray | None] = {}
    with open(path, "rb") as file:
        header = file.read(128)
        order = {b"IM": "<", b"MI": ">"}.get(header[126:])
        if order is None or not header.startswith(b"MATLAB 5"):
            raise ValueError("no MATLAB file of version 5")
        left = _LARGEST
        for count, (kind, content) in enumerate(_elements(file, order)):
            if kind == _COMPRESSED:
                kind, content = _unpacked(content, order)
            left -= len(content)
            if count == _MOST or left < 0:
                raise ValueError("it holds more than files of this format do")
            if kind == _MATRIX:
                name, array = _matrix(content, order)
                found[name] = array
    return found


def _elements(file: IO[bytes], order: str) -> Iterator[tuple[int, bytes]]:
    """(type, content) of what follows each other on the file's upper level."""
    while tag := file.read(8):
        kind, size = struct.unpack(f"{order}II", tag)
        if size > _LARGEST:
            raise ValueError(f"a part claims {size:,} bytes")
        content = file.read(size)
        if len(content) != size:
            raise EOFError("it is cut off")
        yield kind, content
        if kind != _COMPRESSED:
            file.read(-size % 8)


def _unpacked(content: bytes, order: str) -> tuple[int, bytes]:
    """The one element that is packed in another."""
    stream = zlib.decompressobj()
    kind, size = struct.unpack(f"{order}II", stream.decompress(content, 8))
    if size > _LARGEST:
        raise ValueError(f"a part claims {size:,} bytes")
    whole = stream.decompress(stream.unconsumed_tail, size) if size else b""
    rest = stream.decompress(stream.unconsumed_tail, 1) + stream.flush(1)
    if len(whole) != size or rest or not stream.eof:
        raise EOFError("a part is cut off, or goes on")
    return kind, whole


def _matrix(content: bytes, order: str) -> tuple[str, np.ndarray | None]:
    """Flags, dimensions, name, and then the numbers in Fortran's order."""
    parts = _parts(content, order)
    flags, dimensions, name = (next(parts)[1] for _ in range(3))
    (word,) = struct.unpack_from(f"{order}I", flags)
    text = bytes(name).decode("latin1")
    kind, is_complex = word & 0xFF, word & 0x800
    if kind not in _CLASSES or is_complex:
        return text, None
    shape = struct.unpack(f"{order}{len(dimensions) // 4}i", dimensions)
    if any(length < 0 for length in shape):
        raise ValueError(f"{text!r} claims a shape of {shape}")
    stored, numbers = next(parts)
    values = np.frombuffer(numbers, np.dtype(order + _STORED[stored]))
    if len(values) != math.prod(shape):
        raise ValueError(f"{text!r} claims a shape of {shape} and has {len(values)} numbers")
    if len(values) * np.dtype(_CLASSES[kind]).itemsize > _LARGEST:
        raise ValueError(f"{text!r} claims {len(values):,} numbers")
    return text, values.astype(_CLASSES[kind], copy=False).reshape(shape, order="F")


def _parts(content: bytes, order: str) -> Iterator[tuple[int, memoryview]]:
    """(type, content) of what follows each other inside an element; ValueError behind the last."""
    view, at = memoryview(content), 0
    while at + 8 <= len(content):
        kind, size = struct.unpack_from(f"{order}II", content, at)
        begin = at + 8
        if kind >> 16:  # four bytes at most, beside their tag
            kind, size, begin = kind & 0xFFFF, kind >> 16, at + 4
        if kind not in _STORED or begin + size > len(content):
            raise ValueError("a part is damaged")
        yield kind, view[begin : begin + size]
        at = begin + size + -(begin + size) % 8
    raise ValueError("a part is lacking")
