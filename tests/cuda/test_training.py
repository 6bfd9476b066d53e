"""Training on a GPU: the CPU's numbers, replayed graphs that change none, resumption to the bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
import torch

from fastuiat import data, methods
from fastuiat.bench.workload import Case, make_loader, make_step
from fastuiat.convolutions import full_fp32
from fastuiat.data import Batch
from fastuiat.fast import recording

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = {"arch": "wrn-10-1", "batch_size": 32, "epochs": 4}


def steps(step, case, count):
    """The losses of some steps, gone through as training goes through them."""
    losses = []
    while len(losses) < count:
        batches = make_loader(case, step.device).epoch(case.epochs)
        losses += [step(batch).loss for batch in data.one_ahead(batches, step.device)]
    return [loss.item() for loss in losses[:count]]


@pytest.mark.parametrize(
    ("method", "compiled", "settings"),
    [
        *((name, False, {}) for name in methods.names()),
        ("uiat", True, {}),
        ("trades", True, {}),
        *(("uiat", compiled, {"inverse_forward": "attached"}) for compiled in (False, True)),
        ("uiat", False, {"inverse_forward": "eval"}),
    ],
)
def test_first_step_is_the_cpus(method, compiled, settings):
    """To half a percent: ten sign steps amplify rounding (weights changed by 2e-7 of themselves
    move UIAT's loss by 1e-4)."""
    case = Case(method=method, settings=settings, **SMALL)
    here = make_step(case, CPU, precision="fp32", compiled=False)
    there = make_step(case, CUDA, precision="fp32", compiled=compiled)
    # Each was drawn on its own device.
    there.net.load_state_dict(here.net.state_dict())
    there.method.load_state_dict(here.method.state_dict())
    for role, helper in here.method.helpers.items():
        there.method.helpers[role].load_state_dict(helper.state_dict())
    there.view.refresh()
    with full_fp32():
        assert steps(there, case, 1) == pytest.approx(steps(here, case, 1), rel=5e-3)


def state_of(step):
    return [*step.net.state_dict().values(), *step.method.state_dict().values()]


@pytest.mark.parametrize("method", ["uiat", "trades", "gradalign+uiat", "hat", "rebuffi"])
def test_two_steps_agree_to_the_bit(method):
    case = Case(method=method, **SMALL)
    two = [make_step(case, CUDA, precision="bf16", compiled=True) for _ in range(2)]
    assert steps(two[0], case, 6) == steps(two[1], case, 6)
    assert all(torch.equal(a, b) for a, b in zip(*map(state_of, two), strict=True))


ATTACHED = {"inverse_forward": "attached"}


@pytest.mark.parametrize(
    ("method", "settings", "compiled"),
    [
        *((name, {}, True) for name in ("uiat", "trades", "gradalign+uiat", "hat", "rebuffi")),
        ("uiat", ATTACHED, True),
        ("n-fgsm+uiat", ATTACHED, True),
        *((name, {}, False) for name in methods.names()),
    ],
)
def test_replays_change_no_bit(method, settings, compiled, monkeypatch, caplog):
    case = Case(method=method, settings=settings, **SMALL)

    def run(recorded):
        if not recorded:
            monkeypatch.setattr(recording, "on_gpu", lambda tensors: False)
        step = make_step(case, CUDA, precision="bf16", compiled=compiled)
        return step, steps(step, case, 6)

    recorded, losses = run(True)
    fit = [graph for graph in recorded.view.regions._graphs.values() if graph.fit]
    assert fit and all(graph._replay is not None for graph in fit)
    # PyTorch's own trace reaches caplog too.
    assert not [r.getMessage() for r in caplog.records if r.name.startswith("fastuiat")]
    plain, expected = run(False)
    assert losses == expected
    assert all(torch.equal(a, b) for a, b in zip(state_of(recorded), state_of(plain), strict=True))


def metrics(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "clock"} for line in lines]


def test_a_killed_run_ends_in_the_same_bits(tmp_path, small_run):
    """Compiled and recorded, as on the CPU plainly in tests/training/test_resume.py; with the
    first step eager, for BatchNorm's momentum is another in it."""
    words = [word for word in small_run if word != "--no-compile"]
    words += ["--method", "uiat", "--epochs", "4", "--log-every", "1", "--device", "cuda"]
    words += ["--batchnorm-momentum", "0.01"]

    def launch(*more):
        command = [sys.executable, "-m", "fastuiat", "train", *more, "--quiet"]
        return subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    def finish(process):
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said

    finish(launch(*words, "--out", "whole"))
    broken = launch(*words, "--out", "broken")
    log = tmp_path / "broken" / "metrics.jsonl"
    while not log.exists() or log.read_text().count("\n") < 15:
        assert broken.poll() is None
        time.sleep(0.01)
    broken.send_signal(signal.SIGKILL)
    assert broken.wait() == -signal.SIGKILL
    finish(launch("--resume", "broken"))
    for a, b in zip(*(metrics(tmp_path / name) for name in ("whole", "broken")), strict=True):
        assert a == b
    whole, resumed = (
        torch.load(tmp_path / name / "checkpoints/last.pt", weights_only=True)
        for name in ("whole", "broken")
    )
    assert whole["step"] == resumed["step"]
    for key in ("model", "method"):
        for name, value in whole[key].items():
            assert torch.equal(value, resumed[key][name]), name


def test_no_value_is_waited_for():
    """CUDA itself says so where a step waits for the device."""
    case = Case(method="uiat", **SMALL)
    step = make_step(case, CUDA, precision="bf16", compiled=True)
    batches = list(make_loader(case, CUDA).epoch(4))
    for batch in batches:
        step(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_batches_are_the_cpus():
    """Order, augmentation and noise, bit for bit."""
    case = Case(method="uiat", **SMALL)
    here, there = ([*make_loader(case, device).epoch(2)] for device in (CPU, CUDA))
    for a, b in zip(here, there, strict=True):
        assert isinstance(b, Batch) and b.x.is_cuda and b.x.stride() == a.x.stride()
        assert torch.equal(a.x, b.x.cpu()) and torch.equal(a.index, b.index.cpu())
