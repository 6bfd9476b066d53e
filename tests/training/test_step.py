"""The whole training step: no host sync, bounded memory, each region compiled once."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastuiat
from fastuiat import methods
from fastuiat.attacks import pgd
from fastuiat.data import Batch
from fastuiat.fast.view import TrainingView
from fastuiat.methods.natural import cross_entropy_loss
from fastuiat.targets import universal_gradient
from fastuiat.training import run
from fastuiat.training.config import TrainConfig
from fastuiat.training.step import TrainingStep
from fastuiat_kernels import checks

CPU, META = torch.device("cpu"), torch.device("meta")
B, K, N = 8, 10, 64


class Silent:
    """A progress that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict, float]] = []

    def begin(self, done, total): ...
    def advance(self, done): ...

    def step(self, epoch, done, values, rate):
        self.lines.append(("step", values, rate))

    def epoch(self, epoch, values, rate):
        self.lines.append(("epoch", values, rate))


def settings_of(name: str, **more: Any) -> TrainConfig:
    small: dict[str, Any] = {"arch": "wrn-10-1", "dataset": "digits", "epochs": 5, "batch_size": B}
    small |= {"settings": methods.get(name).Config(), "compile": False}
    return TrainConfig(method=name, **{**small, **more})


def step_on(device: torch.device, name: str, precision: str = "fp32") -> TrainingStep:
    roles = methods.get(name).requires
    helpers = {role: fastuiat.build_model("wrn-10-1").to(device) for role in roles}
    method = methods.create(name, num_classes=K, num_samples=N, epochs=5, helpers=helpers)
    net = fastuiat.build_model("wrn-10-1").to(device)
    return TrainingStep(
        net, method, total_steps=5, weight_averaging=0.9, precision=precision, compile=False
    )


def batch_on(device: torch.device, epoch: int) -> Batch:
    g = torch.Generator().manual_seed(epoch)
    x = torch.rand(B, 3, 32, 32, generator=g).to(memory_format=torch.channels_last)
    index = torch.randperm(N, generator=g)[:B]
    return Batch(x.to(device), (index % K).to(device), index.to(device), epoch, 0)


class Watch(TorchDispatchMode):
    """Notes every value read by the host and every copy to a device that the host waits for."""

    def __init__(self) -> None:
        super().__init__()
        self.syncs: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket._qualified_op_name
        if name == "aten::_local_scalar_dense":
            self.syncs.append(name)
        if name == "aten::_to_copy" and args[0].device != kwargs.get("device", args[0].device):
            waits = args[0].device.type != "cpu" or not kwargs.get("non_blocking")
            self.syncs += [f"{name} {args[0].device}"] * waits
        return func(*args, **kwargs)


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.names())
def test_a_step_on_meta_waits_for_nothing(name):
    """Method, backward, optimiser, averaging."""
    step = step_on(META, name)
    for epoch in range(1, 6):
        batch = batch_on(META, epoch)
        with Watch() as watch:
            out = step(batch)
        assert watch.syncs == []
    assert step.taken == 5 and out.loss.device == META


@pytest.mark.parametrize(
    "name, precision", [*((name, "fp32") for name in methods.names()), ("uiat", "bf16")]
)
def test_a_step_on_the_cpu_reads_no_value(name, precision, monkeypatch):
    """Index ranges apart: the operations read them on the CPU only, as the test on meta shows."""
    monkeypatch.setattr(checks, "indices", lambda *_: None)
    step = step_on(CPU, name, precision)
    before = [p.detach().clone() for p in step.net.parameters()]
    for epoch in range(1, 6):
        with Watch() as watch:
            out = step(batch_on(CPU, epoch))
        assert watch.syncs == []
    moved = [bool((p != q).any()) for p, q in zip(step.net.parameters(), before, strict=True)]
    assert all(moved) and math.isfinite(out.loss.item())


def saved_bytes(function) -> int:
    """Bytes that autograd keeps for a backward at the most, each storage once, weights apart."""
    storages: dict[int, int] = {}
    kept = []

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            storage = tensor.untyped_storage()
            storages[storage._cdata] = storage.nbytes()
            kept.append(storage)  # alive, so that no address is used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(storages.values())


def test_attack_and_target_keep_no_more_than_the_training_forward():
    net = fastuiat.build_model("wrn-28-10").to(META).train()
    view = TrainingView(net, device=META, precision="fp32", compiled=False)
    x = torch.empty(512, 3, 32, 32, device=META).to(memory_format=torch.channels_last)
    y = torch.zeros(512, dtype=torch.int64, device=META)

    def target():
        with view.frozen() as frozen:
            universal_gradient(frozen, x, x, x, y, 1.0)

    training = saved_bytes(lambda: view.training_region(cross_entropy_loss)(x, y))
    attack = saved_bytes(lambda: pgd(view, x, y, eps=8 / 255, alpha=2 / 255, steps=1))
    assert 0 < attack <= training
    assert 0 < saved_bytes(target) <= training


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_run_and_its_resumption_compile_each_region_once(tmp_path, monkeypatch):
    """Real epochs, validations and a resumed process' worth of state, through the trainer."""
    from torch._dynamo.backends.debugging import aot_eager

    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    monkeypatch.setattr("fastuiat.fast.regions.BACKEND", backend)
    config = settings_of(
        "uiat-oneoff",
        compile=True,
        epochs=4,
        batch_size=512,
        val_size=64,
        log_every=1,
        loader="resident",
        precision="fp32",
        device="cpu",
        out=tmp_path / "run",
        settings=methods.configure(
            methods.get("uiat-oneoff").Config, {"attack": {"steps": 1}, "oneoff_epoch": 3}
        ),
    )
    with torch._dynamo.config.patch(error_on_recompile=True):
        first = dataclasses.replace(config, max_steps=3)
        run.train(first, progress=Silent(), say=lambda _: None)
        before_t = len(graphs)
        stored = tmp_path / "run" / "config.json"
        stored.write_text(json.dumps(json.loads(stored.read_text()) | {"max_steps": None}))
        last = tmp_path / "run" / "checkpoints" / "last.pt"
        state = torch.load(last, weights_only=True)
        del state["settings"]  # it would hold what was edited against them
        torch.save(state, last)
        progress = Silent()
        run.resume(config, tmp_path / "run", progress=progress, say=lambda _: None)
    # Three regions of each process: attack, f(x), training; and at T' the inverse gradient.
    assert before_t == 3 and len(graphs) == 3 + 4
    assert all(rate > 0 for _, _, rate in progress.lines)
    lines = metrics(tmp_path / "run")
    for line in (line for line in lines if line["kind"] == "train"):
        assert 0 <= line["grad_zero_share"] <= 1 and line["grad_nonfinite"] == 0
        assert line["clock"]["peak_memory_mib"] > 50
        assert 0 <= line["clock"]["data_wait_percent"] < 100
        assert line["clock"]["images_per_second"] > 0
