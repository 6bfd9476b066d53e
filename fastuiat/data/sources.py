"""Data sets from their published files, as bytes (N, 32, 32, 3)."""

from __future__ import annotations

import gzip
import io
import pickle
import socket
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastuiat.config import UserError

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
DOWNLOAD_TIMEOUT = 10.0


@dataclass(frozen=True)
class ImageSet:
    """images uint8 (N, 32, 32, 3), labels int64 (N,) in 0 … num_classes−1."""

    name: str
    images: np.ndarray
    labels: np.ndarray
    num_classes: int


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a data set before it is read. `flip`: mirrored in training."""

    name: str
    num_classes: int
    flip: bool
    read: Callable[[Path, str], tuple[Any, Any]]


def checked(name: str, images: Any, labels: Any, num_classes: int, origin: Path) -> ImageSet:
    """An ImageSet, or a UserError that names the file and what is wrong with it."""
    images, labels = np.asarray(images), np.asarray(labels)
    if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3):
        raise UserError(
            f"{origin}: images must be uint8 (N, 32, 32, 3), got {images.dtype} {images.shape}"
        )
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{origin}: labels must be integers (N,), got {labels.dtype} {labels.shape}"
        )
    if len(images) != len(labels):
        raise UserError(f"{origin}: {len(images)} images but {len(labels)} labels")
    if len(labels) == 0:
        raise UserError(f"{origin}: holds no images")
    labels = labels.astype(np.int64)
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UserError(
            f"{origin}: labels must lie in 0…{num_classes - 1}, got {labels.min()}…{labels.max()}"
        )
    return ImageSet(name, np.ascontiguousarray(images), labels, num_classes)


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


def read_cifar(
    folder: str, archive: str, members: dict[str, list[str]], label_key: str, dataset: str
) -> Callable[[Path, str], tuple[Any, Any]]:
    """A reader of CIFAR's python-version pickles, from the folder or the published archive."""

    def read(data_dir: Path, split: str) -> tuple[Any, Any]:
        if not (data_dir / folder).is_dir() and not (data_dir / archive).is_file():
            download(dataset, data_dir, archive)
        images, labels = [], []
        for member in members[split]:
            content = cifar_member(data_dir, folder, archive, member)
            path = data_dir / folder / member
            batch = read_pickle(path, content)
            if "data" not in batch or label_key not in batch:
                raise UserError(f"{path} lacks 'data' or '{label_key}'")
            pixels = np.asarray(batch["data"])
            if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
                raise UserError(f"{path}: 'data' must be uint8 (N, 3072), got {pixels.shape}")
            pixels = pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
            part = checked(dataset, pixels, batch[label_key], DATASETS[dataset].num_classes, path)
            images.append(part.images)
            labels.append(part.labels)
        return np.concatenate(images), np.concatenate(labels)

    return read


def cifar_member(data_dir: Path, folder: str, archive: str, member: str) -> bytes:
    if (data_dir / folder).is_dir():
        try:
            return (data_dir / folder / member).read_bytes()
        except OSError as error:
            raise UserError(f"{data_dir / folder / member} cannot be read: {error}") from error
    path = data_dir / archive
    try:
        with tarfile.open(path) as tar:
            file = tar.extractfile(f"{folder}/{member}")
            assert file is not None
            return file.read()
    except (tarfile.TarError, zlib.error, KeyError, EOFError, OSError, AssertionError) as error:
        raise UserError(f"{path} is truncated or lacks {folder}/{member}") from error


def read_svhn(data_dir: Path, split: str) -> tuple[Any, Any]:
    path = data_dir / f"{split}_32x32.mat"
    if not path.is_file():
        download("svhn", data_dir, path.name, split)
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


def read_fashion_mnist(data_dir: Path, split: str) -> tuple[Any, Any]:
    folders = [data_dir / "FashionMNIST" / "raw", data_dir, DEBIAN_FASHION_MNIST]
    prefix = "train" if split == "train" else "t10k"
    names = [f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"]

    def find(folder: Path) -> list[Path]:
        options = [[folder / name, folder / f"{name}.gz"] for name in names]
        return [p for pair in options for p in [next((q for q in pair if q.is_file()), None)] if p]

    found = next((files for folder in folders if len(files := find(folder)) == 2), None)
    if found is None:
        download("fashion-mnist", data_dir, f"FashionMNIST/raw/{names[0]}.gz")
        found = find(folders[0])
    images, labels = read_idx(found[0]), read_idx(found[1])
    if images.shape[1:] != (28, 28):
        raise UserError(f"{found[0]}: images must be 28×28, got {images.shape}")
    framed = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    colour = np.repeat(framed[..., None], 3, axis=3)
    part = checked("fashion-mnist", colour, labels, 10, found[1])
    return part.images, part.labels


def read_digits(data_dir: Path, split: str) -> tuple[Any, Any]:
    """scikit-learn's 1797 digits, every fifth one a test image."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = np.minimum(digits.images * 16, 255).astype(np.uint8)
    images = np.repeat(small.repeat(4, axis=1).repeat(4, axis=2)[..., None], 3, axis=3)
    is_test = np.arange(len(images)) % 5 == 4
    chosen = is_test if split == "test" else ~is_test
    return images[chosen], digits.target[chosen]


def download(dataset: str, data_dir: Path, destination: str, split: str = "train") -> None:
    """Fetch through torchvision; UserError with the URL and the place for the file on failure."""
    from torchvision import datasets

    url: str
    fetch: Callable[[], Any]
    if dataset in ("cifar10", "cifar100"):
        cifar = datasets.CIFAR10 if dataset == "cifar10" else datasets.CIFAR100
        url, fetch = cifar.url, lambda: cifar(str(data_dir), download=True)
    elif dataset == "svhn":
        url = datasets.SVHN.split_list[split][0]
        fetch = lambda: datasets.SVHN(str(data_dir), split=split, download=True)  # noqa: E731
    else:
        url = datasets.FashionMNIST.mirrors[0]
        fetch = lambda: datasets.FashionMNIST(str(data_dir), download=True)  # noqa: E731
    previous = socket.getdefaulttimeout()
    existed = data_dir.exists()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    try:
        fetch()
    except Exception as error:
        if not existed:
            _remove_empty(data_dir)
        raise UserError(
            f"{dataset} is not in {data_dir} and could not be downloaded: "
            f"fetch {url} and place it at {data_dir / destination}"
        ) from error
    finally:
        socket.setdefaulttimeout(previous)


def _remove_empty(folder: Path) -> None:
    """Undo the folders that a failed download made."""
    if folder.is_dir():
        for child in list(folder.iterdir()):
            _remove_empty(child)
        if not any(folder.iterdir()):
            folder.rmdir()


_CIFAR10 = read_cifar(
    "cifar-10-batches-py",
    "cifar-10-python.tar.gz",
    {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    "labels",
    "cifar10",
)
_CIFAR100 = read_cifar(
    "cifar-100-python",
    "cifar-100-python.tar.gz",
    {"train": ["train"], "test": ["test"]},
    "fine_labels",
    "cifar100",
)

DATASETS: dict[str, DatasetInfo] = {
    info.name: info
    for info in (
        DatasetInfo("cifar10", 10, True, _CIFAR10),
        DatasetInfo("cifar100", 100, True, _CIFAR100),
        DatasetInfo("svhn", 10, False, read_svhn),
        DatasetInfo("fashion-mnist", 10, True, read_fashion_mnist),
        DatasetInfo("digits", 10, False, read_digits),
    )
}


def dataset_info(name: str) -> DatasetInfo:
    """UserError with the known names on an unknown one."""
    if name not in DATASETS:
        raise UserError(f"unknown data set '{name}': choose from {', '.join(DATASETS)}")
    return DATASETS[name]


def load(name: str, data_dir: Path, split: str) -> ImageSet:
    """The `train` or `test` part of a data set, downloaded where it is not in data_dir."""
    info = dataset_info(name)
    if split not in ("train", "test"):
        raise UserError(f"unknown split '{split}': choose train or test")
    images, labels = info.read(Path(data_dir), split)
    return checked(name, images, labels, info.num_classes, Path(data_dir) / name)
