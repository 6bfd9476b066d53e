"""Floating-point operations of every method's step against the floor, and of the naive code."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastuiat import methods
from fastuiat.bench.baselines import BASELINES
from fastuiat.bench.passes import Op, inventory, total_flops
from fastuiat.bench.workload import (
    Case,
    floor_inventory,
    make_net,
    naive_inventory,
    pass_flops,
    phases,
    training_step,
)

NETS = ("resnet-18", "wrn-16-4")
B = 2
CPU = torch.device("cpu")

# Passes of one step, F = a forward: backward to the input 1F, full backward 2F. GradAlign stands
# without its strided convolutions' share, which `double_backward_excess` derives for each net.
ONE_OFF = {"before": 1, "at": 3, "after": 0}
FLOORS: dict[str, dict[str | None, float]] = {
    "natural": {None: 3},
    "sat": {None: 10 * 2 + 3},
    "trades": {None: 1 + 10 * 2 + 6},
    "rebuffi": {None: 10 * 2 + 6},
    "mart": {None: 10 * 2 + 6},
    "hat": {None: 1 + 10 * 2 + 1 + 9},
    "iat": {None: 10 * 2 + 2 + 5 * 2 + 1 + 3},
    "uiat": {None: 10 * 2 + 4 + 1 + 3},
    "uiat-oneoff": {"before": 20 + 1 + 3, "at": 20 + 4 + 1 + 3, "after": 20 + 3},
    "rs-fgsm": {None: 2 + 3},
    "n-fgsm": {None: 2 + 3},
    "gradalign": {None: 2 + 2 + 4 + 3},
    "rs-fgsm+uiat": {phase: 5 + n for phase, n in ONE_OFF.items()},
    "n-fgsm+uiat": {phase: 5 + n for phase, n in ONE_OFF.items()},
    "gradalign+uiat": {phase: 11 + n for phase, n in ONE_OFF.items()},
}
TRAINED = {"trades": 2, "rebuffi": 2, "mart": 2, "hat": 3}
"""Forwards of the training loss on images that take no gradient, where they are not one."""


def cases(method: str, arch: str, **more: object) -> list[Case]:
    case = Case(arch=arch, method=method, batch_size=B, **more)
    return [dataclasses.replace(case, phase=phase) for phase in phases(case) or [None]]


def convolutions(arch: str) -> list[tuple[torch.nn.Conv2d, int]]:
    """Each convolution with its multiply-adds ×2 per image, from its shapes alone."""
    net, result = make_net(Case(arch=arch), CPU), []

    def note(conv, inputs, out):
        taps = conv.in_channels * conv.kernel_size[0] * conv.kernel_size[1]
        result.append((conv, 2 * taps * conv.out_channels * out.shape[2] * out.shape[3]))

    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(note)
    net.eval()(torch.zeros(1, 3, 32, 32))
    return result


def first_layer(arch: str) -> int:
    """What a full backward leaves out of 2F: nothing asks for the images' own gradient."""
    return B * convolutions(arch)[0][1]


def double_backward_excess(arch: str) -> float:
    """FLOPs of a double backward above 4F.

    PyTorch takes the weight gradient of a strided convolution as a dilated one whose output has
    more taps than the kernel and is then cut: (I + 2p − s·(O − 1))² instead of k².
    """
    excess = 0.0
    for conv, flops in convolutions(arch):
        (stride, _), (k, _), (pad, _) = conv.stride, conv.kernel_size, conv.padding
        if stride == 1:
            continue
        out = round((flops / (2 * conv.in_channels * k * k * conv.out_channels)) ** 0.5)
        taps = stride * out + 2 * pad - stride * (out - 1)
        excess += B * flops * (taps**2 / k**2 - 1)
    return excess


def test_every_method_has_a_floor_and_a_naive_baseline():
    names = set(methods.names())
    assert not names - set(FLOORS), "state the floor of the new method in FLOORS"
    assert not names - set(BASELINES), "write the new method's naive step in bench/baselines.py"


@pytest.mark.slow
@pytest.mark.parametrize("arch", NETS)
@pytest.mark.parametrize("method", methods.names())
def test_step_is_at_its_floor(method, arch):
    for case in cases(method, arch):
        floor = FLOORS[method][case.phase.name if case.phase else None] * pass_flops(case)
        if method.startswith("gradalign"):
            floor += double_backward_excess(arch)
        counted = total_flops(floor_inventory(case))
        assert counted == pytest.approx(floor, rel=0.015), case.name
        # To the last operation: nobody asks for the gradient of the images that are trained on.
        assert counted <= round(floor) - TRAINED.get(method, 1) * first_layer(arch), case.name


@pytest.mark.parametrize("method", ["uiat", "mart"])
def test_larger_images_of_more_classes_take_as_many_passes(method):
    (case,) = cases(method, "wrn-10-1", resolution=64, num_classes=20, num_samples=100)
    floor = FLOORS[method][None] * pass_flops(case)
    assert pass_flops(case) > 3.9 * pass_flops(dataclasses.replace(case, resolution=32))
    assert total_flops(floor_inventory(case)) == pytest.approx(floor, rel=0.015)


@pytest.mark.parametrize("arch", NETS)
def test_uiat_without_feature_term(arch):
    (case,) = cases("uiat", arch, settings={"beta": 0.0})
    exact = 26 * pass_flops(case) - first_layer(arch)
    assert total_flops(floor_inventory(case)) == exact


READINGS = {
    "iat": {"eval": 36, "train": 36, "attached": 38},
    "uiat": {"eval": 27, "train": 28, "attached": 30},
    "uiat-oneoff": {"eval": (24, 27, 23), "train": (24, 28, 23), "attached": (26, 30, 23)},
    "n-fgsm+uiat": {"eval": (6, 7, 5), "train": (6, 8, 5), "attached": (8, 10, 5)},
}
"""Passes by where p comes from; of one-off methods before, in and after T'."""


@pytest.mark.slow
@pytest.mark.parametrize("method", READINGS)
@pytest.mark.parametrize("reading", ["eval", "train", "attached"])
def test_the_readings_of_the_inverse_forward(method, reading):
    """To the last operation: nobody asks for the gradient of an image that is trained on."""
    arch = "wrn-16-4"
    wanted = READINGS[method][reading]
    wanted = wanted if isinstance(wanted, tuple) else (wanted,)
    given = cases(method, arch, settings={"inverse_forward": reading})
    for case, passes in zip(given, wanted, strict=True):
        both = reading == "attached" and not (case.phase and case.phase.name == "after")
        exact = passes * pass_flops(case) - (1 + both) * first_layer(arch)
        assert total_flops(floor_inventory(case)) == exact, case.name


@pytest.mark.parametrize("arch", NETS)
@pytest.mark.parametrize("method", [name for name in methods.names() if name == "gradalign"])
def test_a_double_backward_exactly(method, arch):
    (case,) = cases(method, arch)
    exact = 11 * pass_flops(case) + double_backward_excess(arch) - first_layer(arch)
    assert total_flops(floor_inventory(case)) == round(exact)


def test_what_one_off_costs_on_average():
    case = Case(method="uiat-oneoff")
    floors = FLOORS["uiat-oneoff"]
    assert sum(p.share for p in phases(case)) == pytest.approx(1)
    assert sum(p.share * floors[p.name] for p in phases(case)) == pytest.approx(23.84)
    single = phases(Case(method="uiat-oneoff", epochs=30))
    assert sum(p.share * ONE_OFF[p.name] for p in single) == pytest.approx(0.87, abs=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("method", methods.names())
def test_naive_steps_spend_what_they_say(method):
    arch = "wrn-10-2"
    for case in cases(method, arch):
        expected = BASELINES[method].passes[case.phase.name if case.phase else None]
        F = pass_flops(case)
        excess = double_backward_excess(arch) if method.startswith("gradalign") else 0
        counted = total_flops(naive_inventory(case))
        assert counted == pytest.approx(expected * F + excess, rel=0.015), case.name


def conv(inputs: int, outputs: int, kernel: int, size: int) -> int:
    return 2 * inputs * outputs * kernel**2 * size**2


def resnet18_by_hand() -> int:
    total, inputs = conv(3, 64, 3, 32), 64
    for planes, size in ((64, 32), (128, 16), (256, 8), (512, 4)):
        total += conv(inputs, planes, 3, size) + 3 * conv(planes, planes, 3, size)
        total += conv(inputs, planes, 1, size) if inputs != planes else 0
        inputs = planes
    return total + 2 * 512 * 10


def wrn_by_hand(depth: int, width: int) -> int:
    total, inputs = conv(3, 16, 3, 32), 16
    for planes, size in ((16 * width, 32), (32 * width, 16), (64 * width, 8)):
        total += conv(inputs, planes, 3, size) + conv(inputs, planes, 1, size)
        total += ((depth - 4) // 3 - 1) * conv(planes, planes, 3, size)
        inputs = planes
    return total + 2 * inputs * 10


@pytest.mark.parametrize(
    ("arch", "by_hand", "published"),
    [
        ("resnet-18", resnet18_by_hand(), 1.11),
        ("prn-18", resnet18_by_hand(), 1.11),
        ("wrn-28-10", wrn_by_hand(28, 10), 10.49),
        ("wrn-34-10", wrn_by_hand(34, 10), 13.32),
        ("wrn-16-4", wrn_by_hand(16, 4), None),
    ],
)
def test_forward_flops_by_hand(arch, by_hand, published):
    assert pass_flops(Case(arch=arch, batch_size=3)) == 3 * by_hand
    if published is not None:
        assert round(by_hand / 1e9, 2) == published


def kinds(ops: list[Op]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for op in ops:
        counts[op.kind] = counts.get(op.kind, 0) + 1
    return counts


def test_attacks_compute_no_weight_gradients():
    case = Case(arch="wrn-10-1", method="sat", batch_size=B)
    layers = len(convolutions("wrn-10-1"))
    assert kinds(floor_inventory(case)) == {
        "forward": 11 * layers,
        "input": 10 * layers,
        "both": layers - 1,
        "weights": 1,  # of the first layer
        "matmul": 11 + 10 + 2,
    }


def test_the_trainers_own_step_counts_the_same():
    """The real step, on the CPU, by the trainer: the count on meta is of the same work."""
    case = Case(arch="wrn-10-1", method="uiat", batch_size=4, settings={"attack": {"steps": 2}})
    step = training_step(case, CPU, precision="fp32", compiled=False)
    ops = inventory(step)
    assert total_flops(ops) == total_flops(floor_inventory(case))
    for op in ops:  # and it runs channels-last throughout
        assert all(a.stride[1] == 1 for a in op.args if hasattr(a, "shape") and len(a.shape) == 4)
