"""A run goes on with the data that it began with, or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import fastuiat
from fastuiat import data
from fastuiat.cli import main
from fastuiat.data import ffcv_loader
from fastuiat.interrupts import Interrupted
from tests.training.tiny import StopsAt

PER_BATCH = 16
BATCHES = [f"data_batch_{i}" for i in range(1, 6)]


def batch_of(folder: Path, name: str) -> dict:
    return pickle.loads((folder / "cifar-10-batches-py" / name).read_bytes())


def write_batch(folder: Path, name: str, content: dict) -> None:
    path = folder / "cifar-10-batches-py" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


def write_extra(folder: Path, seed: int) -> None:
    images = np.random.default_rng(seed).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
    np.savez(folder / "pool.npz", image=images, label=np.arange(40) % 10)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A folder with data/, and run/ that was stopped after two steps of ten."""
    place = tmp_path_factory.mktemp("stopped")
    random = np.random.default_rng(0)
    for name in [*BATCHES, "test_batch"]:
        pixels = random.integers(0, 256, (PER_BATCH, 3072), dtype=np.uint8)
        labels = random.integers(0, 10, PER_BATCH).tolist()
        write_batch(place / "data", name, {"data": pixels, "labels": labels})
    write_extra(place / "data", 0)
    before = Path.cwd()
    os.chdir(place)
    try:
        config = fastuiat.TrainConfig(
            dataset="cifar10", arch="wrn-10-1", epochs=2, batch_size=10, max_steps=10, val_size=10,
            compile=False, loader="resident", extra_data="data/pool.npz", out="run",
            settings={"attack": {"steps": 1}}, unchecked_data=True, device="cpu",
        )  # fmt: skip
        with pytest.raises(Interrupted):
            fastuiat.train(config, progress=StopsAt(2), say=lambda line: None)
    finally:
        os.chdir(before)
    return place


@pytest.fixture
def place(stopped, tmp_path, monkeypatch) -> Path:
    """A copy of it, which is the current folder."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def one_pixel(place, monkeypatch):
    content = batch_of(place / "data", "data_batch_2")
    content["data"][3, 1000] ^= 1
    write_batch(place / "data", "data_batch_2", content)


def one_label(place, monkeypatch):
    content = batch_of(place / "data", "data_batch_5")
    content["labels"][0] = (content["labels"][0] + 1) % 10
    write_batch(place / "data", "data_batch_5", content)


def labels_permuted(place, monkeypatch):
    content = batch_of(place / "data", "data_batch_1")
    content["labels"] = content["labels"][::-1]
    write_batch(place / "data", "data_batch_1", content)


def both(place, monkeypatch):
    one_pixel(place, monkeypatch)
    one_label(place, monkeypatch)


def reordered(place, monkeypatch):
    first, second = (batch_of(place / "data", name) for name in BATCHES[:2])
    write_batch(place / "data", BATCHES[0], second)
    write_batch(place / "data", BATCHES[1], first)


def shorter(place, monkeypatch):
    content = batch_of(place / "data", "data_batch_4")
    kept = {name: values[:-3] for name, values in content.items()}
    write_batch(place / "data", "data_batch_4", kept)


def another_pool(place, monkeypatch):
    write_extra(place / "data", 1)


def another_split(place, monkeypatch):
    def split(num, val_size, seed, train_size=None):
        return np.arange(val_size, num), np.arange(val_size)

    monkeypatch.setattr(data, "validation_split", split)


CHANGES = {
    one_pixel: "is the training images;",
    one_label: "is the labels of the training images;",
    labels_permuted: "is the labels of the training images;",
    both: "is the training images and the labels of the training images;",
    reordered: "is the order of the training images;",
    shorter: "the number of training images (it was 80, it is 77)",
    another_pool: "is the --extra-data's images;",
    another_split: "is the split into training and validation images",
}


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_run_over_changed_data_is_refused(place, monkeypatch, refusal, change):
    """In one line that says what changed; nothing on disk is touched."""
    change(place, monkeypatch)
    before = {path: path.stat().st_mtime_ns for path in (place / "run").rglob("*.*")}
    assert CHANGES[change] in refusal("train", "--resume", "run")
    assert {path: path.stat().st_mtime_ns for path in (place / "run").rglob("*.*")} == before


def test_unchanged_data_are_gone_on_with(place, capsys):
    """Files packed anew, or lying elsewhere, are the same data."""
    content = batch_of(place / "data", "data_batch_3")
    write_batch(place / "data", "data_batch_3", {**content, "filenames": [""] * PER_BATCH})
    (place / "data").rename(place / "moved")
    (place / "data").mkdir()
    (place / "moved" / "pool.npz").rename(place / "data" / "pool.npz")
    main(["train", "--resume", "run", "--data-dir", "moved", "--quiet"])
    last = torch.load(place / "run/checkpoints/last.pt", weights_only=True)
    assert last["step"] == 10
    assert last["data"]["train"]["n"] == 80 and last["data"]["train"]["checked"] == "unchecked"
    assert last["data"]["extra"]["n"] == 40 and last["data"]["extra"]["split"] == "extra"
    assert (last["data"]["split"]["train"], last["data"]["split"]["validation"]) == (70, 10)
    _, info = fastuiat.load_checkpoint(place / "run")
    assert info["data"] == last["data"]


def test_a_checkpoint_of_before_fingerprints_goes_on_with_a_note(place, capsys):
    path = place / "run/checkpoints/last.pt"
    state = torch.load(path, weights_only=True)
    del state["data"]
    torch.save(state, path)
    main(["train", "--resume", "run"])
    assert "no fingerprint of its data" in capsys.readouterr().out
    assert torch.load(path, weights_only=True)["data"]["train"]["n"] == 80


@pytest.mark.skipif(not ffcv_loader.available(), reason="FFCV is not installed")
def test_a_beton_that_was_changed_with_the_file_beside_it(place, refusal):
    path = data.prepare("cifar10", place / "data", "data/pool.npz", unchecked=True)
    content = bytearray(path.read_bytes())
    content[(8 << 20) + 5] ^= 1  # pixels begin at 8 MiB
    path.write_bytes(content)
    beside = path.with_suffix(".json")
    written = json.loads(beside.read_text())
    beside.write_text(json.dumps(written | {"sha256": hashlib.sha256(content).hexdigest()}))
    said = refusal("train", "--resume", "run", "--loader", "ffcv")
    assert "was changed: delete" in said and path.name in said


def test_an_evaluation_of_another_test_set_is_refused(place, refusal, capsys):
    words = ["eval", "run", "--attacks", "clean", "--unchecked-data"]
    main([*words, "--json"])
    (record,) = json.loads(capsys.readouterr().out)["records"]
    found = record["data"]
    assert (found["name"], found["split"], found["n"]) == ("cifar10", "test", PER_BATCH)
    assert found["num_classes"] == 10 and found["checked"] == "unchecked"
    images = data.load("cifar10", "data", "test", unchecked=True)
    both = images.images.tobytes() + images.labels.astype("<i8").tobytes()
    assert found["sha256"] == hashlib.sha256(both).hexdigest()
    main([*words, "--n", "4", "--quiet"])  # the first ones of the same
    content = batch_of(place / "data", "test_batch")
    content["labels"] = content["labels"][::-1]
    write_batch(place / "data", "test_batch", content)
    said = refusal(*words, "--n", "8")
    assert "another test set (the labels of the images changed since)" in said
    assert not (place / "run/eval/clean_n8.json").exists()
    said = refusal("eval", "run", "--dataset", "digits", "--attacks", "clean")
    assert "another test set (cifar10, not digits)" in said
    main([*words, "--n", "8", "--out", "other", "--quiet"])
    assert refusal("eval", "run") == refusal("eval", "run", "--n", "3")
    assert "--unchecked-data" in refusal("eval", "run")
