"""Data: named sets, generated extras, one order of batches, and two loaders that follow it."""

from __future__ import annotations

import logging
from collections.abc import Generator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from fastuiat.config import UserError
from fastuiat.data import sets  # noqa: F401  (registers them)
from fastuiat.data.ahead import one_ahead
from fastuiat.data.batch import Batch
from fastuiat.data.beton import Images
from fastuiat.data.extra import extra_path, load_extra
from fastuiat.data.order import Order, validation_split
from fastuiat.data.resident_loader import ResidentLoader
from fastuiat.data.sources import (
    DATASETS,
    DatasetInfo,
    ImageSet,
    PublishedFile,
    dataset_info,
    load,
    register,
)

__all__ = [
    "DATASETS",
    "Batch",
    "DatasetInfo",
    "ImageSet",
    "Loader",
    "Order",
    "PublishedFile",
    "ResidentLoader",
    "dataset_info",
    "extra_path",
    "ffcv_available",
    "joined",
    "load",
    "load_extra",
    "make_loader",
    "one_ahead",
    "prepare",
    "register",
    "validation_split",
]

_log = logging.getLogger(__name__)
_INSTALL = (
    "apt-get install -y pkg-config libopencv-dev libturbojpeg0-dev && "
    "pip install wheel setuptools numpy numba opencv-python-headless pandas tqdm psutil "
    "terminaltables fastargs && pip install --no-build-isolation --no-deps ffcv"
)


class Loader(Protocol):
    """What a trainer needs of a loader."""

    order: Order

    @property
    def num_samples(self) -> int: ...

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[Batch, None, None]: ...

    def close(self) -> None: ...


def make_loader(
    kind: str,
    images: Images,
    labels: np.ndarray,
    order: Order,
    *,
    device: torch.device | str,
    flip: bool,
    workers: int = 1,
    cache_dir: str | Path,
    name: str,
) -> Loader:
    """The loader `ffcv` or `resident`; `auto` is ffcv where it is installed and can write.

    Both give the same batches. The .beton of FFCV goes into `cache_dir`, under `name`.
    """
    if kind not in ("auto", "ffcv", "resident"):
        raise UserError(f"unknown loader '{kind}': choose auto, ffcv or resident")
    if kind != "resident":
        # Late: FFCV is optional, and its import takes seconds.
        from fastuiat.data import beton, ffcv_loader

        if ffcv_loader.available():
            try:
                path = beton.prepare(images, labels, cache_dir, name)
                return ffcv_loader.FFCVLoader(
                    path, order, device=device, flip=flip, workers=max(1, workers)
                )
            except OSError as error:
                if kind == "ffcv":
                    raise UserError(
                        f"cannot write {name}.beton in {cache_dir} ({error}): "
                        "choose another cache folder or --loader resident"
                    ) from error
                _log.warning("no .beton in %s (%s): using the resident loader", cache_dir, error)
        elif kind == "ffcv":
            raise UserError(f"FFCV is not installed: {_INSTALL}, or choose --loader resident")
    return ResidentLoader(images, labels, order, device=torch.device(device), flip=flip)


def joined(original: ImageSet, extra: ImageSet) -> tuple[list[np.ndarray], np.ndarray, int]:
    """Originals 0 … N−1, then generated images N … N+M−1: (images in two parts, labels, M).

    A million images are 3 GB: they are not copied into one array.
    """
    labels = np.concatenate([original.labels, extra.labels])
    return [original.images, extra.images], labels, len(extra.labels)


def ffcv_available() -> bool:
    """Whether FFCV can be imported here."""
    from fastuiat.data.ffcv_loader import available

    return available()


def prepare(name: str, data_dir: Path, extra_data: str | None = None) -> Path:
    """Write and check the .beton that `train` would read; UserError where FFCV is missing."""
    if not ffcv_available():
        raise UserError(f"FFCV is not installed: {_INSTALL}")
    from fastuiat.data import beton

    train_set = load(name, data_dir, "train")
    images: Images = train_set.images
    labels = train_set.labels
    if extra_data:
        images, labels, _ = joined(train_set, load_extra(extra_data, name, data_dir))
    try:
        path = beton.prepare(images, labels, data_dir, name)
    except OSError as error:
        raise UserError(f"cannot write {name}'s .beton in {data_dir}: {error}") from error
    beton.check(path)
    return path
