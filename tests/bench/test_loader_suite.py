"""The loader bench on real loaders."""

from __future__ import annotations

import mmap

import pytest
import torch

from fastuiat import data
from fastuiat.bench import suites
from fastuiat.bench.call_memory import resident_peak
from fastuiat.bench.suites import loader as suite
from fastuiat.bench.timing import Plan
from fastuiat.config import UserError

CPU = torch.device("cpu")
IMAGES = suite.Images(n=300, batch_size=64, workers=1, device=CPU)


@pytest.mark.slow
def test_each_loader_gives_a_whole_epoch(tmp_path, monkeypatch):
    counts: list[int] = []

    def counted(batches):
        sizes = [len(getattr(b, "y", None) if hasattr(b, "y") else b[1]) for b in batches]
        counts.append(sum(sizes))

    monkeypatch.setattr(suite, "exhaust", counted)
    names = suite.PROVIDERS if data.ffcv_available() else suite.PROVIDERS[1:]
    records = suite.measure(IMAGES, plan=Plan(warmup=0, rounds=2), names=names)
    assert all(r["error"] is None for r in records), records
    assert IMAGES.per_epoch == 256 and set(counts) == {256}
    assert len(counts) == len(names) * (1 + 2 + 1)  # first, rounds, memory
    for r in records:
        assert r["images_per_s"] == pytest.approx(256 / r["median_s"])
        assert r["first_epoch_s"] > 0 and r["memory_bytes"] >= 0
    suites.get("loader").show(records)


def test_resident_memory_sees_what_is_held_for_a_moment():
    def call() -> None:
        with mmap.mmap(-1, 160_000_000) as held:  # not by malloc, which may have it already
            for page in range(0, len(held), 4096):
                held[page] = 1

    assert 150e6 < (resident_peak(call) or 0) < 200e6


def test_without_ffcv_its_row_says_so(monkeypatch):
    def missing(kind, *args, **options):
        if kind == "ffcv":
            raise UserError("FFCV is not installed: install it")
        return original(kind, *args, **options)

    original = data.make_loader
    monkeypatch.setattr(data, "make_loader", missing)
    ffcv, resident = suite.measure(
        IMAGES, plan=Plan(warmup=0, rounds=1), names=("ffcv", "resident")
    )
    assert "FFCV is not installed" in ffcv["error"] and ffcv["images_per_s"] is None
    assert resident["error"] is None


def test_torchvision_images_are_augmented_and_scaled():
    images, labels = IMAGES.make()
    x, y = suite.PILImages(images, labels)[3]
    assert x.shape == (3, 32, 32) and x.min() >= 0 and x.max() <= 1 and y == labels[3]
