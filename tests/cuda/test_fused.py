"""A frozen ResNet's blocks by our own convolutions, on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from test_training import state_of, steps

import fastuiat
from fastuiat.bench.workload import Case, make_step
from fastuiat.convolutions import full_fp32
from fastuiat.fast import fused, recording
from fastuiat.fast.view import TrainingView
from fastuiat.models import build_model

CUDA = torch.device("cuda")


def trained_a_little(arch):
    """A net whose statistics are those of images."""
    torch.manual_seed(0)
    net = build_model(arch).to(CUDA, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9)
    for step in range(30):
        x, y = batch(64, step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net


def batch(size, seed):
    """Images whose brighter half tells their class."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(10, (size,), generator=g)
    x = torch.rand(size, 3, 32, 32, generator=g)
    x[torch.arange(size), y % 3, :, 3 * y.div(3, rounding_mode="floor")] += 1
    return x.clamp(0, 1).to(CUDA, memory_format=torch.channels_last), y.to(CUDA)


def loss_and_gradient(net, x, y):
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        losses = torch.nn.functional.cross_entropy(net(x).float(), y, reduction="none")
        (gradient,) = torch.autograd.grad(losses.sum(), x)
    return losses.detach(), gradient


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("arch", ["resnet-18", "prn-18"])
def test_the_attack_is_weakened_no_more_than_by_half_precision_itself(arch, precision):
    net, (x, y) = trained_a_little(arch), batch(97, 1000)

    def by(precision, way):
        with fused.instead(way):
            view = TrainingView(net, device=CUDA, precision=precision, compiled=False)
        with view.frozen() as frozen:
            return loss_and_gradient(frozen, x, y)

    with full_fp32():
        losses, exact = by("fp32", False)
    (cudnn_losses, cudnn), (ours_losses, ours) = (by(precision, way) for way in (False, True))

    def wrong_signs(gradient):
        return (gradient.sign() != exact.sign()).float().mean().item()

    assert (ours_losses - losses).abs().max() < 2 * (cudnn_losses - losses).abs().max() + 0.02
    assert (ours - exact).norm() < 1.3 * (cudnn - exact).norm()
    assert wrong_signs(ours) < wrong_signs(cudnn) + 0.005


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("arch", ["resnet-18", "prn-18"])
def test_the_first_layer_s_step_is_that_by_the_image_s_gradient(arch, precision):
    """But for sums that are rounding alone, and those that half precision had rounded to zero."""
    net, (x, y) = trained_a_little(arch), batch(97, 1000)

    def attacked(stem):
        with fused.instead(True):
            view = TrainingView(net, device=CUDA, precision=precision, compiled=False)
        if not stem:
            view.shadow.parted = lambda x: (None, view.shadow)
        out = fastuiat.pgd(view, x, y, eps="8/255", alpha="2/255", steps=1, noise=3)
        return out, view.gradient_metrics()

    (ours, counts), (plain, plain_counts) = attacked(True), attacked(False)
    assert (ours - plain).abs().gt(1e-6).float().mean() < 0.005
    assert counts["grad_zero_share"] <= plain_counts["grad_zero_share"]
    assert counts["grad_nonfinite"] <= plain_counts["grad_nonfinite"]


@pytest.mark.parametrize("compiled", [False, True])
def test_steps_repeat_to_the_bit_and_replays_change_none(compiled, monkeypatch):
    case = Case(method="uiat", arch="resnet-18", batch_size=32, epochs=4)

    def run():
        with fused.instead(True):
            step = make_step(case, CUDA, precision="bf16", compiled=compiled)
        return step, steps(step, case, 5)

    first, losses = run()
    second, again = run()
    monkeypatch.setattr(recording, "on_gpu", lambda tensors: False)
    third, plain = run()
    assert losses == again == plain
    for other in (second, third):
        assert all(torch.equal(a, b) for a, b in zip(state_of(first), state_of(other), strict=True))
