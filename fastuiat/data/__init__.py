"""Data: named sets, generated extras, one order of batches, and two loaders that follow it."""

from __future__ import annotations

import logging
from collections.abc import Generator
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from fastuiat.config import UserError
from fastuiat.data import image_arrays, image_folder, sets  # noqa: F401  (registers them)
from fastuiat.data.ahead import one_ahead
from fastuiat.data.augmentation import Kind
from fastuiat.data.batch import Batch
from fastuiat.data.beton_file import BetonImages
from fastuiat.data.extra import extra_path, load_extra, refuse_nameless
from fastuiat.data.fingerprint import (
    LARGE,
    Fingerprint,
    difference,
    split_json,
    sum_of,
    training_difference,
)
from fastuiat.data.on_disk import Images
from fastuiat.data.order import Order, validation_split
from fastuiat.data.preparation import AS_IT_IS, Preparation, refuse_resolution
from fastuiat.data.resident_loader import ResidentLoader
from fastuiat.data.sources import (
    DATASETS,
    DatasetInfo,
    ImageSet,
    PublishedFile,
    dataset_info,
    fingerprinted,
    json_of,
    label_of,
    load,
    names_path,
    register,
    resolution_of,
)

__all__ = [
    "DATASETS",
    "Batch",
    "DatasetInfo",
    "Fingerprint",
    "ImageSet",
    "Loader",
    "Order",
    "Preparation",
    "PublishedFile",
    "ResidentLoader",
    "dataset_info",
    "difference",
    "extra_path",
    "ffcv_available",
    "fingerprinted",
    "joined",
    "json_of",
    "label_of",
    "load",
    "load_extra",
    "make_loader",
    "names_path",
    "one_ahead",
    "prepare",
    "refuse_nameless",
    "refuse_resolution",
    "register",
    "resolution_of",
    "split_json",
    "training_difference",
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
    source: str | None = None,
    augment: Kind = "crop",
) -> Loader:
    """The loader `ffcv` or `resident`; `auto` is ffcv where it is installed and can write.

    Both give the same batches. The .beton of FFCV goes into `cache_dir`, under `name` and `source`,
    a sum over images and labels that is made if it is not given; images of a prepared one are read
    from that.
    """
    if kind not in ("auto", "ffcv", "resident"):
        raise UserError(f"unknown loader '{kind}': choose auto, ffcv or resident")
    if kind != "resident":
        # Late: FFCV is optional, and its import takes seconds.
        from fastuiat.data import beton, ffcv_loader

        if ffcv_loader.available():
            try:
                if isinstance(images, BetonImages):
                    path = images.path
                else:
                    path = beton.prepare(images, labels, cache_dir, label_of(name), source)
                return ffcv_loader.FFCVLoader(
                    path, order, device=device, flip=flip, workers=max(1, workers), augment=augment
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
    return ResidentLoader(
        images, labels, order, device=torch.device(device), flip=flip, augment=augment
    )


def joined(original: ImageSet, extra: ImageSet | None) -> tuple[Images, np.ndarray, str]:
    """Originals 0 … N−1, then generated images N … N+M−1: (images, labels, a sum over all).

    A million images are 3 GB: they are not copied into one array.
    """
    prints = [part.fingerprint for part in (original, extra) if part is not None]
    source = sum_of([made for made in prints if made is not None])
    if extra is None:
        return original.images, original.labels, source
    labels = np.concatenate([original.labels, extra.labels])
    return [original.images, extra.images], labels, source


def ffcv_available() -> bool:
    """Whether FFCV can be imported here."""
    from fastuiat.data.ffcv_loader import available

    return available()


def prepare(
    name: str,
    data_dir: Path,
    extra_data: str | None = None,
    *,
    unchecked: bool = False,
    how: Preparation = AS_IT_IS,
) -> Path:
    """Write and check the .beton that `train` would read; UserError where it needs FFCV, and that
    is missing.

    Of a user's own pictures, and of images of another resolution than their own, those for testing
    are prepared too.
    """
    refuse_nameless(extra_data)
    train_set = load(name, data_dir, "train", unchecked=unchecked, how=how)
    if isinstance(train_set.images, BetonImages):
        load(name, data_dir, "test", unchecked=unchecked, how=how)
        if extra_data is None:
            return train_set.images.path
    if not ffcv_available():
        raise UserError(f"FFCV is not installed: {_INSTALL}")
    from fastuiat.data import beton

    extra = None
    if extra_data is not None:
        extra = load_extra(extra_data, name, data_dir, how.resolution)
    images, labels, source = joined(train_set, extra)
    try:
        path = beton.prepare(images, labels, data_dir, label_of(name), source)
    except OSError as error:
        raise UserError(f"cannot write {name}'s .beton in {data_dir}: {error}") from error
    if path.stat().st_size <= LARGE:
        beton.check(path)
    return path
