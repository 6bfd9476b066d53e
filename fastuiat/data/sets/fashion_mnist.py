"""Fashion-MNIST (Xiao et al. 2017), framed to 32×32 and repeated over three channels."""

from __future__ import annotations

import gzip
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fastuiat.config import UserError
from fastuiat.data.sources import DatasetInfo, PublishedFile, checked, register

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


def read_idx(path: Path) -> np.ndarray:
    """An idx file of bytes, gzipped or not."""
    try:
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as file:
            content: bytes = file.read()
        zero, kind, dims = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{dims}I", content[4 : 4 + 4 * dims])
        if zero != 0 or kind != 8:
            raise ValueError("wrong magic number")
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape)
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{path} is truncated or no idx file ({error})") from error


def found_in(folder: Path, split: str) -> list[Path]:
    """Images and labels of a split as far as a folder has them, gzipped or not."""
    zipped = [folder / Path(file.path).name for file in FILES[split]]
    options = [[path.with_suffix(""), path] for path in zipped]
    return [p for pair in options for p in [next((q for q in pair if q.is_file()), None)] if p]


def read(data_dir: Path, split: str) -> tuple[Any, Any]:
    folders = (data_dir / FOLDER, data_dir, DEBIAN)
    found = next((f for folder in folders if len(f := found_in(folder, split)) == 2), None)
    found = found or [file.fetched(data_dir) for file in FILES[split]]
    images, labels = read_idx(found[0]), read_idx(found[1])
    if images.shape[1:] != (28, 28):
        raise UserError(f"{found[0]}: images must be 28×28, got {images.shape}")
    framed = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    colour = np.repeat(framed[..., None], 3, axis=3)
    part = checked("fashion-mnist", colour, labels, 10, found[1])
    return part.images, part.labels


register(DatasetInfo(name="fashion-mnist", num_classes=10, flip=True, files=FILES, read=read))
