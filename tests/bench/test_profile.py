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
from torch.autograd import DeviceType

import fastuiat_kernels
from fastuiat.bench import events, pieces, profile
from fastuiat.bench.events import MARK, Event, Trace, collect, named_kernels, queued
from fastuiat.bench.layers import BOTH, FORWARD, INPUT, WEIGHTS, counted, input_share, products
from fastuiat.bench.passes import inventory, total_flops
from fastuiat.bench.pieces import (
    COPIES,
    HOST,
    IDLE,
    OPTIMISER,
    OTHER,
    OURS,
    POINTWISE,
    device_pieces,
    guess,
    host_pieces,
    learn,
    our_kernel,
    split,
)
from fastuiat.bench.suites import step as suite
from fastuiat.bench.timing import Plan
from fastuiat.bench.workload import Case, floor_inventory, training_step
from fastuiat.cli import main
from fastuiat.fast import recording
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


# On the CPU, for real.


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
    setting = suite.Setting(device=CPU, precision="fp32", compiled=False)
    records = suite.measure(
        case, setting, plan=PLAN, names=("tuned-eager", "fastuiat"), profiled=True
    )
    assert "profile" not in records[0]
    assert records[1]["median_s"] > 0 and records[1]["error"] is None
    assert records[1]["profile"] is None and records[1]["profile_sum_s"] is None
    assert records[1]["profile_error"] == "RuntimeError: CUPTI_ERROR_INSUFFICIENT_PRIVILEGES"
    profile.show(records)
    assert "profile of fastuiat failed: RuntimeError: CUPTI" in capsys.readouterr().out


def test_a_step_that_fails_is_not_profiled(monkeypatch):
    monkeypatch.setattr(suite.profile, "fields", lambda *a, **k: pytest.fail("profiled"))
    monkeypatch.setattr(suite, "training_step", lambda *a, **k: lambda: 1 / 0)
    setting = suite.Setting(device=CPU, precision="fp32", compiled=False)
    (record,) = suite.measure(CASE, setting, plan=PLAN, names=("fastuiat",), profiled=True)
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
    setting = suite.Setting(device=torch.device("cuda"), precision="bf16", compiled=True)
    monkeypatch.setattr(suite, "make_setting", lambda *words: (setting, None))
    words = ("bench", "step", "--arch", "wrn-10-1", "--method", "uiat-oneoff", "--profile")
    assert "choose one phase with --epoch-phase before|at|after" in refusal(*words)


# On a GPU, as CUPTI would tell it.

CONV = ((2, 1), (1, 1), (1, 1), False, (0, 0), 1)
X, W, Y = (8, 4, 16, 16), (6, 4, 3, 3), (8, 6, 8, 16)
FPROP = (
    "sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x64x64__5x_cudnn"
)
DGRAD = FPROP.replace("fprop", "dgrad")
WGRAD = "void cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816wgrad_optimized_bf16_128x128>"
LAYOUT = "void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16, __nv_bfloat16, float, true>"
REDUCE = "void splitKreduce_kernel<32, 16, int, float, __nv_bfloat16, float>"
ADD = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>>"
FOREACH = "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<{}>"
SGD = FOREACH.format("FusedOptimizerTensorListMetadata<3>, FusedSgdMathFunctor<float, 3>")
CAST = FOREACH.format("TensorListMetadata<2>, Copy<c10::BFloat16, float>")


def forward(id, begin, end):
    values = (None, None, None, *CONV)
    return Event("aten::convolution", begin, end, id=id, shapes=(X, W, *[()] * 7), values=values)


def backward(id, begin, end, *mask):
    values = (None, None, None, None, *CONV, (*mask, False))
    shapes = (Y, X, W, *[()] * 8)
    return Event("aten::convolution_backward", begin, end, id=id, shapes=shapes, values=values)


def host(name, id, begin, end, thread=0):
    return Event(name, begin, end, id=id, thread=thread)


def kernel(name, begin, end, operator=0):
    return Event(name, begin, end, on_device=True, operator=operator)


LAUNCHED = Trace(
    (
        host(MARK, 1, 0, 90),
        host("Torch-Compiled Region: 0/0", 2, 1, 60),
        forward(3, 2, 10),
        host("aten::cudnn_convolution", 4, 3, 9),
        host("triton_poi_fused_relu_0", 5, 11, 12),
        backward(6, 13, 20, True, True),
        host("aten::copy_", 7, 14, 15),
        backward(8, 21, 25, False, True),
        host("aten::add", 9, 26, 27),
        host("Optimizer.step#SGD.step", 10, 1, 50, thread=7),
        host("aten::_foreach_copy_", 11, 2, 3, thread=7),
        host("aten::_fused_sgd_", 12, 4, 5, thread=7),
        kernel(LAYOUT, 100, 110, 4),
        kernel(FPROP, 110, 150, 4),
        kernel("triton_poi_fused_relu_0", 150, 160, 5),
        kernel("Memset (Device)", 160, 161, 6),
        kernel(LAYOUT, 161, 171, 7),
        kernel(FPROP, 171, 201, 6),  # cuDNN's choice for an input gradient
        kernel(WGRAD, 201, 251, 6),
        kernel(REDUCE, 251, 261, 6),
        kernel(WGRAD, 261, 281, 8),
        kernel("_sign_step_kernel", 281, 290, 2),
        kernel(ADD, 290, 300, 9),
        kernel(CAST, 300, 310, 11),
        kernel(SGD, 310, 340, 12),
        kernel("Memcpy DtoD (Device -> Device)", 350, 352),
    ),
    begin=0,
    end=352,
    steps=1,
)


def ns_by_kind(found):
    sums = Counter()
    for piece in found:
        sums[piece.kind] += piece.ns
    return dict(sums)


def test_launched_kernels_are_of_their_operators_kind():
    found = device_pieces(LAUNCHED, {})
    assert ns_by_kind(found) == {
        FORWARD: 50,
        POINTWISE: 10,
        INPUT: 40,
        WEIGHTS: 80,
        OURS: 9,
        OTHER: 10,
        OPTIMISER: 40,
        COPIES: 3,
        IDLE: 110,
    }
    assert sum(p.ns for p in found) == LAUNCHED.end - LAUNCHED.begin
    layers = {r["kind"]: r for r in profile.layers_of(found, 1, 1e12)}
    assert {kind: r["calls"] for kind, r in layers.items()} == {FORWARD: 1, INPUT: 1, WEIGHTS: 2}
    flops = 2 * 8 * 8 * 16 * 6 * 4 * 9
    assert layers[FORWARD]["flops"] == flops and layers[FORWARD]["seconds"] == 50e-9
    assert layers[FORWARD]["tflops_per_s"] == pytest.approx(flops / 50e-9 / 1e12)
    assert layers[FORWARD]["peak_share"] == pytest.approx(flops / 50e-9 / 1e12)
    assert layers[FORWARD]["layer"] == "8×4×16×16 → 6, 3×3, stride 2"


def test_a_replayed_kernel_is_what_it_was_when_it_was_launched():
    """Two steps: everything but the optimiser comes out of graphs, without operators."""
    names = [LAYOUT, FPROP, "triton_red_fused_add_1", "_sign_step_kernel_0", WGRAD]
    step = [kernel(name, 10 * i, 10 * i + 8) for i, name in enumerate(names)]
    again = [dataclasses.replace(e, begin=e.begin + 50, end=e.end + 50) for e in step]
    last = [host("aten::_fused_sgd_", 3, 1, 2), kernel(SGD, 100, 140, 3)]
    trace = Trace((*step, *again, *last), begin=0, end=140, steps=2)
    found = device_pieces(trace, {}, learn(device_pieces(LAUNCHED, {})))
    sums = ns_by_kind(found)
    # Of this layout kernel, half was the forward's; of the fprop kernel, 3/7 an input gradient.
    assert sums[INPUT] == pytest.approx(16 / 2 + 16 * 3 / 7)
    assert sums[FORWARD] == pytest.approx(16 / 2 + 16 * 4 / 7)
    assert sums[POINTWISE] == sums[OURS] == sums[WEIGHTS] == 16 and sums[OPTIMISER] == 40
    assert sums[IDLE] == 20
    rows = profile.rows_of(found, trace.steps)
    assert sum(r["seconds"] for r in rows) == pytest.approx(trace.seconds) == pytest.approx(70e-9)
    ours = next(r for r in rows if r["kind"] == OURS)
    assert (ours["name"], ours["calls"]) == ("sign_step_kernel", 2 / 2)
    (idle,) = (r for r in rows if r["kind"] == IDLE)
    assert idle["calls"] == 5 and idle["share"] == pytest.approx(20 / 140)


def test_a_backward_whose_kernels_do_not_say_is_one_piece():
    trace = Trace(
        (backward(1, 0, 5, True, True), kernel("conv_a", 0, 6, 1), kernel("conv_b", 6, 10, 1)),
        begin=0,
        end=10,
        steps=1,
    )
    found = device_pieces(trace, {})
    assert ns_by_kind(found) == {BOTH: 10, IDLE: 0}
    (row,) = profile.layers_of(found, 1, None)
    assert row["kind"] == BOTH and row["flops"] == 2 * 2 * 8 * 8 * 16 * 6 * 4 * 9


def test_convolutions_without_shapes_are_still_convolutions():
    """What is not recorded has operators in a profile that did not ask for shapes."""
    bare = [
        host("aten::convolution", 1, 0, 2),
        host("aten::convolution_backward", 2, 3, 5),
        kernel("gemm", 0, 4, 1),
        kernel(LAYOUT, 4, 5, 2),
        kernel(WGRAD, 5, 9, 2),
    ]
    found = device_pieces(Trace(tuple(bare), 0, 9, 1), {})
    assert ns_by_kind(found) == {FORWARD: 4, INPUT: 1, WEIGHTS: 4, IDLE: 0}
    assert profile.layers_of(found, 1, None) == []


def test_time_in_which_two_kernels_run_is_counted_once():
    both = (kernel(ADD, 10, 30), kernel("Memcpy DtoD (Device -> Device)", 20, 50))
    inside = kernel("Memset (Device)", 40, 45)
    found = device_pieces(Trace((*both, inside), 0, 50, 1), {})
    assert ns_by_kind(found) == {OTHER: 20, COPIES: 20, IDLE: 10}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (FPROP, FORWARD),
        (DGRAD, INPUT),
        (WGRAD, WEIGHTS),
        ("void cudnn::cnn::wgrad2d_c1_k1_nhwc_kernel<__nv_bfloat16>", WEIGHTS),
        ("void dgrad2d_grouped_direct_kernel<__half, float>", INPUT),
        ("void implicit_convolve_sgemm<float, float, 1024, 5, 5, 3>", FORWARD),
        ("triton_tem_fused_convolution_3", FORWARD),
        (SGD, OPTIMISER),
        (CAST, COPIES),
        ("void at::native::elementwise_kernel<128, 4, direct_copy_kernel_cuda>", COPIES),
        ("void at::native::unrolled_elementwise_kernel<copy_device_to_device>", COPIES),
        (ADD, OTHER),
        ("nvjet_tst_128x64_64x8_2x1_v_bz_NNT", OTHER),
    ],
)
def test_a_kernel_of_which_only_the_name_is_known(name, kind):
    assert guess(name) == kind


def test_the_windows_of_a_queue_of_steps():
    """From the host's mark to the last kernel: the call before it is not in it."""
    before = kernel(ADD, 0, 90)
    during = (host(MARK, 1, 100, 400), kernel(ADD, 110, 300), kernel(ADD, 300, 420))
    trace = queued((before, *during), steps=2)
    assert (trace.begin, trace.end) == (100, 420) and trace.seconds == 160e-9
    assert ns_by_kind(device_pieces(trace, {})) == {OTHER: 310, IDLE: 10}
    with pytest.raises(RuntimeError, match="no kernel"):
        queued((before, during[0]), steps=2)


class Told:
    """An event as Kineto hands it out."""

    def __init__(self, name, *, device=DeviceType.CPU, id=0, link=0, note=False, **more):
        values = {"shapes": [], "concrete_inputs": [], "start_ns": 5, "duration_ns": 3, **more}
        values |= {"name": name, "device_type": device, "start_thread_id": 1}
        values |= {"correlation_id": id, "linked_correlation_id": link, "is_user_annotation": note}
        for key, value in values.items():
            setattr(self, key, lambda value=value: value)


def test_only_operators_and_work_are_read():
    gpu = DeviceType.CUDA
    raw = [
        Told("aten::cat", id=3, shapes=[[[2, 3], [2, 3]], []], concrete_inputs=[None, 0]),
        Told("aten::convolution", id=4, shapes=[[2, 3], []], concrete_inputs=[None, [1, 1]]),
        Told("cudaLaunchKernel", id=4, link=4),
        Told("cuLaunchKernelEx", id=4),
        Told("sm90_xmma_fprop", device=gpu, id=4, link=4),
        Told("Memset (Device)", device=gpu, id=9),
        Told("Optimizer.step#SGD.step", device=gpu, note=True),
        Told("Stream Sync", device=gpu),
    ]
    read = list(events.read(raw))
    assert [e.name for e in read] == [
        "aten::cat",
        "aten::convolution",
        "sm90_xmma_fprop",
        "Memset (Device)",
    ]
    assert read[0].shapes == ((), ()) and read[0].values == (None, 0)
    assert read[1].shapes == ((2, 3), ()) and read[1].values == (None, (1, 1))
    assert [(e.id, e.operator) for e in read] == [(3, 0), (4, 0), (0, 4), (0, 0)]
    assert (read[2].begin, read[2].end, read[2].on_device) == (5, 8, True)


def test_a_gpu_is_profiled_twice_and_its_sums_are_of_the_replays(monkeypatch):
    asked = []

    def collected(call, device, *, steps, shapes):
        asked.append((steps, shapes, recording._one_by_one.get()))
        replays = (kernel(FPROP, 0, 40), kernel(FPROP, 50, 90))
        return LAUNCHED if shapes else Trace(replays, 0, 100, steps)

    monkeypatch.setattr(profile, "collect", collected)
    monkeypatch.setattr(profile.floors, "peak_flops", lambda device, precision: None)
    device = torch.device("cuda")
    seen = profile.profile(lambda: None, device, precision="bf16", ops=[], queued=500)
    assert asked == [(3, True, True), (50, False, False)]
    assert seen["profile"]["steps"] == 50
    assert seen["profile_sum_s"] == pytest.approx(100e-9 / 50)
    assert [r["kind"] for r in seen["profile"]["rows"]] == [FORWARD, INPUT, IDLE]
    assert {r["kind"] for r in seen["profile"]["layers"]} == {FORWARD, INPUT, WEIGHTS}


# What both share.


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


def test_self_times_of_the_host():
    """An operator that stands for something takes all inside with it; the rest is its own time."""
    trace = Trace(
        (
            host(MARK, 1, 0, 100),
            host("## Call CompiledFxGraph abc1 ##", 2, 10, 60),
            host("graph_3_cpp_fused_relu_0", 3, 20, 30),
            forward(4, 30, 55),
            host("aten::copy_", 5, 31, 40),
            host("aten::add", 6, 60, 70),
            host("aten::clone", 7, 62, 65),
            host("aten::empty", 8, 63, 64),
        ),
        begin=0,
        end=100,
        steps=1,
    )
    found = host_pieces(trace, {})
    assert ns_by_kind(found) == {HOST: 40 + 15, POINTWISE: 10, FORWARD: 25, OTHER: 7, COPIES: 3}
    assert {p.name for p in found if p.kind == HOST} == {"Python", "glue of compiled graphs"}
    assert {p.name for p in found if p.kind == POINTWISE} == {"cpp_fused_relu_0"}


def test_a_backward_to_both_is_shared_out():
    (whole,) = host_pieces(Trace((backward(1, 0, 40, True, True),), 0, 40, 1), {})
    assert whole.kind == BOTH
    asked = []
    parts = split([whole], lambda layer: asked.append(layer) or 0.25)
    assert [(p.kind, p.ns) for p in parts] == [(INPUT, 10), (WEIGHTS, 30)]
    assert str(asked[0]) == "8×4×16×16 → 6, 3×3, stride 2"
    assert 0 < input_share(asked[0], torch.float32) < 1


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
