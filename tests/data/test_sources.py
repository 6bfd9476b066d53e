"""Every published format is read as published; every damaged file is named, never executed."""

import functools
import gzip
import io
import os
import pickle
import struct
import tarfile
import tracemalloc
import urllib.error
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torchvision
from scipy.io import savemat

from fastuiat.config import UserError
from fastuiat.data import DATASETS
from fastuiat.data import load as load_checked
from fastuiat.data.download import fetch
from fastuiat.data.sets import fashion_mnist

RNG = np.random.default_rng(0)
load = functools.partial(load_checked, unchecked=True)  # of files that are made here


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", Path("/nonexistent"))


def pixels(n):
    return RNG.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


def cifar_pickle(images, labels, key="labels", protocol=2, **change):
    data = images.transpose(0, 3, 1, 2).reshape(len(images), 3072)
    content = {b"data": data, key.encode(): list(labels), b"batch_label": b"x", **change}
    return pickle.dumps(content, protocol)


def write_cifar10(folder, per_file=3, protocol=2):
    folder.mkdir(parents=True)
    images, labels = pixels(5 * per_file), RNG.integers(0, 10, 5 * per_file)
    for i in range(5):
        part = slice(i * per_file, (i + 1) * per_file)
        blob = cifar_pickle(images[part], labels[part].tolist(), protocol=protocol)
        (folder / f"data_batch_{i + 1}").write_bytes(blob)
    (folder / "test_batch").write_bytes(cifar_pickle(images[:2], labels[:2].tolist()))
    return images, labels


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_cifar10_folder(tmp_path, protocol):
    images, labels = write_cifar10(tmp_path / "cifar-10-batches-py", protocol=protocol)
    train, test = load("cifar10", tmp_path, "train"), load("cifar10", str(tmp_path), "test")
    np.testing.assert_array_equal(train.images, images)
    np.testing.assert_array_equal(train.labels, labels)
    assert train.labels.dtype == np.int64 and train.images.flags.c_contiguous
    assert (len(test.labels), test.num_classes) == (2, 10)


def test_cifar10_archive(tmp_path):
    images, _ = write_cifar10(tmp_path / "made" / "cifar-10-batches-py")
    archive = tmp_path / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    np.testing.assert_array_equal(load("cifar10", tmp_path, "train").images, images)
    archive.write_bytes(archive.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz"):
        load("cifar10", tmp_path, "train")


def test_cifar100_fine_labels(tmp_path):
    (tmp_path / "cifar-100-python").mkdir()
    images = pixels(4)
    blob = cifar_pickle(images, np.array([0, 99, 5, 50]), "fine_labels")  # numpy scalars
    (tmp_path / "cifar-100-python" / "train").write_bytes(blob)
    train = load("cifar100", tmp_path, "train")
    assert train.labels.tolist() == [0, 99, 5, 50]
    np.testing.assert_array_equal(train.images, images)
    with pytest.raises(UserError, match="cifar-100-python/test"):
        load("cifar100", tmp_path, "test")


class Malice:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"junk",
        cifar_pickle(pixels(2), [0, 1])[:500],
        cifar_pickle(pixels(2), [0, 10]),
        cifar_pickle(pixels(2), [0, -1]),
        cifar_pickle(pixels(2), [0]),
        cifar_pickle(pixels(2), [0.5, 1.5]),
        cifar_pickle(pixels(2), [0, 1], "other"),
        pickle.dumps([1, 2]),
        pickle.dumps({"data": np.zeros((2, 3072)), "labels": [0, 1]}),
        pickle.dumps({"data": np.zeros((2, 3000), np.uint8), "labels": [0, 1]}),
        pickle.dumps({"data": np.zeros((2, 3072), object), "labels": [0, 1]}),
        cifar_pickle(pixels(2), [0, 1], extra=Malice()),
    ],
)
def test_bad_cifar_batch_is_named(tmp_path, monkeypatch, blob):
    monkeypatch.chdir(tmp_path)
    write_cifar10(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(blob)
    with pytest.raises(UserError, match="data_batch_3") as raised:
        load("cifar10", tmp_path, "train")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "executed").exists()


def test_a_batch_that_is_no_file_or_another_kind(tmp_path):
    """A pipe is not waited for."""
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar10(folder)
    batch = folder / "data_batch_1"
    batch.unlink()
    with pytest.raises(UserError, match="data_batch_1 cannot be read: No such file"):
        load("cifar10", tmp_path, "train")
    os.mkfifo(batch)
    with pytest.raises(UserError, match="data_batch_1 is a named pipe, not a file"):
        load("cifar10", tmp_path, "train")
    batch.unlink()
    for content, kind in (
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git-LFS pointer"),
        (pickle.dumps({"data": [[0] * 3072], "labels": [0]}), "got a list"),
        (pickle.dumps({"data": pixels(1).reshape(1, 3072), "labels": [[0, 1]]}), "be numbers"),
        (b"\x80\x02cos\x1b[31m\nsystem\n.", "refused"),
    ):
        batch.write_bytes(content)
        with pytest.raises(UserError, match=kind) as raised:
            load("cifar10", tmp_path, "train")
        assert str(raised.value).isprintable()
    with batch.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="too large"):
        load("cifar10", tmp_path, "train")


def test_an_archive_of_links(tmp_path):
    """Links that name themselves or each other, where the batches should be."""
    for names in (("data_batch_1",), ("data_batch_1", "other")):
        with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as tar:
            for name, target in zip(names, names[1:] + names[:1], strict=True):
                link = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, target
                tar.addfile(link)
        with pytest.raises(UserError, match="data_batch_1 is no file of CIFAR's size"):
            load("cifar10", tmp_path, "train")
    (tmp_path / "cifar-10-python.tar.gz").unlink()
    os.mkfifo(tmp_path / "cifar-10-python.tar.gz")
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz is a named pipe"):
        load("cifar10", tmp_path, "train")


def test_svhn_says_what_is_wrong_with_y(tmp_path):
    X = pixels(10).transpose(1, 2, 3, 0)
    y = np.arange(10)[:, None]
    path = tmp_path / "train_32x32.mat"
    for labels, said in (
        (y.astype(np.uint8), r"y must be 1 to 10, got 0 to 9 \(the digit 0 is published as 10"),
        (y + 2, "y must be 1 to 10, got 2 to 11"),
        (y + 1.5, r"y must be whole numbers, got 1\.5"),
        (y * np.nan, "y must be whole numbers, got nan"),
        (y[:9] + 1, "X holds 10 images, but y 9 labels"),
        (np.eye(10), r"y must be numbers \(N, 1\), got float64 \(10, 10\)"),
        (np.array(["a"] * 10, object), "lacks X or y, as arrays of numbers: it has 'X', 'y'"),
    ):
        savemat(path, {"X": X, "y": labels})
        with pytest.raises(UserError, match=said):
            load("svhn", tmp_path, "train")
    for images, said in (
        (X / 255, r"X must be uint8 \(32, 32, 3, N\), got float64"),
        (X.transpose(3, 0, 1, 2), r"got uint8 \(10, 32, 32, 3\)"),
    ):
        savemat(path, {"X": images, "y": y + 1})
        with pytest.raises(UserError, match=said):
            load("svhn", tmp_path, "train")
    savemat(path, {"X": X, "y": (y + 1).astype(float)})  # as MATLAB has numbers
    assert load("svhn", tmp_path, "train").labels.tolist() == [*range(1, 10), 0]
    path.write_bytes(b"MATLAB 7.3 MAT-file, Platform".ljust(512) + b"\x89HDF\r\n\x1a\n")
    with pytest.raises(UserError, match=r"is a MATLAB 7\.3 file"):
        load("svhn", tmp_path, "train")


def test_svhn(tmp_path):
    images = pixels(3)
    path = tmp_path / "train_32x32.mat"
    X, y = images.transpose(1, 2, 3, 0), np.array([[10], [1], [9]], np.uint8)
    savemat(path, {"X": X, "y": y})
    train = load("svhn", tmp_path, "train")
    np.testing.assert_array_equal(train.images, images)
    assert train.labels.tolist() == [0, 1, 9]
    whole = path.read_bytes()
    bad = [{"X": X}, {"X": X, "y": y + 1}, {"X": X, "y": y[:2]}, {"X": X[..., 0], "y": y}]
    for content in bad:
        savemat(path, content)
        with pytest.raises(UserError, match=r"train_32x32\.mat"):
            load("svhn", tmp_path, "train")
    for blob in (whole[: len(whole) // 2], b"", b"junk"):
        path.write_bytes(blob)
        with pytest.raises(UserError, match=r"train_32x32\.mat"):
            load("svhn", tmp_path, "train")


def idx_bytes(array):
    return struct.pack(f">{array.ndim + 1}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("folder", ["FashionMNIST/raw", "."])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_fashion_mnist(tmp_path, folder, suffix):
    place = tmp_path / folder
    place.mkdir(parents=True, exist_ok=True)
    grey = RNG.integers(0, 256, (4, 28, 28), dtype=np.uint8)
    pack = gzip.compress if suffix else bytes
    image_file = place / f"train-images-idx3-ubyte{suffix}"
    label_file = place / f"train-labels-idx1-ubyte{suffix}"
    image_file.write_bytes(pack(idx_bytes(grey)))
    with pytest.raises(UserError, match="FashionMNIST"):
        load("fashion-mnist", tmp_path, "train")
    label_file.write_bytes(pack(idx_bytes(np.array([0, 9, 3, 3], np.uint8))))
    train = load("fashion-mnist", tmp_path, "train")
    assert train.labels.tolist() == [0, 9, 3, 3]
    np.testing.assert_array_equal(train.images[:, 2:30, 2:30, 1], grey)
    assert train.images.sum() == 3 * grey.sum(dtype=np.int64)
    for blob in (image_file.read_bytes()[:-9], b"", pack(idx_bytes(grey[:3])), pack(b"junk" * 9)):
        image_file.write_bytes(blob)
        with pytest.raises(UserError, match=r"train-(images|labels)"):
            load("fashion-mnist", tmp_path, "train")


def test_no_more_of_an_idx_is_unpacked_than_it_promises(tmp_path):
    """A gigabyte of zeros behind, or promised by, a header of a few bytes."""
    labels = tmp_path / "train-labels-idx1-ubyte"
    labels.write_bytes(idx_bytes(np.zeros(2, np.uint8)))
    path = tmp_path / "train-images-idx3-ubyte.gz"
    zeros = gzip.compress(bytes(1 << 20), 1) * 1024  # members that follow each other
    for shape, said in (
        ((2, 28, 28), "goes on behind the 1,568 bytes of its header"),
        ((1 << 20, 28, 28), "promises 822,083,584 bytes"),
        ((1 << 31, 1 << 31, 1 << 31), "promises"),
        ((70_000, 28, 28), "train"),
    ):
        path.write_bytes(gzip.compress(struct.pack(">4I", 0x803, *shape)) + zeros)
        tracemalloc.start()
        with pytest.raises(UserError, match=said):
            load("fashion-mnist", tmp_path, "train")
        assert tracemalloc.get_traced_memory()[1] < 400 << 20
        tracemalloc.stop()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="is a named pipe"):
        load("fashion-mnist", tmp_path, "train")


def test_digits():
    train, test = load("digits", "unused", "train"), load("digits", "unused", "test")
    assert (len(train.labels), len(test.labels)) == (1438, 359)
    assert train.images.max() >= 240 and set(np.unique(test.labels)) == set(range(10))
    np.testing.assert_array_equal(train.images, load("digits", "unused", "train").images)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "svhn", "fashion-mnist"])
def test_without_network_url_and_place_are_named(tmp_path, name):
    with pytest.raises(UserError, match="http") as raised:
        load(name, tmp_path / "new", "train")
    assert str(tmp_path / "new") in str(raised.value) and "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_files_are_those_that_torchvision_fetches():
    theirs = torchvision.datasets
    places: dict[str, list[tuple[str, str]]] = {
        "cifar10": [(theirs.CIFAR10.url, theirs.CIFAR10.tgz_md5)],
        "cifar100": [(theirs.CIFAR100.url, theirs.CIFAR100.tgz_md5)],
        "svhn": [
            (row[0], row[2]) for name, row in theirs.SVHN.split_list.items() if name != "extra"
        ],
        "fashion-mnist": [
            (theirs.FashionMNIST.mirrors[0] + name, md5)
            for name, md5 in theirs.FashionMNIST.resources
        ],
        "digits": [],
    }
    for name, info in DATASETS.items():
        ours = {(file.url, file.md5) for files in info.files.values() for file in files}
        assert ours == set(places[name]), name


def test_a_download_is_unpacked_once(tmp_path, monkeypatch):
    """Whole or not at all, and read from the folder from then on."""
    images, labels = write_cifar10(tmp_path / "made" / "cifar-10-batches-py")
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    whole = archive.read_bytes()
    asked = []

    def served(url, timeout):
        asked.append(url)
        response = io.BytesIO(content)
        response.headers = {"Content-Length": str(len(content))}  # type: ignore[attr-defined]
        return response

    monkeypatch.setattr("urllib.request.urlopen", served)
    content, data_dir = whole, tmp_path / "data"
    with pytest.raises(UserError, match="checksum is not the published one"):
        load("cifar10", data_dir, "train")
    assert list(data_dir.iterdir()) == []
    monkeypatch.setattr("fastuiat.data.download.hashlib.md5", lambda **_: Published())
    content = whole[:-2000]
    with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz cannot be unpacked"):
        load("cifar10", data_dir, "train")
    assert [p.name for p in data_dir.iterdir()] == ["cifar-10-python.tar.gz"]
    (data_dir / "cifar-10-python.tar.gz").unlink()
    content = whole
    (data_dir / ".cifar-10-python.tar.gz-01234567").write_bytes(b"left by a killed download")
    (data_dir / ".cifar-10-batches-py-abc" / "cifar-10-batches-py").mkdir(parents=True)
    train = load("cifar10", data_dir, "train")
    np.testing.assert_array_equal(train.images, images)
    assert len(asked) == 3 and (data_dir / "cifar-10-batches-py" / "data_batch_5").is_file()
    assert not list(data_dir.glob(".*"))
    (data_dir / "cifar-10-python.tar.gz").unlink()
    assert load("cifar10", data_dir, "test").labels.tolist() == labels[:2].tolist()


class Published:
    """A digest that says what is published of CIFAR-10, whatever it was made of."""

    def update(self, chunk):
        pass

    def hexdigest(self):
        return torchvision.datasets.CIFAR10.tgz_md5


def test_download_is_whole_and_checked(tmp_path, monkeypatch):
    class Response(io.BytesIO):
        headers = MappingProxyType({"Content-Length": "4"})

    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Response(b"data"))
    path = tmp_path / "new" / "file"
    assert fetch("http://x/file", path).read_bytes() == b"data"
    with pytest.raises(UserError, match="checksum"):
        fetch("http://x/file", tmp_path / "other", md5="0")
    monkeypatch.setattr("urllib.request.urlopen", lambda url, timeout: Response(b"dat"))
    with pytest.raises(UserError, match="3 of 4 bytes"):
        fetch("http://x/file", tmp_path / "other")
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["file"]


def test_names():
    with pytest.raises(UserError, match="cifar10, cifar100, digits, fashion-mnist, svhn"):
        load("imagenet", "unused", "train")
    with pytest.raises(UserError, match="train or test"):
        load("digits", "unused", "val")
    assert [name for name, d in DATASETS.items() if not d.flip] == ["digits", "svhn"]
