"""No NaN and no infinity reaches a checkpoint, whichever tensor of the state it is in."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fastuiat.cli import main
from fastuiat.config import UserError
from fastuiat.training import run
from fastuiat.training.config import TrainConfig
from fastuiat.training.finite import non_finite
from fastuiat.training.folder import config_of
from fastuiat.training.step import TrainingStep


def test_the_tensors_that_are_not_finite_are_named():
    tensors = {
        "fine": torch.zeros(3),
        "none": torch.zeros(0),
        "nan": torch.tensor([0.0, math.nan]),
        "inf": torch.tensor(-math.inf),
        "half": torch.tensor([math.inf], dtype=torch.float16),
        "whole": torch.tensor([1 << 62]),
        "seen": torch.tensor([True]),
    }
    assert non_finite(tensors) == ["nan", "inf", "half"]
    assert non_finite({"whole": tensors["whole"]}) == []


def settings(folder: Path, **more: Any) -> TrainConfig:
    values = {
        "dataset": "digits",
        "arch": "wrn-10-1",
        "method": "uiat",
        "loader": "resident",
        "precision": "fp32",
        "compile": False,
        "val_size": 16,
        "train_size": 64,
        "batch_size": 32,
        "epochs": 4,
        "log_every": 100,
        "weight_averaging": 0.9,
        "out": folder,
        "settings": {"attack": {"steps": 1}, "momentum_epoch": 2},
    }
    return TrainConfig(**values | more)


def spoil(step: TrainingStep, kind: str, value: float) -> None:
    """Put a value into one number of what the step carries on."""
    memory, bank = step.method.target.memory, step.method.target.universal.bank
    parameter = next(step.net.parameters())
    bn = next(m for m in step.net.modules() if isinstance(m, torch.nn.BatchNorm2d))
    averaged = next(m for m in step.averaged.modules() if isinstance(m, torch.nn.BatchNorm2d))
    tensor = {
        "weights": parameter.data,
        "running_var": bn.running_var,
        "momentum": step.optimizer.state[parameter].get("momentum_buffer"),
        "averaged": averaged.running_mean,
        "z": bank.z,
        "P": memory.probs,
    }[kind]
    tensor[(-1,) * tensor.ndim] = value


NAMES = {
    "weights": "model.",
    "running_var": "running_var",
    "momentum": "momentum_buffer",
    "averaged": "averaged.",
    "z": "bank.z",
    "P": "memory.probs",
}
STEPS_PER_EPOCH = 2


@pytest.mark.slow
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("kind", NAMES)
def test_a_spoiled_tensor_is_never_kept(kind, value, tmp_path, monkeypatch):
    """Spoiled in the last step of epoch 2, which no later step looks at."""
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    before: list[bytes] = []
    take = TrainingStep.__call__

    def spoiled(self, *args, **named):
        out = take(self, *args, **named)
        if self.taken == 2 * STEPS_PER_EPOCH:
            before.append(last.read_bytes())
            before.append(last.with_name("best.pt").read_bytes())
            spoil(self, kind, value)
        return out

    monkeypatch.setattr(TrainingStep, "__call__", spoiled)
    with pytest.raises(UserError) as refused:
        run.train(settings(tmp_path / "run"), say=lambda _: None)
    said = str(refused.value)
    assert NAMES[kind] in said and "became non-finite at step 4: lower --max-lr" in said
    assert said.endswith(f"the last good checkpoint is {last}") and "\n" not in said
    assert [last.read_bytes(), last.with_name("best.pt").read_bytes()] == before
    assert torch.load(last, weights_only=True)["step"] == STEPS_PER_EPOCH


@pytest.mark.slow
@pytest.mark.parametrize("when", ["timed", "signal"])
def test_no_kind_of_checkpoint_keeps_it(when, tmp_path, monkeypatch):
    """One NaN in P in the first step: there is no checkpoint, and the run does not go on."""
    take, steps = TrainingStep.__call__, []

    def spoiled(self, *args, **named):
        out = take(self, *args, **named)
        steps.append(self.taken)
        spoil(self, "P", math.nan)
        if when == "signal":
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)
        return out

    monkeypatch.setattr(TrainingStep, "__call__", spoiled)
    minutes = 1e-9 if when == "timed" else 10.0
    with pytest.raises(UserError, match=r"memory\.probs became non-finite at step 1: .*none was"):
        run.train(
            settings(tmp_path / "run", checkpoint_minutes=minutes, batch_size=16),
            say=lambda _: None,
        )
    assert steps == [1] and not list((tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_checkpoint_of_before_that_holds_one_is_not_gone_on_from(tmp_path, capsys):
    """And the rows of P that no sample has filled are no reason."""
    run.train(settings(tmp_path / "run", max_steps=1, epochs=2), say=lambda _: None)
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    state = torch.load(last, weights_only=True)
    assert not state["method"]["target.memory.seen"].all()
    run.resume(config_of(tmp_path / "run"), tmp_path / "run", say=lambda _: None)
    state["method"]["target.universal.bank.z"][3, 0, 0, 0] = math.nan
    torch.save(state, last)
    content = last.read_bytes()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["train", "--resume", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert "holds NaN or infinity in method.target.universal.bank.z: train anew" in said
    assert said.count("\n") == 1 and last.read_bytes() == content
