"""Pieces of a step, by what its trace tells: each of the right kind, none lost, none twice."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.autograd import DeviceType

from fastuiat.bench import events, profile
from fastuiat.bench.events import MARK, Trace, queued
from fastuiat.bench.layers import BOTH, FORWARD, INPUT, WEIGHTS, input_share
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
    split,
)
from fastuiat.fast import recording
from tests.bench.traces import (
    ADD,
    CAST,
    DGRAD,
    FPROP,
    LAUNCHED,
    LAYOUT,
    SGD,
    WGRAD,
    backward,
    forward,
    host,
    kernel,
    ns_by_kind,
)


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
