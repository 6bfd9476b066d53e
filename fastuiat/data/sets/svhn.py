"""SVHN (Netzer et al. 2011), from the .mat files of its cropped digits."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from fastuiat.config import UserError
from fastuiat.data.mat import read_mat
from fastuiat.data.published import PublishedFile, what_else
from fastuiat.data.sets.generated import ddpm_images
from fastuiat.data.sources import DatasetInfo, checked, register
from fastuiat.file_kinds import reason_of

SITE = "http://ufldl.stanford.edu/housenumbers"
TRAIN = PublishedFile(
    f"{SITE}/train_32x32.mat", "train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"
)
TEST = PublishedFile(f"{SITE}/test_32x32.mat", "test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3")
FILES = {"train": (TRAIN,), "test": (TEST,)}


def read(data_dir: Path, split: str) -> tuple[Any, Any]:
    path = FILES[split][0].fetched(data_dir)
    try:
        content = read_mat(path)
    except (OSError, ValueError, EOFError, KeyError, zlib.error, struct.error) as error:
        reason = what_else(path, "a MATLAB file") or f" ({reason_of(error)})"
        raise UserError(f"{path} is truncated or not in SVHN's format{reason}") from error
    images, labels = content.get("X"), content.get("y")
    if images is None or labels is None:
        there = ", ".join(map(repr, list(content)[:6])) or "nothing"
        raise UserError(f"{path} lacks X or y, as arrays of numbers: it has {there}")
    if images.ndim != 4 or images.shape[:3] != (32, 32, 3) or images.dtype != np.uint8:
        raise UserError(
            f"{path}: X must be uint8 (32, 32, 3, N), got {images.dtype} {images.shape}"
        )
    digits = digits_of(labels, images.shape[3], path)
    part = checked("svhn", images.transpose(3, 0, 1, 2), digits, 10, path)
    return part.images, part.labels


def digits_of(labels: np.ndarray, count: int, path: Path) -> np.ndarray:
    """The digits int64 (N,) of y, where the digit 0 is published as 10; UserError on others."""
    if labels.dtype.kind not in "iuf" or labels.size not in labels.shape:
        raise UserError(f"{path}: y must be numbers (N, 1), got {labels.dtype} {labels.shape}")
    labels = labels.reshape(-1)
    if len(labels) != count:
        raise UserError(f"{path}: X holds {count} images, but y {len(labels)} labels")
    with np.errstate(invalid="ignore"):  # of NaN and infinity
        whole = labels.astype(np.int64)
    if not np.array_equal(whole, labels):
        raise UserError(f"{path}: y must be whole numbers, got {labels[whole != labels][0]:g}")
    low, high = (whole.min(), whole.max()) if count else (1, 10)
    if low < 1 or high > 10:
        zero = " (the digit 0 is published as 10, not as 0)" if (low, high) == (0, 9) else ""
        raise UserError(f"{path}: y must be 1 to 10, got {low} to {high}{zero}")
    return whole % 10


register(
    DatasetInfo(
        name="svhn",
        num_classes=10,
        classes=tuple("0123456789"),
        flip=False,
        files=FILES,
        ddpm1m=ddpm_images("svhn"),
        read=read,
    )
)
