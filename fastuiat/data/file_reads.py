"""FFCV's access to a .beton, by `pread` in place of a memory map.

FFCV maps the whole file. Read in random order, a pool of a million images then shows as 3 GB of the
process's memory (Linux 6.18 maps up to 2 MB for an image of 3 kB), FFCV keeps a Python set for each
sample beside it, and a file that is cut short kills the process. Reading takes none of these. Made
inside a process that has imported FFCV already.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import ffcv.loader.loader
import numba
import numpy as np
from ffcv.fields.decoders import SimpleRGBImageDecoder
from ffcv.pipeline.compiler import Compiler

from fastuiat.data.pictures import pixels_of

LOADER: Any = ffcv.loader.loader
"""Where FFCV's loader looks up its memory manager."""
_pread = ctypes.CDLL(None, use_errno=True).pread
_pread.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64]
_pread.restype = ctypes.c_ssize_t


class FileReads:
    """FFCV's memory manager and its context in one: an open file, whether a read failed, and the
    bytes of each sample."""

    state_type = numba.int64[::1]

    def __init__(self, reader: Any) -> None:
        descriptor = os.open(reader.file_name, os.O_RDONLY)
        sizes = np.zeros(len(reader.metadata), np.int64)
        if reader.metadata["f0"]["mode"][:1].any():  # raw images tell theirs themselves
            sizes = sizes[:0]
        else:
            sizes[reader.alloc_table["sample_id"].astype(np.int64)] = reader.alloc_table["size"]
        self.state = np.concatenate([np.array([descriptor, 0]), sizes]).astype(np.int64)
        weakref.finalize(self, os.close, descriptor)

    @property
    def failed(self) -> bool:
        """Whether any image could not be read whole; FFCV's thread cannot say it otherwise."""
        return bool(self.state[1])

    def schedule_epoch(self, batches: Sequence[Sequence[int]]) -> FileReads:
        return self

    def __enter__(self) -> FileReads:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def start_batch(self, batch: int) -> None:
        pass

    def compile_reader(self) -> Callable[..., Any]:
        """What FFCV's own image decoders would read through."""
        return unused_reader


def unused_reader(address: int, state: Any) -> Any:
    raise AssertionError("images are read by ImageReads alone")


class ImageReads(SimpleRGBImageDecoder):
    """Raw images of one size, read from the file straight into the batch."""

    def generate_code(self) -> Callable[..., Any]:
        threads = Compiler.get_iterator()

        def decode(batch_indices: Any, destination: Any, metadata: Any, storage_state: Any) -> Any:
            for i in threads(len(batch_indices)):
                image = destination[i]
                at = metadata[batch_indices[i]]["data_ptr"]
                if _pread(storage_state[0], image.ctypes.data, image.size, at) != image.size:
                    storage_state[1] = 1
            return destination[: len(batch_indices)]

        decode.is_parallel = True  # type: ignore[attr-defined]  # FFCV reads it
        return decode


class JpegReads(SimpleRGBImageDecoder):
    """JPEGs of one size, read from the file and decoded as the resident loader decodes them."""

    def generate_code(self) -> Callable[..., Any]:
        def decode(batch_indices: Any, destination: Any, metadata: Any, storage_state: Any) -> Any:
            count = len(batch_indices)
            wanted = np.empty((count, 2), np.int64)  # where it lies, and how many bytes
            for i in range(count):
                wanted[i, 0] = metadata[batch_indices[i]]["data_ptr"]
                wanted[i, 1] = storage_state[2 + batch_indices[i]]
            images = destination[:count]
            read_jpegs(
                storage_state.ctypes.data, wanted.ctypes.data, count,
                images.ctypes.data, images.size,
            )  # fmt: skip
            return images

        return decode


@ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 5)
def read_jpegs(state_at: int, wanted_at: int, count: int, images_at: int, size: int) -> None:
    """Decode so many JPEGs to an address; what fails is noted in the state of FileReads."""
    state, wanted = _array(state_at, 2, np.int64), _array(wanted_at, 2 * count, np.int64)
    images = _array(images_at, size, np.uint8).reshape(count, -1)
    file = int(state[0])

    def one(i: int) -> None:
        place, length = wanted[2 * i : 2 * i + 2].tolist()
        images[i] = pixels_of(os.pread(file, length, place)).reshape(-1)

    try:
        with ThreadPoolExecutor(max(1, Compiler.num_threads)) as threads:
            list(threads.map(one, range(count)))
    except Exception:  # of whatever kind: FFCV's thread cannot say it
        state[1] = 1


def _array(address: int, length: int, dtype: Any) -> np.ndarray:
    """The numbers at an address, which stay where they are."""
    raw = (ctypes.c_byte * (length * np.dtype(dtype).itemsize)).from_address(address)
    return np.frombuffer(raw, dtype)


@contextmanager
def reads_in_place_of_a_map() -> Iterator[None]:
    """FFCV loaders made inside read their file by FileReads; it has no argument for that."""
    own = LOADER.OSCacheManager
    LOADER.OSCacheManager = FileReads
    try:
        yield
    finally:
        LOADER.OSCacheManager = own
