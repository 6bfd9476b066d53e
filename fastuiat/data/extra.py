"""Generated images: `image` uint8 (M, R, R, 3) and `label` (M,) of one file or of several."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fastuiat.config import UserError
from fastuiat.data.on_disk import Joined, Npy, Npz, Part, described
from fastuiat.data.sources import (
    DATASETS,
    LABELS,
    ImageSet,
    checked,
    dataset_info,
    fingerprinted,
    images_wanted,
    label_of,
    refuse_labels,
    resolution_of,
)
from fastuiat.file_kinds import kind_of

FULL_POOL = 100
"""A pool of this many images a class on average has some of every class."""
WANTED = f"wanted is an .npz with 'image' {images_wanted()} and 'label' {LABELS}"
NPY = "an .npy of images needs one of labels behind it or beside it, as image.npy and label.npy"


class _File(NamedTuple):
    """A part of a pool: an .npz, or the .npy of its images and that of its labels."""

    images: Path
    labels: Path | None = None


def refuse_nameless(spec: str | Path | None) -> None:
    """UserError on an empty --extra-data, as of a shell's variable that is not set."""
    if spec is not None and str(spec) in ("", "."):
        raise UserError("--extra-data names no file: give ddpm1m or the path of an .npz")


def extra_path(spec: str | Path, dataset: str, data_dir: Path) -> Path:
    """Where the file of `ddpm1m`, or of a path, lies; it is downloaded if it must be."""
    refuse_nameless(spec)
    if spec != "ddpm1m":
        return Path(spec)
    pool = dataset_info(dataset).ddpm1m
    if pool is None:
        have = ", ".join(name for name, info in DATASETS.items() if info.ddpm1m)
        raise UserError(f"there are no ddpm1m images of {dataset}, only of {have}")
    return pool.fetched(Path(data_dir))


def files_of(spec: str | Path, dataset: str, data_dir: Path) -> list[_File]:
    """The parts of a pool: `spec` is ddpm1m, a path, or several of them with commas between."""
    text = str(spec)
    names = [text] if Path(text).exists() else text.split(",")
    if "" in (stripped := [name.strip() for name in names]):
        raise UserError(f"--extra-data {text} has a comma too many: a name is empty")
    paths = [extra_path(name, dataset, data_dir) for name in stripped]
    for path in paths:
        if not path.exists():
            raise UserError(
                f"--extra-data {path} does not exist: give ddpm1m or the path of an .npz"
            )
    files, at = [], 0
    while at < len(paths):
        path, following = paths[at], paths[at + 1] if at + 1 < len(paths) else None
        is_pair = following is not None and len(_npy_shape(following)) in (1, 2)
        if not _npy_shape(path):
            files.append(_File(path))
        elif is_pair:
            files.append(_File(path, following))
            at += 1
        else:
            files.append(_File(path, labels_beside(path)))
        at += 1
    seen: set[str] = set()
    for file in files:
        place = os.path.realpath(file.images)
        if place in seen:
            raise UserError(f"--extra-data names {file.images} twice")
        seen.add(place)
    return files


def _npy_shape(path: Path) -> tuple[int, ...]:
    """Of an .npy; nothing of any other file."""
    return Npy(path).header.shape if (kind_of(path) or "").endswith("(.npy)") else ()


def labels_beside(path: Path) -> Path:
    """label.npy of image.npy, a_labels.npy of a_images.npy; UserError where there is none."""
    name = re.sub(r"image(s?)(?!.*image)", r"label\1", path.name)
    if name == path.name or not (beside := path.with_name(name)).exists():
        raise UserError(f"--extra-data {path} is {kind_of(path)} alone: {WANTED}; {NPY}")
    return beside


def load_extra(
    spec: str | Path, dataset: str, data_dir: str | Path, resolution: int | None = None
) -> ImageSet:
    """Generated images for a data set, with their fingerprint; UserError on a file that does not
    fit it. Uncompressed images stay on disk."""
    refuse_nameless(spec)
    info = dataset_info(dataset)
    side = resolution_of(info, resolution)
    files = files_of(spec, dataset, Path(data_dir))
    parts = [_read(file, dataset, info.num_classes, side) for file in files]
    labels = np.concatenate([part.labels for part in parts]) if len(parts) > 1 else parts[0].labels
    images = Joined([part.images for part in parts]) if len(parts) > 1 else parts[0].images
    found = np.count_nonzero(np.bincount(labels, minlength=info.num_classes))
    if found < info.num_classes and len(labels) >= FULL_POOL * info.num_classes:
        raise UserError(
            f"{spec} holds {found} of the {info.num_classes} classes of {dataset}: is it of "
            "another data set?"
        )
    pool = ImageSet(f"{label_of(dataset)}+extra", images, labels, info.num_classes)
    statuses = [os.stat(path) for file in files for path in file if path]
    identity = repr([(status.st_size, status.st_mtime_ns) for status in statuses])
    return fingerprinted(pool, "extra", identity)


def _read(file: _File, dataset: str, num_classes: int, side: int) -> ImageSet:
    path = file.images
    if file.labels:
        images: Part = Npy(path).on_disk()
        beside = Npy(file.labels)
        refuse_labels(beside.header, file.labels)
        labels = beside.array()
    else:
        kind = kind_of(path)
        # Any zip may be an .npz with something beside its arrays.
        if kind is None or not ("zip archive" in kind or ".npz" in kind):
            raise UserError(f"--extra-data {path} is {kind or 'no .npz'}: {WANTED}")
        with Npz(path) as content:
            if lacking := [repr(key) for key in ("image", "label") if key not in content.members]:
                raise UserError(
                    f"{path} lacks {' and '.join(lacking)}: it has {described(content)}; {WANTED}"
                )
            refuse_labels(content.header("label"), path)
            labels, images = content.array("label"), content.on_disk("image")
    return checked(f"{dataset}+extra", images, labels, num_classes, path, side)
