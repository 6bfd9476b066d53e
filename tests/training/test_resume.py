"""A run that is killed and resumed ends with the bits of one that was never stopped."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest
import torch

import fastuiat
from fastuiat.cli import main
from fastuiat.config import UserError, of_this_version
from fastuiat.report.runs import read_run
from fastuiat.training.checkpoint import save_checkpoint
from fastuiat.training.config import TrainConfig
from fastuiat.training.folder import refuse_changes
from tests.processes import Process

pytestmark = pytest.mark.slow
SHORT = ["--batch-size", "32", "--train-size", "352", "--val-size", "16"]
"""Epochs of 11 steps."""


def finish(process: Process) -> None:
    assert process.wait() == 0, process.stderr


def wait_for_steps(folder: Path, lines: int, process: Process) -> None:
    """Until the run has logged that many lines, or is over."""
    path = folder / "metrics.jsonl"
    while process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.02)


def metrics(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line.pop("clock")
    return lines


def assert_same_state(a: object, b: object, name: str = "") -> None:
    assert type(a) is type(b), name
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), name
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), name
        for key in a:
            assert_same_state(a[key], b[key], f"{name}.{key}")
    elif isinstance(a, list):
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_same_state(left, right, f"{name}[{i}]")
    else:
        assert a == b, name


@pytest.mark.parametrize(
    "method, length, kills",
    [
        # One kill in each of the three phases, of 11 steps each.
        (
            "uiat-oneoff",
            "--precision fp32 --epochs 3 --oneoff-epoch 2 --steps 1 --schedule linear:0.5 "
            "--no-nesterov --batchnorm-momentum 0.01 --no-decay-batchnorm",
            (3, 14, 25),
        ),
        # Short: a CPU without bf16 hardware takes seconds for each of these steps.
        (
            "uiat",
            "--precision bf16 --epochs 1 --batch-size 8 --steps 1 --max-steps 9 --cycle-momentum "
            "--val-size 8",
            (3, 6),
        ),
    ],
)
def test_killed_runs_end_in_the_same_bits(tmp_path, small_run, start, method, length, kills):
    flags = [*small_run, *SHORT, "--method", method, *length.split(), "--log-every", "1"]
    flags += ["--checkpoint-minutes", "0.002", "--weight-averaging", "0.9"]
    finish(start("train", *flags, "--out", "whole"))
    broken = tmp_path / "broken"
    process = start("train", *flags, "--out", "broken")
    chance = random.Random(method)
    for lines in kills:
        wait_for_steps(broken, lines, process)
        time.sleep(chance.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process = start("train", "--resume", "broken")
    finish(process)
    whole = torch.load(tmp_path / "whole/checkpoints/last.pt", weights_only=True)
    resumed = torch.load(broken / "checkpoints/last.pt", weights_only=True)
    for content in (whole, resumed):
        content.pop("metrics_offset")  # its clock fields differ in length
    assert_same_state(whole, resumed)
    assert metrics(tmp_path / "whole") == metrics(broken)


def test_sigterm_saves_and_says_so(tmp_path, small_run, start):
    words = ("--method", "sat", "--steps", "1", "--epochs", "50", "--out", "run")
    process = start("train", *small_run, *SHORT, *words)
    wait_for_steps(tmp_path / "run", 2, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert "checkpoint saved" in process.stderr
    assert torch.load(tmp_path / "run/checkpoints/last.pt", weights_only=True)["step"] > 0


def test_what_moves_no_number_may_change(fastuiat, small_run, tmp_path):
    words = ("--method", "natural", "--max-steps", "2", "--out", "run")
    done = fastuiat("train", *small_run, *SHORT, *words)
    assert done.returncode == 0, done.stderr
    before = (tmp_path / "run/config.json").read_bytes()
    again = fastuiat("train", "--resume", "run", "--log-every", "7", "--workers", "2")
    assert again.returncode == 0 and "finished" in again.stdout
    refused = fastuiat("train", "--resume", "run", "--max-lr", "0.2")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1 and "--max-lr" in refused.stderr
    assert (tmp_path / "run/config.json").read_bytes() == before


def without_settings(folder: Path) -> None:
    """The run's checkpoint as it was written before it carried the settings."""
    last = folder / "checkpoints" / "last.pt"
    state = torch.load(last, weights_only=True)
    del state["settings"]
    torch.save(state, last)


def as_it_was(stored: dict) -> dict:
    """config.json as it was written before the optimiser had settings of its own."""
    stored = dict(stored)
    optimizer = stored.pop("optimizer")
    flat = {name: optimizer[name] for name in ("max_lr", "weight_decay")}
    # The others had no name, and were these.
    assert {k: v for k, v in optimizer.items() if k not in flat} == {
        "schedule": "one-cycle",
        "momentum": 0.9,
        "cycle_momentum": False,
        "nesterov": True,
        "decay_batchnorm": True,
        "batchnorm_momentum": None,
    }
    return stored | flat


def test_a_run_from_before_the_optimizers_settings(tmp_path, monkeypatch, small_run, capsys):
    """It goes on to the end that it would have had, keeps its settings, and is evaluated."""
    monkeypatch.chdir(tmp_path)
    words = ["train", *small_run, *SHORT, "--method", "natural", "--epochs", "3"]
    words += ["--weight-decay", "1e-3"]
    main([*words, "--max-steps", "12", "--out", "whole"])
    main([*words, "--max-steps", "3", "--out", "old"])
    config = Path("old/config.json")
    stored = as_it_was(json.loads(config.read_text())) | {"max_steps": 12}
    assert (stored["max_lr"], stored["weight_decay"]) == (0.1, 1e-3)
    config.write_text(json.dumps(stored))
    without_settings(Path("old"))
    with pytest.raises(SystemExit):
        main(["train", "--resume", "old", "--weight-decay", "5e-4"])
    assert "--weight-decay is 0.001, not 0.0005" in capsys.readouterr().err
    main(["train", "--resume", "old"])
    states = [
        torch.load(f"{name}/checkpoints/last.pt", weights_only=True)["model"]
        for name in ("whole", "old")
    ]
    assert_same_state(*states)
    assert json.loads(config.read_text()) == stored
    main(["eval", "old", "--attacks", "clean", "--n", "8"])
    assert read_run(Path("old")).settings["max_lr"] == 0.1
    assert read_run(Path("whole")).settings["schedule"] == "one-cycle"


@pytest.mark.parametrize("reading", ["eval", "train"])
def test_a_run_from_when_the_inverse_forward_was_a_mode(
    reading, tmp_path, monkeypatch, small_run, capsys
):
    """Its `inverse_bn` is the reading, and it ends in the bits that it would have ended in."""
    monkeypatch.chdir(tmp_path)
    words = ["train", *small_run, *SHORT, "--method", "uiat", "--steps", "1", "--epochs", "2"]
    words += ["--momentum-epoch", "1", "--inverse-forward", reading]
    main([*words, "--max-steps", "6", "--out", "whole"])
    main([*words, "--max-steps", "2", "--out", "old"])
    config = Path("old/config.json")
    stored = as_it_was(json.loads(config.read_text())) | {"max_steps": 6}
    stored["settings"]["inverse_bn"] = stored["settings"].pop("inverse_forward")
    config.write_text(json.dumps(stored))
    without_settings(Path("old"))
    for wrong, said in (
        (["--inverse-bn", reading], "--inverse-bn is --inverse-forward now: eval, train or attach"),
        (["--inverse-forward", "attached"], f"--inverse-forward is {reading}, not attached"),
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main(["train", "--resume", "old", *wrong])
        assert said in capsys.readouterr().err
    main(["train", "--resume", "old"])
    states = [
        torch.load(f"{name}/checkpoints/last.pt", weights_only=True) for name in ("whole", "old")
    ]
    for name in ("model", "method"):
        assert_same_state(states[0][name], states[1][name])


def test_a_run_whose_loss_is_another_now_is_refused(tmp_path, monkeypatch, small_run, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--method", "mart", "--steps", "1", "--max-steps", "1", "--out", "m"]
    main(["train", *small_run, *SHORT, *words])
    config = Path("m/config.json")
    now = json.loads(config.read_text())
    config.write_text(json.dumps(as_it_was(now) | {"max_steps": 3}))
    without_settings(Path("m"))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["train", "--resume", "m"])
    assert "MART's loss has had its authors' constants since" in capsys.readouterr().err
    config.write_text(json.dumps(now | {"max_steps": 3}))
    main(["train", "--resume", "m"])


@pytest.mark.parametrize("content", ["[]", "null", "{", '{"settings": 3}', '{"max_lr": "x"}'])
def test_settings_that_are_damaged_are_one_line(content, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run/config.json").write_text(content)
    with pytest.raises(SystemExit):
        main(["train", "--resume", "run"])
    said = capsys.readouterr().err
    assert said.startswith("fastuiat: run") and said.count("\n") == 1


def test_a_setting_that_a_run_lacks_is_named(tmp_path):
    config = TrainConfig()
    stored = config.to_json()
    del stored["optimizer"]["nesterov"]
    with pytest.raises(UserError, match="--nesterov is None, not True"):
        refuse_changes(stored, config)


def test_a_run_that_ended_before_its_last_validation_is_not_finished(
    tmp_path, monkeypatch, small_run, capsys
):
    """As one killed between its last step and the end of its last epoch leaves it."""
    monkeypatch.chdir(tmp_path)
    words = ["train", *small_run, *SHORT, "--method", "natural", "--epochs", "2"]
    main([*words, "--out", "whole"])
    main([*words, "--out", "cut"])
    last = Path("cut/checkpoints/last.pt")
    state = torch.load(last, weights_only=True)
    log = Path("cut/metrics.jsonl").read_bytes()
    end = log.rindex(b'{"kind": "epoch"')
    torch.save(state | {"validated_epoch": 1, "metrics_offset": end}, last)
    capsys.readouterr()
    main(["train", "--resume", "cut"])
    assert "is finished" not in capsys.readouterr().out
    assert metrics(Path("cut")) == metrics(Path("whole"))
    main(["train", "--resume", "cut"])
    assert "is finished" in capsys.readouterr().out


def test_a_prn_18_v1_from_when_it_ended_in_a_batchnorm(tmp_path):
    """Its checkpoint and its run are of what is prn-18-v1-bn now."""
    net = fastuiat.build_model("prn-18-v1-bn").eval()
    content = {
        "net": {
            "arch": "prn-18-v1",
            "activation": "relu",
            "num_classes": 10,
            "dataset": "cifar10",
        },
        "model": net.state_dict(),
        "averaged": None,
        "epoch": 1,
        "step": 2,
    }
    save_checkpoint(tmp_path / "old.pt", content)
    loaded, info = fastuiat.load_checkpoint(tmp_path / "old.pt")
    x = torch.rand(2, 3, 32, 32)
    assert info["arch"] == "prn-18-v1-bn" and torch.equal(loaded(x), net(x))
    old = {"arch": "prn-18-v1", "max_lr": 0.1, "weight_decay": 5e-4}
    assert of_this_version(old)["arch"] == "prn-18-v1-bn"
    assert of_this_version({"arch": "prn-18-v1", "optimizer": {}})["arch"] == "prn-18-v1"
