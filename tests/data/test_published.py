"""Published files are known by their content or their MD5; others are used only where asked to."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torchvision
from scipy.io import savemat

from fastuiat import data
from fastuiat.cli import main
from fastuiat.config import UserError
from fastuiat.data import DATASETS, ffcv_loader, published
from fastuiat.data.published import FileContent, PublishedContent, PublishedFile
from fastuiat.data.sets import fashion_mnist

RNG = np.random.default_rng(0)


def content_sum(images, labels):
    return hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()


@pytest.fixture
def replaced(monkeypatch):
    """replaced(NAME, field=value): a data set whose published sums are others."""

    def change(name, **fields):
        monkeypatch.setitem(DATASETS, name, dataclasses.replace(DATASETS[name], **fields))

    return change


def write_svhn(folder, seed=0):
    random = np.random.default_rng(seed)
    for split, count in (("train", 96), ("test", 32)):
        images = random.integers(0, 256, (32, 32, 3, count), dtype=np.uint8)
        content = {"X": images, "y": (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]}
        savemat(folder / f"{split}_32x32.mat", content)


@pytest.fixture
def svhn(tmp_path, replaced):
    """Files whose MD5 are the published ones: of this test."""
    write_svhn(tmp_path)
    files = {}
    for split in ("train", "test"):
        path = f"{split}_32x32.mat"
        md5 = hashlib.md5((tmp_path / path).read_bytes()).hexdigest()
        files[split] = (PublishedFile("http://x/", path, md5),)
    replaced("svhn", files=files)
    return tmp_path


def test_files_by_their_md5(svhn, monkeypatch):
    train = data.load("svhn", svhn, "train")
    assert train.fingerprint.checked == "published md5"
    hashed = []
    md5 = hashlib.md5
    monkeypatch.setattr(published.hashlib, "md5", lambda **k: hashed.append(1) or md5(**k))
    assert data.load("svhn", svhn, "train").fingerprint.checked == "published md5"
    assert hashed == []  # a file that stays as it is is summed once
    path = svhn / "train_32x32.mat"
    content = bytearray(path.read_bytes())
    content[20] ^= 1  # in the text that it begins with
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"train_32x32\.mat is not what is published of svhn"):
        data.load("svhn", svhn, "train")
    again = data.load("svhn", svhn, "train", unchecked=True)
    assert again.fingerprint.checked == "unchecked"
    assert again.fingerprint.sha256 == train.fingerprint.sha256
    assert data.load("svhn", svhn, "test", unchecked=True).fingerprint.checked == "published md5"


def test_members_of_an_archive_by_theirs():
    for name, theirs in (("cifar100", torchvision.datasets.CIFAR100),):
        for split, members in (("train", theirs.train_list), ("test", theirs.test_list)):
            (file,) = DATASETS[name].files[split]
            assert dict(file.members) == {f"{theirs.base_folder}/{m}": md5 for m, md5 in members}


def test_a_folder_by_its_members_and_an_archive_by_itself(tmp_path):
    def md5(content):
        return hashlib.md5(content).hexdigest()

    file = PublishedFile("u", "a.tar.gz", md5(b"packed"), (("a/one", md5(b"1")),))
    (tmp_path / "a.tar.gz").write_bytes(b"packed")
    assert file.differing(tmp_path) is None
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_bytes(b"1")
    (tmp_path / "a.tar.gz").write_bytes(b"other")
    assert file.differing(tmp_path) is None  # the folder is read
    (tmp_path / "a" / "one").write_bytes(b"2")
    assert file.differing(tmp_path) == tmp_path / "a" / "one"


def write_fashion(folder, images, labels, pack=bytes, suffix=""):
    for name, array in (("images-idx3", images), ("labels-idx1", labels)):
        header = struct.pack(f">{array.ndim + 1}I", 0x0800 + array.ndim, *array.shape)
        path = folder / f"train-{name}-ubyte{suffix}"
        path.write_bytes(pack(header + array.tobytes()))


def test_content_however_it_is_packed(tmp_path, replaced, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", Path("/nonexistent"))
    images = RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8)
    labels = np.arange(20, dtype=np.uint8) % 10
    framed = np.zeros((20, 32, 32, 3), np.uint8)
    framed[:, 2:30, 2:30] = images[..., None]
    first, second = DATASETS["fashion-mnist"].content["train"].files
    files = (
        first._replace(sha256=hashlib.sha256(framed).hexdigest()),
        second._replace(sha256=hashlib.sha256(labels.astype("<i8")).hexdigest()),
    )
    content = {"train": PublishedContent(20, content_sum(framed, labels), files)}
    replaced("fashion-mnist", content=content)

    def checked(**how):
        return data.load("fashion-mnist", tmp_path, "train", **how).fingerprint.checked

    write_fashion(tmp_path, images, labels)
    assert checked() == "published content"
    for path in tmp_path.iterdir():
        path.unlink()
    write_fashion(tmp_path, images, labels, gzip.compress, ".gz")
    assert checked() == "published content"
    write_fashion(tmp_path, images, labels[::-1].copy(), gzip.compress, ".gz")
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte in .* is not what is published"):
        checked()
    images[3, 4, 5] ^= 1
    write_fashion(tmp_path, images, labels, gzip.compress, ".gz")
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte in .* is not what is published"):
        checked()
    assert checked(unchecked=True) == "unchecked"


def test_the_file_that_differs_is_named():
    images = RNG.integers(0, 256, (6, 2, 2, 3), dtype=np.uint8)
    labels = np.arange(6)
    parts = [slice(0, 2), slice(2, 4), slice(4, 6)]
    files = tuple(
        FileContent(f"file{i}", part, part, content_sum(images[part], labels[part]))
        for i, part in enumerate(parts)
    )
    content = PublishedContent(6, content_sum(images, labels), files)
    for row, name in ((0, "file0"), (3, "file1"), (5, "file2")):
        other = images.copy()
        other[row, 1, 1, 1] ^= 1
        assert content.differing(other, labels) == name
    assert content.differing(images[:5], labels[:5]) == "file2"
    swapped = labels[[0, 1, 3, 2, 4, 5]]
    assert content.differing(images, swapped) == "file1"


def test_cifar10_s_batches_make_up_its_splits():
    content = DATASETS["cifar10"].content
    assert [f.path for f in content["train"].files] == [
        f"cifar-10-batches-py/{name}" for name, _ in torchvision.datasets.CIFAR10.train_list
    ]
    assert [(f.images.start, f.images.stop) for f in content["train"].files] == [
        (10_000 * i, 10_000 * (i + 1)) for i in range(5)
    ]
    (test,) = content["test"].files
    assert content["test"].sha256 == test.sha256


def test_what_has_no_sum_is_not_checked():
    assert data.load("digits", "unused", "train").fingerprint.checked is None


def test_every_command_asks_for_the_flag(svhn, refusal, capsys, monkeypatch):
    """And then what was checked stands in the checkpoint and in the record."""
    write_svhn(svhn, seed=1)
    monkeypatch.chdir(svhn)
    words = (
        "train --dataset svhn --data-dir . --arch wrn-10-1 --method natural --epochs 1 --quiet "
        "--batch-size 16 --val-size 16 --max-steps 2 --loader resident --no-compile --out run"
    )
    train = words.split()
    for words in (
        train,
        ["reproduce", "table1", "--dataset", "svhn", "--data-dir", ".", "--out", "table"],
        ["bench", "table2", "--data", "svhn", "--data-dir", ".", "--steps", "1"],
    ):
        said = refusal(*words)
        assert "train_32x32.mat is not what is published of svhn" in said
        assert "--unchecked-data" in said
    assert not Path("run").exists() and not Path("table").exists()
    main([*train, "--unchecked-data"])
    assert "test_32x32.mat" in refusal("eval", "run", "--attacks", "clean")
    capsys.readouterr()
    main(["eval", "run", "--attacks", "clean", "--unchecked-data", "--json"])
    (record,) = json.loads(capsys.readouterr().out)["records"]
    assert record["data"]["checked"] == "unchecked"
    assert record["checkpoint"]["data"]["train"]["checked"] == "unchecked"


@pytest.mark.slow
@pytest.mark.skipif(not ffcv_loader.available(), reason="ffcv is not installed")
def test_prepare_asks_for_it_too(svhn, refusal):
    write_svhn(svhn, seed=1)
    words = ["data", "prepare", "svhn", "--data-dir", "."]
    assert "train_32x32.mat is not what is published of svhn" in refusal(*words)
    assert not list(svhn.glob("*.beton"))
    main([*words, "--unchecked-data"])
    assert len(list(svhn.glob("svhn-*.beton"))) == 1
