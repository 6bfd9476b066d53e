"""An FFCV that lacks a name asked for: the same batches all the same, slower, and said once."""

from __future__ import annotations

import importlib
import logging
import sys

import numpy as np
import pytest
import torch

from fastuiat.data import Order, ResidentLoader, beton, ffcv_loader
from fastuiat.fast import torch_internals

pytestmark = pytest.mark.skipif(not ffcv_loader.available(), reason="ffcv is not installed")
RNG = np.random.default_rng(0)
N = 96
IMAGES = RNG.integers(0, 256, (N, 32, 32, 3), dtype=np.uint8)
LABELS = RNG.integers(0, 10, N)
ORDER = Order(seed=3, train_index=np.arange(N)[::-1].copy(), batch_size=16)


@pytest.fixture(autouse=True)
def said(caplog):
    torch_internals.say_once.cache_clear()
    caplog.set_level(logging.WARNING)
    return lambda: [r.message for r in caplog.records if r.name == torch_internals.__name__]


class Hiding:
    """A part of FFCV without one of its names; all else is the part's own."""

    def __init__(self, part, name):
        self.__dict__.update(part=part, name=name)

    def __getattr__(self, name):
        if name == self.name:
            raise AttributeError(f"no {name}")
        return getattr(self.part, name)

    def __setattr__(self, name, value):
        setattr(self.part, name, value)

    def __iter__(self):
        return iter(self.part)

    def __next__(self):
        return next(self.part)


def loader(path):
    return ffcv_loader.FFCVLoader(path, ORDER, device="cpu", flip=True, workers=1)


def assert_right(fast):
    slow = ResidentLoader(IMAGES, LABELS, ORDER, device="cpu", flip=True)
    assert fast.num_samples == N
    for epoch in (1, 2):
        pairs = zip(fast.epoch(epoch), slow.epoch(epoch), strict=True)
        for ours, theirs in pairs:
            assert torch.equal(ours.x, theirs.x) and torch.equal(ours.y, theirs.y)
            assert torch.equal(ours.index, theirs.index)
    fast.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return beton.prepare(IMAGES, LABELS, tmp_path_factory.mktemp("beton"), "made")


def test_nothing_is_lacking_in_the_ffcv_installed(path, said):
    assert_right(loader(path))
    assert said() == []


def test_without_its_compiler(path, monkeypatch, said):
    """Then FFCV reads by its own memory map."""
    importlib.import_module("ffcv.loader")  # it has its own hold on the name
    monkeypatch.delattr(importlib.import_module("ffcv.pipeline.compiler"), "Compiler")
    monkeypatch.delitem(sys.modules, "fastuiat.data.file_reads", raising=False)
    assert_right(loader(path))
    assert len(said()) == 1 and "maps the .beton" in said()[0]


def test_without_a_memory_manager_to_replace(path, monkeypatch, said):
    from fastuiat.data import file_reads

    monkeypatch.setattr(file_reads, "LOADER", Hiding(file_reads.LOADER, "OSCacheManager"))
    assert_right(loader(path))
    assert len(said()) == 1 and "no OSCacheManager" in said()[0]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("traversal_order", 1),
        ("first_traversal_order", 1),
        ("memory_manager", 0),
        ("reader", 0),
    ],
)
def test_without_an_attribute_of_its_loader(path, monkeypatch, said, name, lines):
    made = ffcv_loader.FFCVLoader._make
    monkeypatch.setattr(
        ffcv_loader.FFCVLoader, "_make", lambda *arguments: Hiding(made(*arguments), name)
    )
    assert_right(loader(path))
    assert len(said()) == lines and all("slower" in line for line in said())


@pytest.mark.parametrize("name", ["terminate_event", "output_queue"])
def test_without_a_way_to_end_its_thread(path, monkeypatch, said, name):
    read = ffcv_loader.FFCVLoader._reader
    readers = []

    def hidden(self, order):
        readers.append(read(self, order))
        return Hiding(readers[-1], name)

    monkeypatch.setattr(ffcv_loader.FFCVLoader, "_reader", hidden)
    assert_right(loader(path))
    assert len(said()) == 1 and "left to FFCV" in said()[0]
    monkeypatch.undo()
    for reader in readers:
        ffcv_loader._stop(reader)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *(("ffcv.types", name) for name in (*beton.FORMAT_NAMES, "CURRENT_VERSION")),
        ("ffcv.fields.rgb_image", "IMAGE_MODES"),
    ],
)
def test_without_a_word_of_its_format(path, tmp_path, monkeypatch, said, module, name):
    """Then FFCV's own writer makes the file, the same byte for byte."""
    monkeypatch.setitem(sys.modules, module, Hiding(importlib.import_module(module), name))
    parent, _, last = module.rpartition(".")
    monkeypatch.setattr(importlib.import_module(parent), last, sys.modules[module])
    ours = beton.prepare([IMAGES[:7], IMAGES[7:]], LABELS, tmp_path, "made")
    assert len(said()) == 1 and "slower" in said()[0]
    assert ours.read_bytes() == path.read_bytes()
    beton.check(ours, beton.fingerprint(IMAGES, LABELS))


def test_another_version_of_the_format_is_left_to_ffcv(path, tmp_path, monkeypatch, said):
    types = importlib.import_module("ffcv.types")
    monkeypatch.setattr(types, "CURRENT_VERSION", 3)
    beton.prepare(IMAGES, LABELS, tmp_path, "made")
    assert len(said()) == 1 and "version 3" in said()[0]


def test_other_samples_than_asked_for_are_an_error(path, monkeypatch):
    monkeypatch.setattr(
        ffcv_loader, "_FixedOrder", lambda order: ffcv_loader_order(np.roll(order, 1))
    )
    with pytest.raises(RuntimeError, match="other samples"):
        list(loader(path).epoch(1))


ffcv_loader_order = ffcv_loader._FixedOrder
