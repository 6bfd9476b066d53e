"""What the bench takes from CUDA: replays of many calls, and the memory that graphs hold."""

from __future__ import annotations

import pytest
import torch

from fastuiat.bench import profile
from fastuiat.bench.call_memory import graph_memory, peak_memory
from fastuiat.bench.graphs import cuda_graphs, make_pool, replayed
from fastuiat.bench.suites import kernels as suite
from fastuiat.bench.suites import step
from fastuiat.bench.timing import Plan
from fastuiat.bench.workload import Case

CUDA = torch.device("cuda")
PLAN = Plan(rounds=3, min_sample_s=suite.MIN_SAMPLE_S)


def test_a_replay_calls_once_for_each_call_in_it():
    pool = make_pool({"x": torch.zeros(1 << 20, device=CUDA)}, 1 << 23, cuda_graphs(CUDA))
    replay, calls = replayed(lambda x: x.add_(1), pool, cuda_graphs(CUDA))
    before = [int(inputs["x"][0]) for inputs in pool.inputs]
    replay()
    replay()
    after = [int(inputs["x"][-1]) for inputs in pool.inputs]
    each = 2 * calls // len(pool.inputs)
    assert [a - b for a, b in zip(after, before, strict=True)] == [each] * len(pool.inputs)


def test_a_call_that_waits_is_found_before_it_is_recorded():
    graphs = cuda_graphs(CUDA)
    pool = make_pool({"x": torch.zeros(1 << 20, device=CUDA)}, 1 << 23, graphs)
    with pytest.raises(RuntimeError):
        replayed(lambda x: x.sum().item(), pool, graphs)
    torch.cuda.empty_cache()
    replay, _ = replayed(lambda x: x.mul(2), pool, graphs)
    replay()
    torch.cuda.synchronize()


@pytest.mark.parametrize("name", ["sign_step", "bank_step", "distill_loss", "memory_update"])
def test_kernels_are_timed_by_replays(name):
    case = suite.cases((name,), ("cifar10",), every_dtype=False)[0]
    records = {r["provider"]: r for r in suite.measure(case, CUDA, plan=PLAN, bandwidth=3e12)}
    for provider in ("inductor", "triton"):
        r = records[provider]
        assert r["error"] is None and r["timed"] == "replays", (provider, r["replay_error"])
        assert r["median_s"] > 0 and r["call_s"] > 0 and r["graph_calls"] >= 20


def test_what_a_graph_holds_is_seen():
    held, graphs = graph_memory(CUDA), cuda_graphs(CUDA)
    pool = make_pool({"x": torch.zeros(1 << 20, device=CUDA)}, 1 << 23, graphs)
    torch.cuda.empty_cache()  # of graphs that are gone, which a recording would else give back
    before = held()
    replay, _ = replayed(lambda x: x.mul(2), pool, graphs)
    assert held() - before >= len(pool.inputs) << 22, "a result of 4 MB for each copy"
    assert peak_memory(CUDA)(replay) == 0, "which no allocation of a replay shows"


def test_a_step_is_profiled(capsys):
    """The first try of all that the profiler tells of a GPU: layers launched, rows replayed."""
    setting, _ = step.make_setting("cuda", "bf16", True)
    case = Case(arch="wrn-10-1", batch_size=32, method="uiat")
    plan = Plan(rounds=2)
    kept: list[dict] = []
    (record,) = step.measure(
        case, setting, plan=plan, names=("fastuiat",), profiled=True, keep=kept.extend
    )
    assert record.get("profile_error") is None
    assert [r["provider"] for r in kept] == ["fastuiat", "fastuiat"]
    kinds = {row["kind"] for row in record["profile"]["rows"]}
    assert {"convolution forward", "fastuiat kernels", "optimiser", "idle"} <= kinds, kinds
    layers = {row["kind"] for row in record["profile"]["layers"]}
    assert {"convolution forward", "convolution input gradient"} <= layers, layers
    assert any("weight" in kind for kind in layers), layers
    assert 0.5 < record["profile_sum_s"] / record["median_s"] < 2
    profile.show([record])
    assert "TFLOP/s" in capsys.readouterr().out
