"""Generated images: one .npz layout, refused clearly in every other shape."""

import os
import tarfile

import numpy as np
import pytest
import torch
from scipy.io import savemat

from fastuiat.config import UserError
from fastuiat.data import extra_path, load_extra

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
LABELS = np.array([0, 9, 3, 4, 5, 6], np.int32)


def test_any_npz(tmp_path):
    path = tmp_path / "edm.npz"
    np.savez(path, image=IMAGES, label=LABELS)
    extra = load_extra(path, "cifar10", "unused")
    np.testing.assert_array_equal(extra.images, IMAGES)
    np.testing.assert_array_equal(extra.labels, LABELS)
    assert extra.labels.dtype == np.int64 and extra.num_classes == 10


def test_ddpm1m_is_taken_from_data_dir(tmp_path):
    np.savez_compressed(tmp_path / "cifar100_ddpm.npz", image=IMAGES, label=LABELS + 90)
    assert extra_path("ddpm1m", "cifar100", tmp_path) == tmp_path / "cifar100_ddpm.npz"
    assert load_extra("ddpm1m", "cifar100", tmp_path).labels.max() == 99
    with pytest.raises(UserError, match="fashion-mnist"):
        load_extra("ddpm1m", "fashion-mnist", tmp_path)


def test_failing_download_names_url_and_place(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise TimeoutError("timed out")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(UserError) as raised:
        load_extra("ddpm1m", "svhn", tmp_path)
    assert "dm-adversarial-robustness/svhn_ddpm.npz" in str(raised.value)
    assert str(tmp_path / "svhn_ddpm.npz") in str(raised.value)


@pytest.mark.parametrize(
    "arrays",
    [
        {"image": IMAGES},
        {"label": LABELS},
        {"image": IMAGES.astype(np.float32), "label": LABELS},
        {"image": IMAGES[:, :28], "label": LABELS},
        {"image": IMAGES[0], "label": LABELS},
        {"image": IMAGES, "label": LABELS[:5]},
        {"image": IMAGES, "label": LABELS + 1},
        {"image": IMAGES, "label": LABELS - 1},
        {"image": IMAGES, "label": LABELS / 2},
        {"image": IMAGES, "label": LABELS.astype(object)},
        {"image": IMAGES[:0], "label": LABELS[:0]},
    ],
)
def test_bad_arrays(tmp_path, arrays):
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=r"bad\.npz") as raised:
        load_extra(tmp_path / "bad.npz", "cifar10", "unused")
    assert "\n" not in str(raised.value)


def test_a_pool_of_another_data_set(tmp_path):
    """Ten of a hundred classes in a full pool are no accident; in a small one they may be."""
    labels = np.arange(10_000) % 10
    np.savez(tmp_path / "full.npz", image=np.zeros((10_000, 32, 32, 3), np.uint8), label=labels)
    with pytest.raises(UserError, match="10 of the 100 classes of cifar100"):
        load_extra(tmp_path / "full.npz", "cifar100", "unused")
    assert len(load_extra(tmp_path / "full.npz", "cifar10", "unused").labels) == 10_000
    np.savez(tmp_path / "small.npz", image=IMAGES, label=LABELS)
    assert len(load_extra(tmp_path / "small.npz", "cifar100", "unused").labels) == 6


def test_bad_files(tmp_path):
    path = tmp_path / "bad.npz"
    np.savez(path, image=IMAGES, label=LABELS)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[3000] ^= 1
    for blob in (whole[:-100], whole[:5000], b"", b"junk", bytes(flipped)):
        path.write_bytes(blob)
        with pytest.raises(UserError, match=r"bad\.npz"):
            load_extra(path, "cifar10", "unused")
    np.savez_compressed(path, image=IMAGES // 64, label=LABELS)
    packed = bytearray(path.read_bytes())
    packed[300:400] = bytes(100)
    path.write_bytes(packed)
    with pytest.raises(UserError, match=r"bad\.npz"):
        load_extra(path, "cifar10", "unused")
    np.save(tmp_path / "one.npy", IMAGES)
    for other in ("missing.npz", "one.npy", "."):
        with pytest.raises(UserError):
            load_extra(tmp_path / other, "cifar10", "unused")


def test_a_file_of_another_kind_is_called_so(tmp_path):
    """And nobody is told to load it unsafely."""
    kinds = {
        "page.npz": (b"<!DOCTYPE html><html>Quota exceeded</html>", "a web page"),
        "pointer.npz": (b"version https://git-lfs.github.com/spec/v1\noid", "a Git-LFS pointer"),
        "net.pt": (b"", "a PyTorch file"),
        "one.npy": (b"", "a NumPy file of one array"),
        "text.npz": (b"hello", "a text file"),
        "empty.npz": (b"", "an empty file"),
        "noise.npz": (np.random.default_rng(0).bytes(99), "no .npz"),
    }
    for name, (content, _) in kinds.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"image": torch.zeros(3)}, tmp_path / "net.pt")
    np.save(tmp_path / "one.npy", IMAGES)
    savemat(tmp_path / "a.mat", {"image": IMAGES})
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "net.pt", "net.pt")
    os.mkfifo(tmp_path / "pipe")
    said = {name: kind for name, (_, kind) in kinds.items()}
    said |= {"a.mat": "a MATLAB file", "a.tar.gz": "a tar archive, gzipped"}
    said |= {"pipe": "a named pipe", ".": "a folder"}
    for name, kind in said.items():
        with pytest.raises(UserError, match=f"{kind}.*: wanted is an .npz with 'image' uint8") as e:
            load_extra(tmp_path / name, "cifar10", "unused")
        assert "pickle" not in str(e.value) and "\n" not in str(e.value)


def test_what_was_found_and_what_is_wanted_are_said(tmp_path):
    path = tmp_path / "a.npz"
    one_hot = np.eye(10)[LABELS]
    for arrays, said in (
        ({"images": IMAGES, "labels": LABELS}, r"'images' uint8 \(6, 32, 32, 3\), 'labels' int32"),
        ({"x": IMAGES, "y": LABELS}, r"has 'x' uint8 .*, 'y' int32 \(6,\); wanted is"),
        ({"image": IMAGES / 255, "label": LABELS}, "from 0 to 1: .*astype"),
        ({"image": IMAGES.transpose(0, 3, 1, 2), "label": LABELS}, "channels first"),
        ({"image": IMAGES.reshape(6, -1), "label": LABELS}, "flat"),
        ({"image": IMAGES, "label": one_hot}, r"argmax\(axis=1\)"),
        ({"image": IMAGES, "label": LABELS[:, None]}, r"reshape\(-1\)"),
        ({"image": IMAGES, "label": LABELS.astype(np.float32)}, "whole numbers"),
        ({"image": IMAGES, "label": LABELS.astype("m8[s]")}, "labels must be integers"),
        ({f"a{i}": LABELS for i in range(999)}, "'a5' int32.*, …; wanted"),
    ):
        np.savez(path, **arrays)
        with pytest.raises(UserError, match=said):
            load_extra(path, "cifar10", "unused")
    np.savez(path, IMAGES, LABELS)
    with pytest.raises(UserError, match="'arr_0' uint8"):
        load_extra(path, "cifar10", "unused")


def test_the_flag_once_and_with_a_name(refusal):
    small = ["train", "--dataset", "digits", "--out", "run"]
    twice = ["--extra-data", "a.npz", "--extra-data", "b.npz"]
    respelled = [word.replace("-data", "_data") for word in twice]
    prepare = ["data", "prepare", "digits"]
    for words in (small, prepare):
        assert "--extra-data is given twice" in refusal(*words, *twice)
        assert "--extra-data is given twice" in refusal(*words, *respelled)
        assert "--extra-data is given an empty word" in refusal(*words, "--extra-data", "")
        assert "--extra-data is given an empty word" in refusal(*words, "--extra-data=")
