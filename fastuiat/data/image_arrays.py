"""`--dataset npz:PATH`: `image` and `label`, with `image_test` and `label_test` or a file of them.

`classes`, an array of texts, names the classes.
"""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from fastuiat.config import UserError, legible
from fastuiat.data.on_disk import Npz, described
from fastuiat.data.preparation import HIGHEST, LOWEST, STEP
from fastuiat.data.sources import DatasetInfo, refuse_labels, register_kind
from fastuiat.file_kinds import kind_of

MOST_CLASSES = 10**6
"""No data set has more, and a net of more is a typing error or a trap."""
WANTED = "an .npz of 'image' uint8 (N, H, W, 3) and 'label' integers (N,) is wanted"


def opened(path: Path) -> Npz:
    """UserError on what is no .npz."""
    kind = kind_of(path)
    if not path.exists():
        raise UserError(f"{path} does not exist: {WANTED}")
    if kind is None or not ("zip archive" in kind or ".npz" in kind):
        raise UserError(f"{path} is {kind or 'no .npz'}: {WANTED}")
    return Npz(path)


def place_of(path: Path, split: str) -> tuple[Path, str, str]:
    """(file, name of its images, name of its labels) of a split; UserError where there is none."""
    with opened(path) as content:
        names = set(content.members)
        if lacking := [repr(key) for key in ("image", "label") if key not in names]:
            has = described(content)
            raise UserError(f"{path} lacks {' and '.join(lacking)}: it has {has}; {WANTED}")
    if split == "train":
        return path, "image", "label"
    if {"image_test", "label_test"} <= names:
        return path, "image_test", "label_test"
    beside = test_file(path)
    if not beside.exists():
        raise UserError(
            f"{path} has no test images: {beside} does not exist, and it holds no 'image_test' "
            "and 'label_test'"
        )
    with opened(beside) as content:
        for suffix in ("", "_test"):
            if {f"image{suffix}", f"label{suffix}"} <= content.members.keys():
                return beside, f"image{suffix}", f"label{suffix}"
        has = described(content)
    raise UserError(f"{beside} lacks 'image' or 'label': it has {has}; {WANTED}")


def test_file(path: Path) -> Path:
    """flowers_test.npz beside flowers.npz or flowers_train.npz."""
    return path.with_name(path.stem.removesuffix("_train") + "_test" + path.suffix)


def labels_of(path: Path, split: str) -> np.ndarray:
    """int64 (N,); UserError on what are none."""
    file, _, name = place_of(path, split)
    with opened(file) as content:
        refuse_labels(content.header(name), file)
        labels = content.array(name)
    if not len(labels):
        raise UserError(f"{file} holds no images")
    if labels.min() < 0:
        raise UserError(f"{file}: {name!r} must be 0, 1, …, got {labels.min()}")
    if labels.max() >= MOST_CLASSES:
        raise UserError(f"{file}: {name!r} must be below {MOST_CLASSES:,}, got {labels.max()}")
    return labels.astype(np.int64)


def refuse_images(images: Any, file: Path, name: str) -> None:
    """UserError on an array of images, or its header, of another shape or dtype than is wanted."""
    shape = tuple(images.shape)
    is_grey = len(shape) == 3
    is_colour = len(shape) == 4 and shape[3] in (1, 3)
    if images.dtype != np.uint8 or not (is_grey or is_colour) or 0 in shape[1:3]:
        advice = ""
        if len(shape) == 4 and not is_colour and shape[1] in (1, 3):
            advice = ", channels first: .transpose(0, 2, 3, 1) them"
        elif images.dtype.kind == "f":
            advice = ": grey levels 0 … 255 as bytes, of pixels in [0, 1] by (255 * image).round()"
        raise UserError(
            f"{file}: {name!r} must be uint8 (N, H, W, 3), or grey (N, H, W), got "
            f"{images.dtype} {shape}{advice}"
        )


def read(path: Path, data_dir: Path, split: str) -> tuple[Any, np.ndarray]:
    """(images, labels) as they lie in the file, on disk where they are large and can stay there."""
    file, name, _ = place_of(path, split)
    with opened(file) as content:
        images = content.on_disk(name)
    refuse_images(images, file, name)
    if images.ndim == 3 and isinstance(images, np.ndarray):
        images = images[..., None]
    labels = labels_of(path, split)
    if len(images) != len(labels):
        raise UserError(f"{file}: {len(images)} images but {len(labels)} labels")
    return images, labels


def classes_in(path: Path) -> tuple[str, ...]:
    """Names, or numbers where the file has none; UserError where a class has no image."""
    labels = labels_of(path, "train")
    with opened(path) as content:
        named = "classes" in content.members
        names = content.array("classes") if named else np.arange(labels.max() + 1)
    if names.ndim != 1 or (named and names.dtype.kind not in "US"):
        raise UserError(f"{path}: 'classes' must be texts (K,), got {names.dtype} {names.shape}")
    if names.dtype.kind == "S":
        names = np.char.decode(names, "utf-8", "replace")
    found = np.bincount(labels, minlength=len(names))
    if len(found) > len(names):
        raise UserError(
            f"{path}: 'classes' names {len(names)} of them, but a label is {labels.max()}"
        )
    if len(names) < 2:
        raise UserError(f"{path} holds one class: at least two are needed")
    if not found.all():
        raise UserError(
            f"{path} has no image of class {found.argmin()}: labels are 0 … K−1 of K classes"
        )
    highest = labels_of(path, "test").max()
    if highest >= len(names):
        file = place_of(path, "test")[0]
        raise UserError(f"{file}: a test label is {highest}, of {len(names)} classes")
    texts = tuple(map(str, names.tolist()))
    twice, times = Counter(texts).most_common(1)[0]
    if times > 1:
        raise UserError(f"{path}: 'classes' names {times} of them {legible(twice)!r}")
    return texts


def own_resolution(path: Path) -> int | None:
    """Pixels a side of square images of a size that nets are trained on; else None."""
    with opened(path) as content:
        shape = content.header("image").shape
    if len(shape) < 3 or shape[1] != shape[2]:
        return None
    return shape[1] if LOWEST <= shape[1] <= HIGHEST and not shape[1] % STEP else None


def open_arrays(path: Path, name: str) -> DatasetInfo:
    """What is known of a file before its images are read; UserError on one that is none."""
    for split in ("train", "test"):
        file, name_of_images, _ = place_of(path, split)
        with opened(file) as content:
            refuse_images(content.header(name_of_images), file, name_of_images)
    classes = classes_in(path)
    return DatasetInfo(
        name=name,
        num_classes=len(classes),
        classes=classes,
        flip=True,
        resolution=own_resolution(path),
        read=functools.partial(read, path),
    )


register_kind("npz", open_arrays)
