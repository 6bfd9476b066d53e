"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009), from the python-version pickles."""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastuiat.config import UserError
from fastuiat.data.sets.generated import ddpm_images
from fastuiat.data.sources import DatasetInfo, PublishedFile, checked, register, unpacked

SITE = "https://www.cs.toronto.edu/~kriz"


class ArrayUnpickler(pickle.Unpickler):
    """Reads the published pickles and nothing that could run code."""

    ALLOWED = frozenset(
        {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy.core.multiarray", "scalar"),
            ("numpy._core.multiarray", "scalar"),
            ("numpy.core.numeric", "_frombuffer"),
            ("numpy._core.numeric", "_frombuffer"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is refused")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_pickle(path: Path, content: bytes) -> dict[str, Any]:
    try:
        loaded = ArrayUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:
        raise UserError(f"{path} is truncated or not in CIFAR's format ({error})") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} is not in CIFAR's format: it holds a {type(loaded).__name__}")
    return {k.decode() if isinstance(k, bytes) else str(k): v for k, v in loaded.items()}


def reader(
    name: str, folder: str, archive: PublishedFile, members: dict[str, list[str]], label_key: str
) -> Callable[[Path, str], tuple[Any, Any]]:
    """A reader of the pickles, from the folder or the published archive."""
    num_classes = 100 if label_key == "fine_labels" else 10

    def read(data_dir: Path, split: str) -> tuple[Any, Any]:
        if not (data_dir / folder).is_dir() and not (data_dir / archive.path).is_file():
            unpacked(archive.fetched(data_dir), data_dir / folder)
        images, labels = [], []
        for member in members[split]:
            path = data_dir / folder / member
            batch = read_pickle(path, member_bytes(path, data_dir / archive.path))
            if "data" not in batch or label_key not in batch:
                raise UserError(f"{path} lacks 'data' or '{label_key}'")
            pixels = np.asarray(batch["data"])
            if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
                raise UserError(f"{path}: 'data' must be uint8 (N, 3072), got {pixels.shape}")
            pixels = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            part = checked(name, pixels, batch[label_key], num_classes, path)
            images.append(part.images)
            labels.append(part.labels)
        return np.concatenate(images), np.concatenate(labels)

    return read


def member_bytes(path: Path, archive: Path) -> bytes:
    """A file of the folder, or of the archive where there is no folder."""
    if path.parent.is_dir():
        try:
            return path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error}") from error
    member = f"{path.parent.name}/{path.name}"
    try:
        with tarfile.open(archive) as tar:
            file = tar.extractfile(member)
            assert file is not None
            return file.read()
    except (tarfile.TarError, zlib.error, KeyError, EOFError, OSError, AssertionError) as error:
        raise UserError(f"{archive} is truncated or lacks {member}") from error


CIFAR10 = PublishedFile(
    f"{SITE}/cifar-10-python.tar.gz", "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"
)
CIFAR100 = PublishedFile(
    f"{SITE}/cifar-100-python.tar.gz", "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"
)

register(
    DatasetInfo(
        name="cifar10",
        num_classes=10,
        flip=True,
        files={"train": (CIFAR10,), "test": (CIFAR10,)},
        ddpm1m=ddpm_images("cifar10"),
        read=reader(
            "cifar10",
            "cifar-10-batches-py",
            CIFAR10,
            {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
            "labels",
        ),
    )
)
register(
    DatasetInfo(
        name="cifar100",
        num_classes=100,
        flip=True,
        files={"train": (CIFAR100,), "test": (CIFAR100,)},
        ddpm1m=ddpm_images("cifar100"),
        read=reader(
            "cifar100",
            "cifar-100-python",
            CIFAR100,
            {"train": ["train"], "test": ["test"]},
            "fine_labels",
        ),
    )
)
