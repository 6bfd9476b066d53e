"""Pickles of NumPy arrays of numbers, read without running anything they name.

Not NumPy's own code either: it does not expect damage, and may take the process with it. The
unpickler is Python's own in Python, because the one in C takes memory by a number in the file.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

MOST_STEPS = 1 << 21
"""Instructions of a pickle; a batch of CIFAR-10 has 20,000."""
_NUMBERS = re.compile(r"[<>|=]?[iuf][1248]")


class _Type:
    """What NumPy's `dtype` is called with and filled by."""

    def __init__(self, name: str, align: Any = False, copy: Any = True) -> None:
        if not isinstance(name, str) or not _NUMBERS.fullmatch(name):
            raise pickle.UnpicklingError(f"an array of {name!r} is refused")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        order = {"<": "<", ">": ">", "|": "|", "=": "<"}[state[1]]
        self.dtype = self.dtype.newbyteorder(order)  # type: ignore[arg-type]


class _Array:
    """What `_reconstruct` makes, empty until its state comes."""

    array: np.ndarray

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, raw = state
        raw = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2's
        self.array = _filled(raw, kind, shape, "F" if fortran else "C")


def _filled(raw: Any, kind: Any, shape: Any, order: str) -> np.ndarray:
    if not isinstance(kind, _Type) or not isinstance(raw, bytes | bytearray):
        raise pickle.UnpicklingError("an array without numbers")
    if any(not isinstance(length, int) or length < 0 for length in shape):
        raise pickle.UnpicklingError(f"an array of the shape {shape}")
    return np.frombuffer(raw, kind.dtype).reshape(shape, order=order)  # type: ignore[call-overload]


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(raw: Any, kind: Any, shape: Any, order: str, *_: Any) -> _Array:
    made = _Array()
    made.array = _filled(raw, kind, shape, "F" if order == "F" else "C")
    return made


def _scalar(kind: Any, raw: Any) -> Any:
    raw = raw.encode("latin1") if isinstance(raw, str) else raw
    return _filled(raw, kind, (1,), "C")[0].item()


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in {encoding}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Empty ones are written as a call of `bytes`."""
    return b""


class _Marker:
    """In the place of the class that `_reconstruct` is told to make."""


_KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _no_bytes,
    ("numpy", "ndarray"): _Marker,
    ("numpy", "dtype"): _Type,
    **{
        (f"numpy.{core}.{module}", name): made
        for core in ("core", "_core")
        for module, name, made in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}


class _Unpickler(pickle._Unpickler):
    left = MOST_STEPS

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is refused")
        return _KNOWN[module, name]


def _load_bytearray(self: Any) -> None:
    """Python's own makes room first for as many bytes as the file says."""
    (length,) = struct.unpack("<Q", self.read(8))
    content = self.read(min(length, sys.maxsize))
    if len(content) != length:
        raise EOFError("it is cut off")
    self.append(bytearray(content))


def _counted(step: Callable[[Any], None]) -> Callable[[Any], None]:
    """An instruction of the unpickler that it follows MOST_STEPS times, with all others."""

    def follow(self: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise pickle.UnpicklingError("a pickle without end")
        step(self)

    return follow


_Unpickler.dispatch = {
    code: _counted(step)
    for code, step in {**_Unpickler.dispatch, pickle.BYTEARRAY8[0]: _load_bytearray}.items()
}


def read_array_pickle(content: bytes) -> Any:
    """What is pickled; of a dict the arrays that are its values, by names as text.

    Any exception on damaged content.
    """
    loaded = _Unpickler(io.BytesIO(content), encoding="latin1").load()
    if not isinstance(loaded, dict):
        return loaded
    return {
        key.decode() if isinstance(key, bytes) else str(key): (
            value.array if isinstance(value, _Array) else value
        )
        for key, value in loaded.items()
    }
