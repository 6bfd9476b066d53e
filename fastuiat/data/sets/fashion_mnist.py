"""Fashion-MNIST (Xiao et al. 2017), framed to 32×32 and repeated over three channels."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fastuiat.config import UserError
from fastuiat.data.published import (
    FileContent,
    PublishedContent,
    PublishedFile,
    plain_file,
    what_else,
)
from fastuiat.data.sources import DatasetInfo, checked, register
from fastuiat.file_kinds import reason_of

SITE = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
FOLDER = "FashionMNIST/raw"
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
SUMS = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
FILES = {
    split: tuple(
        PublishedFile(f"{SITE}/{name}.gz", f"{FOLDER}/{name}.gz", md5)
        for name, md5 in SUMS.items()
        if name.startswith(prefix)
    )
    for split, prefix in (("train", "train-"), ("test", "t10k-"))
}


CONTENT = {
    "train": PublishedContent(
        60_000,
        "ef8b549d1b76ab4d4041dbcac823e09879195b95325fb0f1c9c481aaef952ea7",
        (
            FileContent(
                "train-images-idx3-ubyte",
                slice(None),
                slice(0),
                "11eb08e06ebca3187972f539cef01f42146e13535ef04b92cc3169da3906f599",
            ),
            FileContent(
                "train-labels-idx1-ubyte",
                slice(0),
                slice(None),
                "e3245b63f7c40d1c8b652835f19744d970c1613b40ddac6bcfc87b9c46e16a0b",
            ),
        ),
    ),
    "test": PublishedContent(
        10_000,
        "b8a531513bc2710bdf7f2f19730b3c614c4cc677822e62dd5e26a264d0c6b3e3",
        (
            FileContent(
                "t10k-images-idx3-ubyte",
                slice(None),
                slice(0),
                "f8d50c372b3e2ce3dfc8924d6d23d84464789c7f70ebb34bd0b86b4ddb6ba90c",
            ),
            FileContent(
                "t10k-labels-idx1-ubyte",
                slice(0),
                slice(None),
                "d51d859896c55775b9e9e219b77ff03bcec1b6ac322f313544dc3f9e7bc94fae",
            ),
        ),
    ),
}
"""Of the images as `read` frames them: the files may be packed anew, as Debian's are."""
CLASSES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
    "ankle boot",
)  # fmt: skip
LARGEST = 1 << 26
"""Bytes that a file unpacks to; the largest that is published has 47 MB."""


def read_idx(path: Path) -> np.ndarray:
    """An idx file of bytes, gzipped or not. No more is unpacked than its header promises."""
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as file:
            zero, kind, dims = struct.unpack(">HBB", file.read(4))
            if zero != 0 or kind != 8:
                raise ValueError("wrong magic number")
            shape = struct.unpack(f">{dims}I", file.read(4 * dims))
            promised = math.prod(shape)
            if promised > LARGEST:
                raise ValueError(f"its header promises {promised:,} bytes")
            content: bytes = file.read(promised)
            if file.read(1):  # at its end gzip also compares its checksum
                raise ValueError(f"it goes on behind the {promised:,} bytes of its header")
        return np.frombuffer(content, np.uint8).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        reason = what_else(path, "a gzip file") or f" ({reason_of(error)})"
        raise UserError(f"{path} is truncated or no idx file{reason}") from error


def found_in(folder: Path, split: str) -> list[Path]:
    """Images and labels of a split as far as a folder has them, gzipped or not."""
    zipped = [folder / Path(file.path).name for file in FILES[split]]
    options = [[path.with_suffix(""), path] for path in zipped]
    return [p for pair in options for p in [next((q for q in pair if q.exists()), None)] if p]


def read(data_dir: Path, split: str) -> tuple[Any, Any]:
    folders = (data_dir / FOLDER, data_dir, DEBIAN)
    found = next((f for folder in folders if len(f := found_in(folder, split)) == 2), None)
    found = found or [file.fetched(data_dir) for file in FILES[split]]
    images, labels = (read_idx(plain_file(path)) for path in found)
    if images.shape[1:] != (28, 28):
        raise UserError(f"{found[0]}: images must be 28×28, got {images.shape}")
    framed = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    colour = np.repeat(framed[..., None], 3, axis=3)
    part = checked("fashion-mnist", colour, labels, 10, found[1])
    return part.images, part.labels


register(
    DatasetInfo(
        name="fashion-mnist",
        num_classes=10,
        classes=CLASSES,
        flip=True,
        files=FILES,
        content=CONTENT,
        read=read,
    )
)
