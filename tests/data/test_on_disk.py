"""A pool that is larger than memory is read from where it lies."""

from __future__ import annotations

import io
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from fastuiat.config import UserError
from fastuiat.data import Order, ResidentLoader, beton, ffcv_loader, load_extra, on_disk
from fastuiat.data.fingerprint import fingerprint_of
from fastuiat.data.on_disk import ImagesOnDisk, Npz

RNG = np.random.default_rng(0)
N = 50
IMAGES = RNG.integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(N) % 10


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(on_disk, "SMALL", 0)
    np.savez(tmp_path / "pool.npz", label=LABELS, image=IMAGES)
    return tmp_path / "pool.npz"


def opened(path):
    with Npz(path) as content:
        return content.on_disk("image")


def test_it_is_indexed_as_an_array(path):
    images = opened(path)
    assert isinstance(images, ImagesOnDisk) and images.nbytes == IMAGES.nbytes
    rows = RNG.integers(0, N, 17)
    for index in (slice(None), slice(3, 20), slice(40, 99), slice(7, 2), slice(1, 30, 4), 5, -1):
        np.testing.assert_array_equal(images[index], IMAGES[index])
    np.testing.assert_array_equal(images[rows], IMAGES[rows])
    np.testing.assert_array_equal(np.asarray(images), IMAGES)
    with pytest.raises(IndexError):
        images[N]


def test_what_cannot_be_read_in_place_is_read_whole(path):
    for write, image in ((np.savez_compressed, IMAGES), (np.savez, np.asfortranarray(IMAGES))):
        write(path, image=image, label=LABELS)
        found = opened(path)
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, IMAGES)


def test_its_fingerprint_and_batches_are_the_array_s(path):
    pool = load_extra(path, "cifar10", "unused")
    assert isinstance(pool.images, ImagesOnDisk)
    expected = fingerprint_of(IMAGES, LABELS, name="cifar10+extra", split="extra", num_classes=10)
    assert pool.fingerprint == expected
    original = RNG.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    labels = np.concatenate([np.zeros(30, np.int64), LABELS])
    order = Order(
        seed=1,
        train_index=np.arange(30),
        batch_size=8,
        num_extra=N,
        first_extra=30,
        extra_share=0.5,
    )

    def batches(images):
        loader = ResidentLoader(images, labels, order, device="cpu", flip=True)
        return [next(loader.epoch(epoch)) for epoch in (1, 2)]

    for ours, whole in zip(
        batches([original, pool.images]),
        batches(np.concatenate([original, IMAGES])),
        strict=True,
    ):
        assert torch.equal(ours.x, whole.x) and torch.equal(ours.y, whole.y)


@pytest.mark.skipif(not ffcv_loader.available(), reason="ffcv is not installed")
def test_a_beton_of_it(path, tmp_path):
    parts = [IMAGES[:7], opened(path)]
    labels = np.concatenate([LABELS[:7], LABELS])
    ours = beton.prepare(parts, labels, tmp_path / "a", "made")
    whole = beton.prepare(np.concatenate([IMAGES[:7], IMAGES]), labels, tmp_path / "b", "made")
    assert ours.read_bytes() == whole.read_bytes() and ours.name == whole.name
    assert beton.prepare(parts, labels, tmp_path / "a", "made") == ours


def test_a_file_that_changes_under_way_is_an_error(path):
    images = opened(path)
    with path.open("r+b") as file:
        file.seek(-3000, io.SEEK_END)
        file.write(b"other")
    with pytest.raises(UserError, match="changed while it was in use"):
        images[3:5]
    images = opened(path)
    with path.open("r+b") as file:
        file.truncate(20_000)
    with pytest.raises(UserError, match="cut short while it was in use"):
        images[np.array([N - 1])]


def test_one_that_is_replaced_is_read_to_the_end(path):
    images = opened(path)
    np.savez(path.with_name("other.npz"), image=IMAGES[::-1], label=LABELS)
    path.with_name("other.npz").replace(path)
    np.testing.assert_array_equal(images[:], IMAGES)


def test_a_flipped_bit_is_noticed(path):
    content = bytearray(path.read_bytes())
    at = content.index(IMAGES[10].tobytes())
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="have not their checksum"):
        load_extra(path, "cifar10", "unused")


def claiming(path, shape, held, compression=zipfile.ZIP_STORED):
    header, labels = io.BytesIO(), io.BytesIO()
    description = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, description)
    np.save(labels, LABELS)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("image.npy", header.getvalue() + held)
        archive.writestr("label.npy", labels.getvalue())


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_header_that_claims_more_than_there_is(tmp_path, compression):
    path = tmp_path / "pool.npz"
    for shape, held, said in (
        ((10**12, 32, 32, 3), b"x" * 5000, "3,072,000,000,000,000 bytes, and has 5,000"),
        ((1, 32, 32, 3), b"x" * 5000, "3,072 bytes, and has 5,000"),
        ((10**30, 0, 32, 3), b"", "claims a shape"),
        ((-1, 32, 32, 3), b"", "claims a shape"),
        ((0, 32, 32, 3), b"", "0 images but 50 labels"),
    ):
        claiming(path, shape, held, compression)
        with pytest.raises(UserError, match=said) as raised:
            load_extra(path, "cifar10", "unused")
        assert "\n" not in str(raised.value)


def test_a_header_of_great_length(tmp_path):
    """NumPy answers with the advice to trust the file."""
    path = tmp_path / "pool.npz"
    claiming(path, (1,) * 20_000, b"x")
    with pytest.raises(UserError, match="truncated or no") as raised:
        load_extra(path, "cifar10", "unused")
    assert "\n" not in str(raised.value) and "pickle" not in str(raised.value)


UNDER_A_LIMIT = """
import resource, sys
from pathlib import Path
import numpy as np
from fastuiat.config import UserError
from fastuiat.data import Order, ResidentLoader, load_extra

original = np.zeros((64, 32, 32, 3), np.uint8)
status = Path("/proc/self/status").read_text().splitlines()
now = next(int(line.split()[1]) << 10 for line in status if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (now + (120 << 20), now + (120 << 20)))
try:
    pool = load_extra(sys.argv[1], "cifar10", ".")
except UserError as error:
    sys.exit(f"refused: {error}")
labels = np.concatenate([np.zeros(64, np.int64), pool.labels])
order = Order(seed=0, train_index=np.arange(64), batch_size=64, num_extra=len(pool.labels),
              first_extra=64, extra_share=0.7)
loader = ResidentLoader([original, pool.images], labels, order, device="cpu", flip=True)
batch = next(loader.epoch(1))
print(len(pool.labels), int((255 * batch.x).round().max()))
"""


@pytest.mark.slow
@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_larger_than_memory(tmp_path, write):
    """In a process that may have 120 MB more than it has begun with."""
    count = 80_000
    images = np.full((count, 32, 32, 3), 7, np.uint8)
    noise = np.random.default_rng(0).integers(0, 8, images[:, 0].shape, np.uint8)
    images[:, 0] = noise  # or it would unpack to so many times its size as no images do
    write(tmp_path / "pool.npz", image=images, label=np.arange(count) % 10)
    done = subprocess.run(
        [sys.executable, "-c", UNDER_A_LIMIT, tmp_path / "pool.npz"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    if write is np.savez:
        assert done.stdout.split() == ["80000", "7"], done.stderr
    else:
        assert done.stderr.startswith("refused: ") and done.stderr.count("\n") == 1, done.stderr
        assert "is compressed" in done.stderr and "np.savez" in done.stderr
