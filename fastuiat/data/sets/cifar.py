"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from the python-version pickles."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastuiat.config import UserError
from fastuiat.data.array_pickle import read_array_pickle
from fastuiat.data.published import (
    FileContent,
    PublishedContent,
    PublishedFile,
    plain_file,
    what_else,
)
from fastuiat.data.sets.generated import ddpm_images
from fastuiat.data.sources import DatasetInfo, checked, register, unpacked
from fastuiat.data.tar_archive import LARGEST, files_in
from fastuiat.file_kinds import reason_of

SITE = "https://www.cs.toronto.edu/~kriz"


def read_pickle(path: Path, content: bytes) -> dict[str, Any]:
    try:
        loaded = read_array_pickle(content)
    except Exception as error:
        reason = what_else(path, "a Python pickle", "a tar archive") or f" ({reason_of(error)})"
        raise UserError(f"{path} is truncated or not in CIFAR's format{reason}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} is not in CIFAR's format: it holds a {type(loaded).__name__}")
    return loaded


def reader(
    name: str, folder: str, archive: PublishedFile, members: dict[str, list[str]], label_key: str
) -> Callable[[Path, str], tuple[Any, Any]]:
    """A reader of the pickles, from the folder or the published archive."""
    num_classes = 100 if label_key == "fine_labels" else 10

    def read(data_dir: Path, split: str) -> tuple[Any, Any]:
        if not (data_dir / folder).is_dir() and not (data_dir / archive.path).exists():
            unpacked(archive.fetched(data_dir), data_dir / folder)
        images, labels = [], []
        for member in members[split]:
            path = data_dir / folder / member
            batch = read_pickle(path, member_bytes(path, data_dir / archive.path))
            if "data" not in batch or label_key not in batch:
                raise UserError(f"{path} lacks 'data' or '{label_key}'")
            part = checked(name, *arrays_of(batch, label_key, path), num_classes, path)
            images.append(part.images)
            labels.append(part.labels)
        return np.concatenate(images), np.concatenate(labels)

    return read


def arrays_of(batch: dict[str, Any], label_key: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, 32, 32, 3) and labels of a batch."""
    pixels, labels = batch["data"], batch[label_key]
    if not isinstance(pixels, np.ndarray):
        raise UserError(f"{path}: 'data' must be uint8 (N, 3072), got a {type(pixels).__name__}")
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise UserError(
            f"{path}: 'data' must be uint8 (N, 3072), got {pixels.dtype} {pixels.shape}"
        )
    if isinstance(labels, list) and not all(isinstance(label, int | float) for label in labels):
        raise UserError(f"{path}: {label_key!r} must be numbers")
    if not isinstance(labels, list | np.ndarray):
        raise UserError(f"{path}: {label_key!r} must be numbers, got a {type(labels).__name__}")
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.asarray(labels)


def member_bytes(path: Path, archive: Path) -> bytes:
    """A file of the folder, or of the archive where there is no folder."""
    if path.parent.is_dir():
        try:
            if plain_file(path).stat().st_size > LARGEST:
                raise UserError(f"{path} is too large to be in CIFAR's format")
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from error
    name = f"{path.parent.name}/{path.name}"
    try:
        found = [file.read() for there, file in files_in(plain_file(archive)) if there == name]
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        reason = what_else(archive, "a tar archive", "a gzip file") or f" ({reason_of(error)})"
        raise UserError(f"{archive} is truncated or no archive of CIFAR{reason}") from error
    if found:
        return found[0]
    raise UserError(f"{archive}: {name} is no file of CIFAR's size, or not there")


CIFAR10 = PublishedFile(
    f"{SITE}/cifar-10-python.tar.gz", "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"
)
CIFAR10_FOLDER = "cifar-10-batches-py"
CIFAR10_BATCHES = {
    "data_batch_1": "5c3aa79ef222352f26d831f464b4e498b7ac64504c67e061f0888d2f598eac17",
    "data_batch_2": "8623c28744fe66bc93881232aa70f8aaf58464c513bf24ec11fdfd4c38494a97",
    "data_batch_3": "acf6124661f089f92d55359de67d4b8027dbf012b490254fe9095a4fff6ff3ed",
    "data_batch_4": "894a3fc10589cd2905c03c1da1fb4322a157a63c3cf1126c763c8f79d089d5b6",
    "data_batch_5": "fe2d07d13456ba4fa93bafc942aafed888109eb86fa15852d9b872761aeb1c74",
    "test_batch": "e54a434ec35094516eacbaac0f2f9550358d985e9d1f71b47d41d333c15ba304",
}
"""SHA-256 of the images and labels of each: 10,000 of them. All 60,000 images and then all their
labels, training images first, are
679a0a54bc26fa5425a8717c376404f30e2982dcca8ebd67a5e0ea32155044bf."""


def cifar10_content(names: list[str], sha256: str) -> PublishedContent:
    parts = [slice(10_000 * i, 10_000 * (i + 1)) for i in range(len(names))]
    files = tuple(
        FileContent(f"{CIFAR10_FOLDER}/{name}", part, part, CIFAR10_BATCHES[name])
        for name, part in zip(names, parts, strict=True)
    )
    return PublishedContent(10_000 * len(names), sha256, files)


CIFAR10_CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
_CIFAR100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile
cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp
lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
CIFAR100_CLASSES = tuple(_CIFAR100.split())

CIFAR100_TRAIN, CIFAR100_TEST = (
    PublishedFile(
        f"{SITE}/cifar-100-python.tar.gz",
        "cifar-100-python.tar.gz",
        "eb9058c3a382ffc7106e4002c42a8d85",
        members=(member,),
    )
    for member in (
        ("cifar-100-python/train", "16019d7e3df5f24257cddd939b257f8d"),
        ("cifar-100-python/test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),
    )
)

register(
    DatasetInfo(
        name="cifar10",
        num_classes=10,
        classes=CIFAR10_CLASSES,
        flip=True,
        files={"train": (CIFAR10,), "test": (CIFAR10,)},
        ddpm1m=ddpm_images("cifar10"),
        content={
            "train": cifar10_content(
                list(CIFAR10_BATCHES)[:5],
                "67e12c2a5906880a4fe5595fe6d768185ad7ca587f35d3a7ece3c3b8b85035d2",
            ),
            "test": cifar10_content(["test_batch"], CIFAR10_BATCHES["test_batch"]),
        },
        read=reader(
            "cifar10",
            CIFAR10_FOLDER,
            CIFAR10,
            {"train": list(CIFAR10_BATCHES)[:5], "test": ["test_batch"]},
            "labels",
        ),
    )
)
register(
    DatasetInfo(
        name="cifar100",
        num_classes=100,
        classes=CIFAR100_CLASSES,
        flip=True,
        files={"train": (CIFAR100_TRAIN,), "test": (CIFAR100_TEST,)},
        ddpm1m=ddpm_images("cifar100"),
        read=reader(
            "cifar100",
            "cifar-100-python",
            CIFAR100_TRAIN,
            {"train": ["train"], "test": ["test"]},
            "fine_labels",
        ),
    )
)
