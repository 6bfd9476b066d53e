"""A data set is one entry: registered, it is trained on, evaluated and prepared by its name."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from fastuiat import data
from fastuiat.cli import main
from fastuiat.config import UserError
from fastuiat.data import DatasetInfo, ffcv_loader, load, register

N, TEST = 160, 24


@pytest.fixture
def halves():
    """Made of arrays: pictures that are bright at the left, at the right, or at the top."""
    before = dict(data.DATASETS)
    rng = np.random.default_rng(0)

    def read(data_dir, split):
        labels = np.arange(N if split == "train" else TEST) % 3
        images = rng.integers(0, 100, (len(labels), 32, 32, 3), dtype=np.uint8)
        bright = [np.s_[:, :16], np.s_[:, 16:], np.s_[:16]]
        for image, label in zip(images, labels, strict=True):
            image[bright[label]] += 120
        return images, labels

    register(DatasetInfo(name="halves", num_classes=3, flip=False, read=read))
    yield
    data.DATASETS.clear()
    data.DATASETS.update(before)


def test_a_data_set_is_one_entry(halves, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    loader = "ffcv" if ffcv_loader.available() else "resident"
    train = (
        "train --dataset halves --arch wrn-10-1 --method sat --epochs 1 --batch-size 32 "
        f"--val-size 32 --max-steps 3 --steps 1 --loader {loader} --no-compile --out run --quiet"
    )
    main(train.split())
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["dataset"] == "halves"
    assert len(list((tmp_path / "data").glob("halves-*.beton"))) == (loader == "ffcv")
    capsys.readouterr()
    main(["eval", "run", "--attacks", "clean", "--json"])
    (record,) = json.loads(capsys.readouterr().out)["records"]
    assert (record["dataset"], record["n"]) == ("halves", TEST)
    if loader == "ffcv":
        main(["data", "prepare", "halves", "--data-dir", "elsewhere"])
        assert len(list((tmp_path / "elsewhere").glob("halves-*.beton"))) == 1


def test_its_files_and_its_pool_are_fetched(halves, tmp_path, monkeypatch):
    images = np.zeros((6, 32, 32, 3), np.uint8)

    def served(url, timeout):
        content = io.BytesIO()
        np.savez(content, image=images + len(url), label=np.arange(6) % 2)
        content.seek(0)
        content.headers = {}  # type: ignore[attr-defined]
        return content

    monkeypatch.setattr("urllib.request.urlopen", served)
    file = data.PublishedFile("http://x/", "deep/own.npz")

    def read(data_dir, split):
        with np.load(file.fetched(data_dir)) as content:
            return content["image"], content["label"]

    pool = data.PublishedFile("http://xy/", "pool.npz")
    register(
        DatasetInfo(
            name="own", num_classes=2, flip=False, read=read, files={"train": (file,)}, ddpm1m=pool
        )
    )
    assert (load("own", tmp_path, "train").images == 9).all()
    assert (data.load_extra("ddpm1m", "own", tmp_path).images == 10).all()
    assert sorted(p.name for p in tmp_path.rglob("*.npz")) == ["own.npz", "pool.npz"]
    with pytest.raises(UserError, match="of halves, only of cifar10, cifar100, svhn, own"):
        data.load_extra("ddpm1m", "halves", tmp_path)
