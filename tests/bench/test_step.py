"""The step bench: the right work behind each row, and rows that survive each other."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastuiat.bench import step_rows, suites, workload
from fastuiat.bench.passes import Inventory, TensorSpec, inventory, total_flops
from fastuiat.bench.replay import OperandPool, replay
from fastuiat.bench.setting import Setting
from fastuiat.bench.step_rows import measure
from fastuiat.bench.suites import step as suite
from fastuiat.bench.timing import Plan, WallClock
from fastuiat.bench.workload import (
    Case,
    Phase,
    make_loader,
    make_step,
    naive_step,
    pass_flops,
    phases,
    training_step,
)
from fastuiat.training.step import TrainingStep

CPU = torch.device("cpu")
SETTING = Setting(device=CPU, precision="fp32", compiled=False)
QUICK = {"attack": {"steps": 1}}
PLAN = Plan(warmup=0, rounds=2)


def small(method: str = "uiat", **more) -> Case:
    return Case(arch="wrn-10-1", method=method, batch_size=4, **{"settings": QUICK, **more})


@pytest.mark.slow
def test_every_row_has_its_passes_and_its_costs():
    records = measure(small(settings={}), SETTING, plan=PLAN)
    rows = {r["provider"]: r for r in records}
    assert list(rows) == ["naive", "tuned-eager", "fastuiat", "convolutions"]
    assert {name: round(r["passes"]) for name, r in rows.items()} == {
        "naive": 28,
        "tuned-eager": 28,
        "fastuiat": 28,
        "convolutions": 28,
    }
    for r in records:
        assert r["error"] is None and r["n"] == 2 and r["peak_bytes"] > 0
        assert r["images_per_s"] == pytest.approx(4 / r["median_s"])
        assert r["tflops_per_s"] == pytest.approx(r["flops"] / r["median_s"] / 1e12)
    assert rows["fastuiat"]["ratio_median"] == 1.0
    assert rows["naive"]["config"]["precision"] == "fp32"
    assert rows["naive"]["config_hash"] == rows["tuned-eager"]["config_hash"]


def test_ratios_come_from_an_injected_clock():
    """A clock that says each provider's seconds: tables and ratios follow it exactly."""

    class Scripted(WallClock):
        turns = 0

        def seconds(self, call):
            call()
            self.turns += 1
            return float(self.turns)

    names = ("tuned-eager", "fastuiat")
    records = measure(
        small("natural", settings={}),
        SETTING,
        plan=Plan(warmup=0, rounds=1),
        names=names,
        clock=Scripted(),
    )
    # build and first call of either take 1 … 4, so the round gives 5 and 6.
    assert [r["median_s"] for r in records] == [5.0, 6.0]
    assert records[0]["ratio_median"] == 5 / 6
    assert records[0]["images_per_s"] == 4 / 5
    assert suite.summary(records) == ["fastuiat: 0.83 times as fast as tuned-eager"]


def test_a_failed_row_leaves_the_others(monkeypatch):
    def fails(case, device):
        raise MemoryError("no room for a naive step")

    monkeypatch.setattr(step_rows, "naive_training_step", fails)
    records = measure(small("natural", settings={}), SETTING, plan=PLAN)
    assert records[0]["error"] == "MemoryError: no room for a naive step"
    assert records[0]["median_s"] is None and records[0]["ratio_median"] is None
    assert all(r["error"] is None for r in records[1:])
    suites.get("step").show(records)


def test_the_fastuiat_row_is_the_trainers_own_step(monkeypatch):
    taken = []
    original = TrainingStep.__call__
    monkeypatch.setattr(
        TrainingStep, "__call__", lambda self, batch: (taken.append(self), original(self, batch))
    )
    call = training_step(small(), CPU, precision="fp32", compiled=False)
    call()
    call()
    (step,) = set(taken)
    assert step.taken == 2 and step.compiled is False
    assert step.method.name == "uiat" and step.net.conv1.weight.is_contiguous(
        memory_format=torch.channels_last
    )


def test_one_off_phases_do_what_their_epoch_does():
    """Before T' no z moves; in it z moves; after it z rests, and no forward is spent on p."""
    case, spent = small("uiat-oneoff"), {}
    for phase in phases(case):
        part = dataclasses.replace(case, phase=phase)
        step = make_step(part, CPU, precision="fp32", compiled=False)
        z = step.method.target.universal.bank.z
        before = z.clone()
        flops = {
            total_flops(inventory(lambda s=step, b=batch: s(b)))
            for batch in make_loader(part, CPU).epoch(part.epoch)
        }
        assert len(flops) == 1, "each batch counts as met before"
        spent[phase.name] = flops.pop(), not torch.equal(before, z)
    F = pass_flops(case)
    assert [moved for _, moved in spent.values()] == [False, True, False]
    assert spent["before"][0] - spent["after"][0] == F
    assert spent["at"][0] - spent["after"][0] == 5 * F


def test_phases_share_the_run():
    assert phases(Case(method="uiat-oneoff", epochs=100)) == [
        Phase("before", 79, 0.79),
        Phase("at", 80, 0.01),
        Phase("after", 81, 0.2),
    ]
    assert phases(Case(method="uiat")) == []
    assert [p.name for p in phases(Case(method="uiat-oneoff", epochs=1))] == ["at"]


def test_replay_runs_the_same_operations():
    step = training_step(small(), CPU, precision="fp32", compiled=False)
    ops = inventory(step)
    again = inventory(replay(ops, CPU))
    assert again == ops and len(ops) > 60


def test_replay_keeps_bf16_and_layout():
    ops = inventory(training_step(small(), CPU, precision="bf16", compiled=False))
    assert {op.args[0].dtype for op in ops if op.kind == "forward"} == {torch.bfloat16}
    assert inventory(replay(ops, CPU)) == ops


def test_replay_memory_is_bounded_by_distinct_operands():
    ops = inventory(training_step(small(settings={}), CPU, precision="fp32", compiled=False))
    pool = OperandPool(CPU)
    for _ in range(2):
        for op in ops:
            for i, a in enumerate(op.args):
                pool.operand(a, i)
    distinct = {(a, i) for op in ops for i, a in enumerate(op.args) if isinstance(a, TensorSpec)}
    assert len(pool.tensors) == len(distinct) < len(ops) / 4


@pytest.mark.parametrize("stride", [(0, 0), (10, 1), (1, 3), (20, 2)])
def test_replayed_operands_have_the_strides_asked_for(stride):
    spec = TensorSpec((3, 10), stride, torch.float32)
    tensor = OperandPool(CPU).operand(spec, 0)
    assert TensorSpec.of(tensor) == spec and tensor.isfinite().all()


def test_inventory_sees_a_gradient_of_a_leaf_that_a_module_was_given():
    """Where torch's own counter raises."""
    layer = torch.nn.Linear(5, 7)
    x = torch.zeros(3, 5, requires_grad=True)
    with Inventory() as mode:
        torch.autograd.grad(layer(x).sum(), x)
    assert mode.flops == 2 * (2 * 3 * 5 * 7)


@pytest.mark.parametrize("method", ["natural", "sat", "uiat", "uiat-oneoff"])
def test_naive_steps_learn(method):
    """They are real steps: one batch again and again, and its loss falls."""
    case = small(method)
    if method == "uiat-oneoff":
        case = dataclasses.replace(case, phase=phases(case)[1])
    torch.manual_seed(0)
    step = naive_step(case, CPU)
    batch = next(workload.make_loader(case, CPU).epoch(1))
    x = batch.x.contiguous()
    losses = []
    for _ in range(16):
        losses.append(step.backward(x, batch.y, batch.index).item())
        step.optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    assert step.net.conv1.weight.is_contiguous()
