"""The .beton of prepared pictures: FFCV's format, version 2, written and read without FFCV.

    header, fields, metadata (a row a sample) · names of the classes · pages of images · allocations

FFCV skips the classes' names, which lie in the gap before the first page, as JSON behind a mark.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np

from fastuiat.bounds import opened, parsed_json
from fastuiat.config import UserError
from fastuiat.data.on_disk import Header, ImagesOnDisk
from fastuiat.data.pictures import MOST_STORED, pixels_of
from fastuiat.machine import cpu

PAGE = 8 << 20
"""FFCV's own default, in bytes. No image straddles two."""
HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("num_fields", "<u2"),
        ("page_size", "<u4"),
        ("num_samples", "<u8"),
        ("alloc_table_ptr", "<u8"),
    ]
)
FIELD = np.dtype([("type_id", "u1"), ("name", "u1", (16,)), ("arguments", "u1", (1024,))])
FIELDS = (("image", 2), ("label", 1), ("index", 1))
"""Names and FFCV's numbers of their types."""
IMAGE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("data_ptr", "<u8")])
SAMPLE = np.dtype(
    {"names": ["image", "label", "index"], "formats": [IMAGE, "<i8", "<i8"]}, align=True
)
ALLOCATION = np.dtype([("sample_id", "<u8"), ("ptr", "<u8"), ("size", "<u8")])
JPEG, RAW = 0, 1
"""FFCV's numbers of the modes."""
VERSION = 2
MARK = b"fastuiat classes"
_ROWS_BEGIN = HEADER.itemsize + len(FIELDS) * FIELD.itemsize
_BLOCK = 16 << 20


def first_page_of(count: int, classes: Sequence[str]) -> int:
    """Where the images of at most so many samples begin, in bytes."""
    begin = _ROWS_BEGIN + count * SAMPLE.itemsize + len(_names(classes))
    return -(-begin // PAGE) * PAGE


def _names(classes: Sequence[str]) -> bytes:
    text = json.dumps(list(classes)).encode()
    return MARK + struct.pack("<Q", len(text)) + text


def finish(
    file: int, places: np.ndarray, sizes: np.ndarray, labels: np.ndarray,
    classes: Sequence[str], resolution: int, mode: int,
) -> int:  # fmt: skip
    """Write all but the images, which lie at `places` of a file; returns its size in bytes."""
    count = len(labels)
    end = -(-int(places[-1] + sizes[-1]) // PAGE) * PAGE
    header = np.zeros(1, HEADER)
    header["version"], header["num_fields"] = VERSION, len(FIELDS)
    header["page_size"], header["num_samples"], header["alloc_table_ptr"] = PAGE, count, end
    fields = np.zeros(len(FIELDS), FIELD)
    for field, (name, type_id) in zip(fields, FIELDS, strict=True):
        field["type_id"] = type_id
        field["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
    rows = np.zeros(count, SAMPLE)
    rows["image"]["mode"], rows["image"]["data_ptr"] = mode, places
    rows["image"]["width"] = rows["image"]["height"] = resolution
    rows["label"], rows["index"] = labels, np.arange(count)
    table = np.zeros(count, ALLOCATION)
    table["sample_id"], table["ptr"], table["size"] = rows["index"], places, sizes
    begin = header.tobytes() + fields.tobytes() + rows.tobytes() + _names(classes)
    for at, content in ((0, begin), (end, table.tobytes())):
        write_at(file, content, at)
    return end + table.nbytes


def image_kind(path: Path) -> tuple[int, int]:
    """(pixels a side, JPEG or RAW) of the images of any .beton; UserError on what is none."""
    try:
        with open(path, "rb") as file:
            file.seek(_ROWS_BEGIN)
            (image,) = np.frombuffer(file.read(IMAGE.itemsize), IMAGE)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is truncated or no .beton") from error
    return int(image["width"]), int(image["mode"])


def write_at(file: int, content: bytes | memoryview, at: int) -> None:
    rest = memoryview(content)
    while rest:
        count = os.pwrite(file, rest, at)
        rest, at = rest[count:], at + count


class BetonImages(ImagesOnDisk):
    """Images uint8 (N, R, R, 3) of a prepared .beton, with its `labels` and `classes`.

    UserError on a file that is none, and where it was changed after it was opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            with opened(path) as file:
                rows, sizes, self.classes = _read_tables(file)
        except (OSError, ValueError, struct.error) as error:
            raise UserError(
                f"{path} is truncated or was not prepared by fastuiat: delete it and it is "
                "prepared again"
            ) from error
        resolution = int(rows["image"]["width"][0])
        shape = (len(rows), resolution, resolution, 3)
        super().__init__(path, 0, Header(shape, np.dtype(np.uint8), False, 0), None)
        self.is_jpeg = bool(rows["image"]["mode"][0] == JPEG)
        self.labels = rows["label"].astype(np.int64)
        self._places, self._sizes = rows["image"]["data_ptr"].astype(np.int64), sizes
        self._decoders = ThreadPoolExecutor(cpu()["cpus"]) if self.is_jpeg else None

    def _read(self, first: int, count: int) -> np.ndarray:
        return self[np.arange(first, first + count)]

    def _into(self, rows: np.ndarray, first: int) -> None:
        if self._decoders is None:
            self._read_into(rows, int(self._places[first]))
        else:
            rows[0] = self._decoded(first)

    def _decoded(self, row: int) -> np.ndarray:
        jpeg = np.empty(self._sizes[row], np.uint8)
        self._read_into(jpeg, int(self._places[row]))
        return decoded(jpeg.tobytes(), self.shape[1], self.path)

    def __getitem__(self, rows: Any) -> np.ndarray:
        if isinstance(rows, slice) or np.ndim(rows) == 0 or self._decoders is None:
            return super().__getitem__(rows)
        rows = np.asarray(rows)
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        for i, pixels in enumerate(self._decoders.map(self._decoded, rows.tolist())):
            found[i] = pixels
        self._refuse_changes()
        return found


def decoded(jpeg: bytes, resolution: int, path: Path) -> np.ndarray:
    """uint8 (R, R, 3); UserError where a file's bytes are no such JPEG."""
    try:
        pixels = pixels_of(jpeg)
    except Exception as error:  # whatever Pillow is led to by a damaged file
        raise UserError(f"{path} is damaged: delete it and it is prepared again") from error
    if pixels.shape != (resolution, resolution, 3):
        raise UserError(f"{path} is damaged: delete it and it is prepared again")
    return pixels


def _read_tables(file: IO[bytes]) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """(rows SAMPLE (N,), sizes in bytes int64 (N,), names of the classes); ValueError on others."""
    (header,) = np.frombuffer(file.read(HEADER.itemsize), HEADER)
    count, end = int(header["num_samples"]), int(header["alloc_table_ptr"])
    size = os.fstat(file.fileno()).st_size
    known = header["version"] == VERSION and header["num_fields"] == len(FIELDS)
    begin = _ROWS_BEGIN + count * SAMPLE.itemsize
    if not (known and count and begin < end and end + count * ALLOCATION.itemsize == size):
        raise ValueError("another format")
    file.seek(_ROWS_BEGIN)
    rows = np.frombuffer(file.read(count * SAMPLE.itemsize), SAMPLE)
    if file.read(len(MARK)) != MARK:
        raise ValueError("it has no classes")
    (length,) = struct.unpack("<Q", file.read(8))
    classes = tuple(map(str, parsed_json(file.read(min(length, PAGE)).decode())))
    file.seek(end)
    table = np.frombuffer(file.read(count * ALLOCATION.itemsize), ALLOCATION)
    _refuse_impossible(rows, table["size"], len(classes), end)
    return rows, table["size"].astype(np.int64), classes


def _refuse_impossible(rows: np.ndarray, sizes: np.ndarray, num_classes: int, end: int) -> None:
    """ValueError where images are no squares of one size, lie elsewhere, or are of no class."""
    image, side = rows["image"], int(rows["image"]["width"][0])
    alike = (image["width"] == side) & (image["height"] == side)
    inside = (image["data_ptr"] < end) & (sizes <= end - np.minimum(image["data_ptr"], end))
    labelled = (rows["label"] >= 0) & (rows["label"] < num_classes)
    mode = int(image["mode"][0])
    whole = (sizes == 3 * side * side) if mode == RAW else (sizes > 0)
    right = alike & inside & labelled & whole & (image["mode"] == mode)
    if not (right.all() and mode in (JPEG, RAW) and 0 < side <= MOST_STORED):
        raise ValueError("images that cannot be")
