"""Both loaders give the same batches, and leave no thread, buffer or setting behind."""

import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from fastuiat.config import UserError
from fastuiat.data import Order, ResidentLoader, beton, ffcv_loader, make_loader

RNG = np.random.default_rng(0)
N, M, BATCH = 300, 60, 16
IMAGES = RNG.integers(0, 256, (N + M, 32, 32, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 10, N + M)
needs_ffcv = pytest.mark.skipif(not ffcv_loader.available(), reason="ffcv is not installed")


def plain(seed=3, **more):
    return Order(seed=seed, train_index=np.arange(7, N), batch_size=BATCH, **more)


def resident(order, flip=True):
    return ResidentLoader(IMAGES, LABELS, order, device="cpu", flip=flip)


def keep(batches):
    return list(batches)


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert (a.epoch, a.step, a.seed) == (b.epoch, b.step, b.seed)
        for x, y in ((a.x, b.x), (a.y, b.y), (a.index, b.index), (a.host_index, b.host_index)):
            assert x.dtype == y.dtype and x.stride() == y.stride() and torch.equal(x, y)


def test_resident_batches():
    order = plain()
    loader = resident(order)
    batches = keep(loader.epoch(2))
    assert loader.num_samples == N + M and len(batches) == order.steps_per_epoch
    np.testing.assert_array_equal(torch.stack([b.index for b in batches]), order.batches(2))
    for batch in batches:
        assert batch.x.dtype == torch.float32 and batch.x.shape == (BATCH, 3, 32, 32)
        assert batch.x.is_contiguous(memory_format=torch.channels_last)
        np.testing.assert_array_equal(batch.y, LABELS[batch.index])
    assert_same(keep(loader.epoch(2, start_step=5)), batches[5:])


def test_augmentation_is_pure_in_seed_epoch_and_sample():
    by_sample = {}
    for order in (
        plain(),
        Order(seed=3, train_index=np.arange(7, N), batch_size=2 * BATCH),
    ):
        for batch in resident(order).epoch(4):
            for x, i in zip(batch.x, batch.index.tolist(), strict=True):
                assert torch.equal(by_sample.setdefault(i, x), x)


def test_every_shift_and_both_mirrorings_occur():
    ramp = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)  # two channels name each pixel
    image = np.stack((ramp >> 8, ramp & 255, np.ones_like(ramp)), axis=-1).astype(np.uint8)
    images = np.repeat(image[None], 2000, axis=0)
    for flip in (True, False):
        loader = ResidentLoader(
            images,
            np.zeros(2000, np.int64),
            Order(seed=0, train_index=np.arange(2000), batch_size=2000),
            device="cpu",
            flip=flip,
        )
        (batch,) = loader.epoch(1)
        high, low, inside = (batch.x * 255).round().long().unbind(dim=1)
        assert ((inside == 0) | (inside == 1)).all() and inside[:, 4:-4, 4:-4].all()
        place = high[:, 16, 16] * 256 + low[:, 16, 16]
        row, column = place // 32, place % 32
        mirrored = low[:, 16, 17] < low[:, 16, 16]
        assert set(row.tolist()) == set(range(12, 21))
        assert mirrored.any().item() == flip and not mirrored.all()
        assert set(column[~mirrored].tolist()) == set(range(12, 21))


def test_noise_depends_on_stream_and_step():
    first, second = itertools.islice(resident(plain()).epoch(1), 2)
    keys = [first.noise("a").key, first.noise("b").key, second.noise("a").key]
    assert len({tuple(key.tolist()) for key in keys}) == 3
    assert torch.equal(first.noise("a").index, first.index)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["resident", pytest.param("ffcv", marks=needs_ffcv)])
def test_ranks_put_together_are_the_whole(tmp_path, monkeypatch, kind):
    """Of originals and generated images: every rank its part, with all of the batch's samples."""
    monkeypatch.setattr("fastuiat.data.order.IMAGES_PER_MIXED_EPOCH", 160)
    mix = {"seed": 5, "train_index": np.arange(N), "batch_size": BATCH}
    mix |= {"num_extra": M, "first_extra": N, "extra_share": 0.5}
    whole = keep(resident(Order(**mix)).epoch(2, start_step=3))
    for rank in range(4):
        loader = make_loader(
            kind, [IMAGES[:N], IMAGES[N:]], LABELS, Order(**mix, rank=rank, world=4),
            device="cpu", flip=True, cache_dir=tmp_path, name="mix",
        )  # fmt: skip
        parts = keep(loader.epoch(2, start_step=3))
        loader.close()
        assert len(parts) == len(whole) == 7
        for part, batch in zip(parts, whole, strict=True):
            assert torch.equal(part.host_whole, batch.index)
            for mine, all_of_it in ((part.x, batch.x), (part.y, batch.y)):
                assert torch.equal(mine, all_of_it[rank::4])
            assert torch.equal(part.index, batch.index[rank::4])
            assert torch.equal(part.host_index, part.index)
            assert (part.index >= N).sum() == BATCH // 4 // 2  # each has its share of them


@pytest.mark.slow
@needs_ffcv
@pytest.mark.parametrize("workers", [1, 2])
def test_ffcv_gives_the_same_batches(tmp_path, monkeypatch, workers):
    monkeypatch.setattr("fastuiat.data.order.IMAGES_PER_MIXED_EPOCH", 400)
    mix = Order(
        seed=5,
        train_index=np.arange(N),
        batch_size=BATCH,
        num_extra=M,
        first_extra=N,
        extra_share=0.7,
    )
    threads, random = torch.get_num_threads(), np.random.get_state()[1].copy()
    fast = make_loader(
        "ffcv",
        IMAGES,
        LABELS,
        mix,
        device="cpu",
        flip=True,
        workers=workers,
        cache_dir=tmp_path / "cache",
        name="made",
    )
    slow = resident(mix)
    assert isinstance(fast, ffcv_loader.FFCVLoader) and fast.num_samples == N + M
    assert_same(keep(fast.epoch(1)), keep(slow.epoch(1)))
    assert_same(keep(fast.epoch(7, start_step=11)), keep(slow.epoch(7, start_step=11)))
    assert keep(fast.epoch(1, start_step=mix.steps_per_epoch)) == []
    unfinished = fast.epoch(2)
    next(unfinished)
    assert torch.get_num_threads() == threads
    fast.close()
    assert next(unfinished, None) is None
    for _ in range(3):  # left early, and collected
        next(fast.epoch(2))
    assert_same(keep(fast.epoch(2)), keep(slow.epoch(2)))
    fast.close()
    assert not [t for t in threading.enumerate() if type(t).__name__ == "EpochIterator"]
    assert torch.get_num_threads() == threads
    np.testing.assert_array_equal(np.random.get_state()[1], random)


@needs_ffcv
def test_a_damaged_beton_is_never_used(tmp_path):
    path = beton.prepare(IMAGES, LABELS, tmp_path, "made")
    whole, written = path.read_bytes(), path.stat().st_mtime_ns
    assert beton.prepare(IMAGES, LABELS, tmp_path, "made") == path
    assert path.stat().st_mtime_ns == written
    assert beton.prepare(IMAGES, LABELS[::-1], tmp_path, "made") != path
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for blob in (whole[:-1], whole[: len(whole) // 2], b"", bytes(flipped)):
        path.write_bytes(blob)
        with pytest.raises(UserError, match="truncated or was changed: delete"):
            make_loader(
                "auto",
                IMAGES,
                LABELS,
                plain(),
                device="cpu",
                flip=True,
                cache_dir=tmp_path,
                name="made",
            )
    path.write_bytes(whole)
    with pytest.raises(UserError, match="other images"):
        beton.check(path, "0")
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(UserError, match="not written by fastuiat"):
        beton.prepare(IMAGES, LABELS, tmp_path, "made")
    path.unlink()
    assert beton.prepare(IMAGES, LABELS, tmp_path, "made").stat().st_size >= IMAGES.nbytes
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


@needs_ffcv
def test_written_as_ffcv_writes_it(tmp_path):
    """Byte for byte what FFCV's own writer makes with one worker, over several pages."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    count = 6000
    images = RNG.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = RNG.integers(0, 100, count)

    class Samples:
        def __len__(self):
            return count

        def __getitem__(self, i):
            return images[i], int(labels[i]), int(i)

    fields = {"image": RGBImageField(write_mode="raw"), "label": IntField(), "index": IntField()}
    with ffcv_loader.torch_threads_kept():
        DatasetWriter(str(tmp_path / "theirs"), fields, num_workers=1).from_indexed_dataset(
            Samples()
        )
    parts = [images[:7], images[7:4000], images[4000:]]
    ours = beton.prepare(parts, labels, tmp_path, "made")
    assert ours.read_bytes() == (tmp_path / "theirs").read_bytes()
    beton.check(ours, beton.fingerprint(images, labels))


@pytest.mark.slow
@needs_ffcv
def test_reading_takes_no_memory_of_the_file_s_size(tmp_path):
    def of_files() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssFile"))

    count = 20_000
    images = np.zeros((count, 32, 32, 3), np.uint8)
    path = beton.prepare(images, np.zeros(count, np.int64), tmp_path, "made")
    order = Order(seed=0, train_index=np.arange(count), batch_size=100)
    loader = ffcv_loader.FFCVLoader(path, order, device="cpu", flip=False, workers=1)
    keep(itertools.islice(loader.epoch(1), 1))  # compiles
    loader.close()
    before, most = of_files(), 0
    for batch in loader.epoch(2):
        most = max(most, of_files())
        assert not batch.x.any()
    assert path.stat().st_size > 60 << 20 and most - before < 4 << 20


@needs_ffcv
@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_cut_short_under_way_is_an_error(tmp_path, workers):
    path = beton.prepare(IMAGES, LABELS, tmp_path, "made")
    loader = ffcv_loader.FFCVLoader(path, plain(), device="cpu", flip=False, workers=workers)
    keep(loader.epoch(1))
    with path.open("rb+") as file:
        file.truncate((8 << 20) + 500_000)  # pixels begin at 8 MiB
    with pytest.raises(UserError, match="cut short"):
        keep(loader.epoch(2))


def test_resident_in_parts():
    parts = ResidentLoader(
        [IMAGES[:N], IMAGES[N:]], LABELS, plain(), device=torch.device("cpu"), flip=True
    )
    assert_same(keep(parts.epoch(1)), keep(resident(plain()).epoch(1)))


def test_choice_of_loader(tmp_path, monkeypatch, caplog):
    def make(kind, cache_dir=tmp_path):
        return make_loader(
            kind,
            IMAGES,
            LABELS,
            plain(),
            device="cpu",
            flip=True,
            cache_dir=cache_dir,
            name="made",
        )

    assert isinstance(make("resident"), ResidentLoader)
    with pytest.raises(UserError, match="auto, ffcv or resident"):
        make("fast")
    (tmp_path / "file").touch()
    with monkeypatch.context() as patch:
        patch.setattr(ffcv_loader, "available", lambda: True)
        assert isinstance(make("auto", tmp_path / "file"), ResidentLoader)
        assert len(caplog.records) == 1
        with pytest.raises(UserError, match="another cache folder"):
            make("ffcv", tmp_path / "file")
    monkeypatch.setattr(ffcv_loader, "available", lambda: False)
    assert isinstance(make("auto"), ResidentLoader)
    with pytest.raises(UserError, match="pip install"):
        make("ffcv")
