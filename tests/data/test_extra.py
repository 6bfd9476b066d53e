"""Generated images: one .npz layout, refused clearly in every other shape."""

import os
import tarfile

import numpy as np
import pytest
import torch
from scipy.io import savemat

from fastuiat import data
from fastuiat.config import UserError
from fastuiat.data import beton, extra_path, load_extra

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


def pool(n, seed, low=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), np.arange(n) % 10 + low


def test_parts_of_one_pool(tmp_path):
    """An .npz, a compressed one, and pairs of .npy in every way that they may be named."""
    (a, la), (b, lb), (c, lc), (d, ld) = (pool(7, seed) for seed in range(4))
    np.savez(tmp_path / "a.npz", image=a, label=la)
    np.savez_compressed(tmp_path / "b.npz", image=b, label=lb)
    np.save(tmp_path / "c_images.npy", c)
    np.save(tmp_path / "c_labels.npy", lc)
    np.save(tmp_path / "x.npy", d)
    np.save(tmp_path / "y.npy", ld)
    names = ("a.npz", "b.npz", "c_images.npy", "x.npy", "y.npy")
    whole = load_extra(",".join(str(tmp_path / name) for name in names), "cifar10", "unused")
    images, labels = np.concatenate([a, b, c, d]), np.concatenate([la, lb, lc, ld])
    assert whole.labels.tolist() == labels.tolist() and whole.images.shape == images.shape
    rows = np.array([27, 0, 7, 6, 20, 14])
    np.testing.assert_array_equal(whole.images[rows], images[rows])
    np.savez(tmp_path / "one,two.npz", image=images, label=labels)  # a name with a comma
    one = load_extra(tmp_path / "one,two.npz", "cifar10", "unused")
    assert one.fingerprint == whole.fingerprint


def test_batches_of_several_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("fastuiat.data.order.IMAGES_PER_MIXED_EPOCH", 128)
    parts = [pool(40, seed) for seed in range(2)]
    for k, (images, labels) in enumerate(parts):
        np.savez(tmp_path / f"{k}.npz", image=images, label=labels)
    spec = f"{tmp_path / '0.npz'},{tmp_path / '1.npz'}"
    original = data.load("digits", tmp_path, "train")
    images, labels, source = data.joined(original, load_extra(spec, "digits", tmp_path))
    n = len(original.labels)
    order = data.Order(
        seed=0, train_index=np.arange(n), batch_size=64, num_extra=80, first_extra=n,
        extra_share=0.5,
    )  # fmt: skip
    loader = data.make_loader(
        "resident", images, labels, order, device="cpu", flip=False, augment="none",
        cache_dir=tmp_path, name="digits", source=source,
    )  # fmt: skip
    whole = np.concatenate([original.images, parts[0][0], parts[1][0]])
    for batch in loader.epoch(1):
        expected = whole[batch.index.numpy()].transpose(0, 3, 1, 2).astype(np.float32) / 255
        np.testing.assert_array_equal(batch.x.numpy(), expected)
        assert (batch.index >= n).sum() == 32


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("a.npz,", "a name is empty"),
        ("a.npz,a.npz", "names .*a.npz twice"),
        ("a.npz,none.npz", "none.npz does not exist"),
        ("soft.npz", "scores of classes: one number each"),
        ("x.npy", r"one array \(.npy\) alone"),
        ("x.npy,soft.npy", "scores of classes: one number each"),
        ("x.npy,few.npy", "7 images but 3 labels"),
        ("cut.npy,few.npy", "cut.npy claims to be"),
    ],
)
def test_parts_that_are_refused(tmp_path, spec, said):
    images, labels = pool(7, 0)
    np.savez(tmp_path / "a.npz", image=images, label=labels)
    np.savez(tmp_path / "soft.npz", image=images, label=np.eye(10)[labels])
    for name, array in (("x", images), ("soft", np.eye(10)[labels]), ("few", labels[:3])):
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-10])
    whole = ",".join(str(tmp_path / name) if name else "" for name in spec.split(","))
    with pytest.raises(UserError, match=said) as raised:
        load_extra(whole, "cifar10", tmp_path)
    assert "\n" not in str(raised.value)


def test_a_large_pool_is_known_by_a_sample_and_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr("fastuiat.data.fingerprint.LARGE", 1 << 20)
    images, labels = pool(5000, 0)
    np.save(tmp_path / "image.npy", images)
    np.save(tmp_path / "label.npy", labels)
    path = tmp_path / "image.npy"
    os.utime(path, (0, 0))
    first, again = (load_extra(path, "cifar10", tmp_path).fingerprint for _ in range(2))
    assert first == again and first.sampled == 4096
    os.utime(path, (0, 1))
    touched = load_extra(path, "cifar10", tmp_path).fingerprint
    assert data.difference(first, touched) == "the images or the times of their files"
    changed = np.load(path, mmap_mode="r+")
    changed[0, 0, 0] += 1  # the first is always looked at
    changed.flush()
    os.utime(path, (0, 0))
    assert load_extra(path, "cifar10", tmp_path).fingerprint.images != first.images


@pytest.mark.skipif(not data.ffcv_available(), reason="ffcv is not installed")
def test_a_large_beton_is_compared_by_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr("fastuiat.data.beton.LARGE", 1 << 20)
    images, labels = pool(3000, 0)
    path = beton.prepare([images[:10], images[10:]], labels, tmp_path, "pool", "0" * 64)
    assert beton.prepare(images, labels, tmp_path, "pool", "0" * 64) == path
    for other_images, other_labels in ((images + 1, labels), (images, labels[::-1])):
        with pytest.raises(UserError, match="truncated or was changed"):
            beton.prepare(other_images, other_labels, tmp_path, "pool", "0" * 64)
    content = bytearray(path.read_bytes())
    content[-(1 << 20)] ^= 1  # in an image that is no part of the sample, or behind them all
    path.write_bytes(content)
    with pytest.raises(UserError, match="truncated or was changed"):
        beton.prepare(images, labels, tmp_path, "pool", "0" * 64)
