"""HAT's helper: given or trained first, kept in the run, refused where it does not fit."""

from __future__ import annotations

import json
import shutil
import signal
import time

import pytest
import torch

from fastuiat import build_model

pytestmark = pytest.mark.slow

QUICK = ["--method", "hat", "--steps", "1", "--max-steps", "6", "--epochs", "2", "--log-every", "1"]
QUICK += ["--batch-size", "64", "--val-size", "16"]


def weights(run):
    return torch.load(run / "checkpoints/last.pt", weights_only=True)["model"]


def assert_equal(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


def kill_after_lines(process, folder, lines):
    path = folder / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_trained_first_and_killed_twice(fastuiat, start, small_run, tmp_path):
    flags = [*small_run, *QUICK, "--checkpoint-minutes", "0.001"]
    done = fastuiat("train", *flags, "--out", "whole")
    assert done.returncode == 0, done.stderr
    assert "natural" in done.stdout and "whole/helper" in done.stdout
    own = json.loads((tmp_path / "whole/helper/config.json").read_text())
    assert own["method"] == "natural" and own["max_steps"] == 6
    process = start("train", *flags, "--out", "broken")
    kill_after_lines(process, tmp_path / "broken/helper", 2)
    assert not (tmp_path / "broken/checkpoints/last.pt").exists()
    kill_after_lines(start("train", "--resume", "broken"), tmp_path / "broken", 2)
    again = fastuiat("train", "--resume", "broken")
    assert again.returncode == 0, again.stderr
    for part in ("", "helper"):
        assert_equal(weights(tmp_path / "broken" / part), weights(tmp_path / "whole" / part))
    # Given the same net, the run is the same, and needs the original no longer.
    given = fastuiat("train", *flags, "--out", "given", "--helper", "whole/helper")
    assert given.returncode == 0, given.stderr
    assert_equal(weights(tmp_path / "given"), weights(tmp_path / "whole"))
    shutil.rmtree(tmp_path / "whole")
    shutil.rmtree(tmp_path / "given/checkpoints")
    anew = fastuiat("train", "--resume", "given")
    assert anew.returncode == 0, anew.stderr
    assert_equal(weights(tmp_path / "given"), weights(tmp_path / "broken"))


@pytest.mark.parametrize(
    "arch, classes, dataset, words",
    [
        ("wrn-10-2", 10, "digits", "wrn-10-2"),
        ("wrn-10-1", 10, "svhn", "svhn"),
        ("wrn-10-1", 7, "digits", "7 classes"),
    ],
)
def test_a_helper_of_something_else(fastuiat, small_run, tmp_path, arch, classes, dataset, words):
    net = build_model(arch, classes)
    info = {"arch": arch, "activation": "relu", "num_classes": classes, "dataset": dataset}
    content = {"format": "fastuiat-checkpoint-1", "net": info, "model": net.state_dict()}
    torch.save({**content, "averaged": None, "epoch": 1, "step": 1}, tmp_path / "other.pt")
    refused = fastuiat("train", *small_run, *QUICK, "--out", "run", "--helper", "other.pt")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1 and words in refused.stderr
    assert not (tmp_path / "run").exists()


def test_a_helper_nobody_needs(fastuiat, small_run, tmp_path):
    flags = [*small_run, "--method", "sat", "--out", "run", "--helper", "other.pt"]
    refused = fastuiat("train", *flags)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_helper_that_is_not_finite_and_what_is_said_of_one(fastuiat, small_run, tmp_path):
    state = build_model("wrn-10-1").state_dict()
    flags = [*small_run, *QUICK, "--max-steps", "1", "--out", "run", "--helper", "net.pt"]
    torch.save(state | {"fc.bias": torch.full((10,), float("nan"))}, tmp_path / "net.pt")
    refused = fastuiat("train", *flags)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "not finite: fc.bias" in refused.stderr and not (tmp_path / "run").exists()
    torch.save(
        {"model": state, "target": build_model("wrn-10-1").state_dict()}, tmp_path / "net.pt"
    )
    done = fastuiat("train", *flags)
    assert done.returncode == 0, done.stderr
    assert "taken: model, the raw weights" in done.stdout and "target is another net" in done.stdout
