"""Where a step's time goes: nothing lost, nothing counted twice, each piece of the right kind."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

import fastuiat_kernels
from fastuiat.bench import pieces, profile, step_rows
from fastuiat.bench.events import collect, named_kernels
from fastuiat.bench.layers import BOTH, FORWARD, INPUT, WEIGHTS, counted, products
from fastuiat.bench.passes import inventory, total_flops
from fastuiat.bench.pieces import (
    COPIES,
    HOST,
    OPTIMISER,
    OTHER,
    POINTWISE,
    host_pieces,
    our_kernel,
)
from fastuiat.bench.setting import Setting
from fastuiat.bench.step_rows import measure
from fastuiat.bench.suites import step as suite
from fastuiat.bench.timing import Plan
from fastuiat.bench.workload import Case, floor_inventory, training_step
from fastuiat.cli import main
from fastuiat.models.convolution import product_of_patches

CPU = torch.device("cpu")
CASE = Case(arch="wrn-10-1", method="uiat", batch_size=16, settings={"attack": {"steps": 1}})
PLAN = Plan(warmup=0, rounds=1)


class StopWatch:
    """A call, and the seconds of each."""

    def __init__(self, call):
        self.call, self.seconds = call, []

    def __call__(self):
        began = time.perf_counter()
        self.call()
        self.seconds.append(time.perf_counter() - began)


def layers_counted(ops):
    """Calls of each pass of each layer, a backward to both being one of either."""
    found = Counter()
    for kind, layer in filter(None, map(counted, ops)):
        for part in (INPUT, WEIGHTS) if kind == BOTH else (kind,):
            found[part, layer.x, layer.weight, layer.stride] += 1
    return found


def layers_profiled(layers):
    found = Counter()
    for r in layers:  # two may differ in their padding alone
        key = r["kind"], tuple(r["input"]), tuple(r["weight"]), tuple(r["stride"])
        found[key] += r["calls"]
    return found


def flops_counted(ops):
    return total_flops([op for op in ops if op.kind != "matmul"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["uiat", "gradalign"])
def test_the_sum_is_the_step_and_the_layers_are_those_counted(method):
    case = dataclasses.replace(
        CASE, method=method, settings={} if method == "gradalign" else CASE.settings
    )
    watch = StopWatch(training_step(case, CPU, precision="fp32", compiled=False))
    watch()
    ops = floor_inventory(case)
    seen = profile.profile(watch, CPU, precision="fp32", ops=ops, queued=1)
    rows, layers = seen["profile"]["rows"], seen["profile"]["layers"]
    taken = sorted(watch.seconds[-profile.LAUNCHED_STEPS :])[1]  # behind one that is not counted
    assert seen["profile_sum_s"] == pytest.approx(taken, rel=0.1)
    assert sum(r["share"] for r in rows) == pytest.approx(1)
    assert [r["seconds"] for r in rows] == sorted((r["seconds"] for r in rows), reverse=True)
    assert layers_profiled(layers) == layers_counted(ops)
    assert sum(r["flops"] for r in layers) == flops_counted(ops)
    by_kind = profile.by_kind(rows)
    in_layers = Counter()
    for r in layers:
        in_layers[r["kind"]] += r["seconds"]
        assert r["tflops_per_s"] > 0 and r["peak_share"] > 0
    for kind, seconds in in_layers.items():
        assert by_kind[kind][1] == pytest.approx(seconds)
    assert {HOST, OTHER, OPTIMISER, COPIES} <= by_kind.keys() and by_kind[HOST][1] > 0


@pytest.mark.slow
def test_a_compiled_step_names_its_kernels(capsys, tmp_path, monkeypatch):
    """As a user calls it: Inductor's kernels by name, and convolutions found between them."""
    from torch._inductor import config

    monkeypatch.chdir(tmp_path)
    words = ["bench", "step", "--arch", "wrn-10-1", "--batch-size", "16", "--method", "natural"]
    main([*words, "--providers", "fastuiat", "--repeats", "3", "--profile", "--json", "x.jsonl"])
    assert config.cpp.enable_kernel_profile is False
    before, record = map(json.loads, Path("x.jsonl").read_text().splitlines())
    assert "profile" not in before and before["median_s"] == record["median_s"]
    assert record["error"] is None and "profile_error" not in record
    rows, layers = record["profile"]["rows"], record["profile"]["layers"]
    assert record["profile_sum_s"] == pytest.approx(sum(r["seconds"] for r in rows))
    assert set(rows[0]) == {"kind", "name", "calls", "seconds", "share"}
    kernels = [r["name"] for r in rows if r["kind"] == POINTWISE]
    assert any(name.startswith("cpp_fused_") for name in kernels)
    case = Case(arch="wrn-10-1", method="natural", batch_size=16)
    assert layers_profiled(layers) == layers_counted(floor_inventory(case))
    printed = capsys.readouterr().out
    assert "compiled" in printed
    at = [printed.index(w) for w in ("provider", "where fastuiat's", "the largest", "of peak")]
    assert at == sorted(at) and "measured without a profiler" in printed
    assert "16×16×32×32 → 32, 3×3, stride 2" in printed and WEIGHTS in printed


def test_convolutions_as_products_of_patches_are_found_by_their_shapes():
    x = torch.randn(4, 8, 16, 16, requires_grad=True)
    weight = torch.randn(24, 8, 3, 3, requires_grad=True)

    def call(conv=lambda: product_of_patches(x, weight, 2)):
        x.grad = weight.grad = None
        conv().square().sum().backward()

    ops = inventory(lambda: call(lambda: torch.conv2d(x, weight, stride=2, padding=1)))
    known = products(ops)
    trace = collect(call, CPU, steps=1, shapes=True)
    found = profile.layers_of(host_pieces(trace, known), trace.steps, None)
    assert {r["kind"] for r in found} == {FORWARD, INPUT, WEIGHTS}
    assert layers_profiled(found) == layers_counted(ops)
    assert sum(r["flops"] for r in found) == total_flops(ops)
    assert all(r["peak_share"] is None for r in found)


def test_a_profiler_that_fails_leaves_the_row(monkeypatch, capsys):
    def fails(*args, **kwargs):
        raise RuntimeError("CUPTI_ERROR_INSUFFICIENT_PRIVILEGES\nmore")

    monkeypatch.setattr(profile, "collect", fails)
    case = dataclasses.replace(CASE, method="natural", settings={}, batch_size=4)
    setting = Setting(device=CPU, precision="fp32", compiled=False)
    records = measure(case, setting, plan=PLAN, names=("tuned-eager", "fastuiat"), profiled=True)
    assert "profile" not in records[0]
    assert records[1]["median_s"] > 0 and records[1]["error"] is None
    assert records[1]["profile"] is None and records[1]["profile_sum_s"] is None
    assert records[1]["profile_error"] == "RuntimeError: CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"
    profile.show(records)
    assert "profile of fastuiat failed: RuntimeError: CUPTI" in capsys.readouterr().out


def test_a_step_that_fails_is_not_profiled(monkeypatch):
    monkeypatch.setattr(profile, "fields", lambda *a, **k: pytest.fail("profiled"))
    monkeypatch.setattr(step_rows, "training_step", lambda *a, **k: lambda: 1 / 0)
    setting = Setting(device=CPU, precision="fp32", compiled=False)
    (record,) = measure(CASE, setting, plan=PLAN, names=("fastuiat",), profiled=True)
    assert record["error"].startswith("ZeroDivisionError") and "profile" not in record


def test_the_switch_for_names_is_put_back():
    from torch._inductor import config

    with pytest.raises(KeyError), named_kernels(CPU):
        assert config.cpp.enable_kernel_profile
        raise KeyError
    assert not config.cpp.enable_kernel_profile
    with named_kernels(torch.device("cuda")):
        assert not config.cpp.enable_kernel_profile


def test_profile_is_of_the_fastuiat_row(refusal):
    words = ("bench", "step", "--profile", "--providers", "naive", "convolutions")
    assert "--profile is of the fastuiat row" in refusal(*words)


def test_on_a_gpu_nothing_is_measured_after_a_profile(refusal, monkeypatch):
    setting = Setting(device=torch.device("cuda"), precision="bf16", compiled=True)
    monkeypatch.setattr(suite, "make_setting", lambda *words: (setting, None))
    words = ("bench", "step", "--arch", "wrn-10-1", "--method", "uiat-oneoff", "--profile")
    assert "choose one phase with --epoch-phase before|at|after" in refusal(*words)


def test_every_kernel_of_ours_is_known_by_its_name():
    folder = Path(fastuiat_kernels.__file__).parent
    launched = set()
    for file in folder.glob("*.py"):
        launched |= set(re.findall(r"wrap_triton\((_\w+)\)", file.read_text()))
    assert len(launched) > 5
    for name in launched:
        assert our_kernel(name) == our_kernel(f"{name}_0") == our_kernel(f"{name}_0d1d2")
        assert our_kernel(name) == name.strip("_")
    assert our_kernel("void sign_step") is None and our_kernel("_sign_step_kernels") is None


def test_tiny_rows_are_gathered_and_none_is_lost():
    many = [pieces.Piece(OTHER, f"aten::tiny{i}", 1) for i in range(7)]
    found = [pieces.Piece(FORWARD, "aten::convolution", 1e5), *many, pieces.Piece(COPIES, "a", 1)]
    rows = profile.rows_of(found, 1)
    assert [(r["kind"], r["name"], r["calls"]) for r in rows] == [
        (FORWARD, "aten::convolution", 1),
        (OTHER, "7 others", 7),
        (COPIES, "a", 1),
    ]
    assert sum(r["seconds"] for r in rows) == pytest.approx((1e5 + 8) / 1e9)


def test_a_sum_that_is_not_the_step_says_so():
    record = {"profile_sum_s": 1.02, "median_s": 1.0}
    assert profile.agreement(record).endswith("measured without a profiler 1 s: +2.0%")
    record |= {"profile_sum_s": 0.9, "profile": {"busy_s": 0.8, "launched_busy_s": 0.7}}
    said = profile.agreement(record)
    assert "-10.0%" in said and "not quiet" in said
    assert "working 800 ms of it, 700 ms launched one by one" in said
