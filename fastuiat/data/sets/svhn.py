"""SVHN (Netzer et al. 2011), from the .mat files of its cropped digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastuiat.config import UserError
from fastuiat.data.sets.generated import ddpm_images
from fastuiat.data.sources import DatasetInfo, PublishedFile, checked, register

SITE = "http://ufldl.stanford.edu/housenumbers"
TRAIN = PublishedFile(
    f"{SITE}/train_32x32.mat", "train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"
)
TEST = PublishedFile(f"{SITE}/test_32x32.mat", "test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3")
FILES = {"train": (TRAIN,), "test": (TEST,)}


def read(data_dir: Path, split: str) -> tuple[Any, Any]:
    path = FILES[split][0].fetched(data_dir)
    from scipy.io import loadmat

    try:
        content = loadmat(path)
        images, labels = content["X"], content["y"]
    except Exception as error:
        raise UserError(f"{path} is truncated or not in SVHN's format") from error
    labels = labels.reshape(-1)
    if images.ndim != 4 or not np.isin(labels, range(1, 11)).all():
        raise UserError(f"{path}: X must be (32, 32, 3, N) and y 1 to 10, got X {images.shape}")
    labels = labels.astype(np.int64) % 10  # the digit 0 is published as 10
    part = checked("svhn", images.transpose(3, 0, 1, 2), labels, 10, path)
    return part.images, part.labels


register(
    DatasetInfo(
        name="svhn",
        num_classes=10,
        flip=False,
        files=FILES,
        ddpm1m=ddpm_images("svhn"),
        read=read,
    )
)
