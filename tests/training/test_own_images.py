"""Runs on a user's own pictures: stopped, resumed, evaluated, exported."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

import fastuiat
from fastuiat.cli import main
from fastuiat.data import load
from fastuiat.interrupts import Interrupted
from fastuiat.training import run
from fastuiat.training.config import TrainConfig
from fastuiat.training.folder import config_of
from tests.training.tiny import StopsAt


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three kinds of light, in one level: what is dark, grey and bright."""
    root = tmp_path_factory.mktemp("own") / "light"
    random = np.random.default_rng(0)
    for i in range(120):
        name = ("dark", "grey", "bright")[i % 3]
        pixels = random.integers(0, 90, (20, 24, 3)) + 80 * (i % 3)
        (root / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
    return root


def config(pictures, folder, **more):
    return TrainConfig(
        dataset=f"folder:{pictures}", data_dir=folder / "data", arch="wrn-10-1", epochs=2,
        batch_size=16, val_size=16, resolution=16, augment="resized-crop", seed=3,
        loader="resident", compile=False, precision="fp32", out=folder / "run",
        settings={"attack": {"steps": 1}}, **more,
    )  # fmt: skip


def test_a_run_on_pictures(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    notes: list[str] = []
    whole = run.train(config(pictures, tmp_path / "whole"), say=notes.append)
    assert notes[0].startswith("light train") and "96 of 96" in notes[0]
    assert notes[1:3] == ["z: 3 × 3 × 16 × 16 in float32, 0.0 MB", "P: 96 × 3 in float32, 0.0 MB"]
    with pytest.raises(Interrupted):
        run.train(config(pictures, tmp_path / "cut"), progress=StopsAt(2), say=notes.append)
    cut = tmp_path / "cut" / "run"
    begun = config_of(cut)
    run.resume(begun, cut, say=notes.append)
    left, right = (torch.load(f / "checkpoints" / "last.pt") for f in (whole, cut))
    for part in ("model", "method"):
        assert len(left[part]) > 1
        for name, value in left[part].items():
            assert torch.equal(value, right[part][name]), name

    _, info = fastuiat.load_checkpoint(cut)
    assert info["classes"] == ["bright", "dark", "grey"] and info["resolution"] == 16
    # The test images are those that the run's own seed has put aside.
    main(["eval", str(cut), "--attacks", "clean"])
    record = json.loads((cut / "eval" / "clean_n24.json").read_text())
    assert record["classes"] == info["classes"] and record["resolution"] == 16
    trained = load(begun.dataset, begun.data_dir, "train", how=run_preparation(3)).images[:]
    tested = load(begun.dataset, begun.data_dir, "test", how=run_preparation(3)).images[:]
    assert not {i.tobytes() for i in trained} & {i.tobytes() for i in tested}
    assert record["data"]["n"] == len(tested) == 24
    main(["export", str(cut), "--format", "torch-export", "--out", "net.pt2"])
    net = torch.export.load("net.pt2").module()
    assert net(torch.rand(5, 3, 16, 16)).shape == (5, 3)
    main(["report", str(cut)])
    assert "bright" in (cut / "report.html").read_text()
    capsys.readouterr()


def run_preparation(seed):
    return fastuiat.data.Preparation(resolution=16, seed=seed)


def test_flags(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [
        "train", "--dataset", f"folder:{pictures}", "--arch", "wrn-10-1", "--method", "natural",
        "--resolution", "16", "--no-compile", "--val-size", "0", "--max-steps", "1",
        "--batch-size", "8", "--loader", "resident",
    ]  # fmt: skip
    main(words)  # the folder's name, not its path
    main([*words, "--no-flip", "--augment", "none", "--out", "run"])
    for folder, flip, augment in (
        ("runs/light-natural-wrn-10-1-s0", None, "crop"),
        ("run", False, "none"),
    ):
        stored = json.loads((tmp_path / folder / "config.json").read_text())
        assert (stored["flip"], stored["augment"], stored["resolution"]) == (flip, augment, 16)
    for flags, said in (
        (["--resolution", "40"], "--resolution is 16, not 40"),
        (["--flip"], "--flip is False, not True"),
    ):
        with pytest.raises(SystemExit):
            main(["train", "--resume", "run", *flags])
        assert said in capsys.readouterr().err


def test_settings_of_before_there_were_resolutions_go_on_and_keep_them(tmp_path, capsys):
    old = TrainConfig(
        dataset="digits", data_dir=tmp_path, arch="wrn-10-1", method="natural", max_steps=1,
        compile=False, val_size=0, out=tmp_path / "run", loader="resident",
    )  # fmt: skip
    folder = run.train(old, say=lambda note: None)
    stored = json.loads((folder / "config.json").read_text())
    checkpoint = torch.load(folder / "checkpoints" / "last.pt")
    for name in ("resolution", "augment", "flip"):
        del stored[name], checkpoint["settings"][name]
    for name in ("classes", "resolution"):
        del checkpoint["net"][name]
    (folder / "config.json").write_text(json.dumps(stored))
    torch.save(checkpoint, folder / "checkpoints" / "last.pt")
    said: list[str] = []
    run.resume(config_of(folder), folder, say=said.append)
    assert said == [f"{folder} is finished: step 1"]
    with pytest.raises(SystemExit):
        main(["train", "--resume", str(folder), "--augment", "none"])
    assert "--augment is crop, not none" in capsys.readouterr().err
