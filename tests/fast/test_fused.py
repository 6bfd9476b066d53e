"""A frozen ResNet's blocks in one operator against the net as it is written."""

from __future__ import annotations

import copy
import functools

import pytest
import torch

import fastuiat
from fastuiat.fast import fused
from fastuiat.fast.fused import Fused
from fastuiat.fast.regions import Regions
from fastuiat.fast.view import TrainingView
from fastuiat.models.preact_resnet import PreActResNet18, Variant

CPU = torch.device("cpu")
EAGER = Regions(compiled=False)


NETS = {
    "resnet-18": lambda: fastuiat.build_model("resnet-18"),
    "prn-18": lambda: fastuiat.build_model("prn-18"),
    "BatchNorm in its shortcuts": lambda: PreActResNet18(variant=Variant(shortcut_bn=True)),
}


@functools.cache
def born(name):
    """In fp64, with statistics that are not those it was born with."""
    torch.manual_seed(0)
    net = NETS[name]().double().train()
    with torch.no_grad():
        for _ in range(2):
            net(torch.rand(4, 3, 16, 16).double())
    return net.eval()


@pytest.fixture(scope="module")
def net():
    return born("resnet-18")


def frozen(net):
    twin = copy.deepcopy(net)
    return twin.requires_grad_(False)


def gradient(net, x, out):
    x = x.detach().requires_grad_()
    logits, features = net(x, return_features=True)
    return logits, features, torch.autograd.grad((logits * out).sum() + features.sum(), x)[0]


@pytest.mark.parametrize("name", NETS)
def test_logits_features_and_gradient(name):
    net = born(name)
    blocks = Fused(net, frozen(net), torch.float64)
    blocks.refresh(EAGER)
    g = torch.Generator().manual_seed(1)
    x = torch.rand(3, 3, 24, 16, generator=g).double()
    x = x.to(memory_format=torch.channels_last)
    out = torch.randn(3, 10, generator=g).double()
    for ours, written in zip(gradient(blocks.net, x, out), gradient(net, x, out), strict=True):
        torch.testing.assert_close(ours, written, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["resnet-18", "prn-18"])
def test_a_refresh_follows_weights_and_statistics(name):
    live = copy.deepcopy(born(name))
    blocks = Fused(live, frozen(live), torch.float64)
    with torch.no_grad():
        for name, value in live.state_dict().items():
            if value.is_floating_point() and name.startswith(("layer", "bn.")):
                value.mul_(1.1)
    blocks.refresh(EAGER)
    x = torch.rand(2, 3, 16, 16).double().to(memory_format=torch.channels_last)
    torch.testing.assert_close(blocks.net(x), live(x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["resnet-18", "prn-18"])
def test_which_nets_are_fused(name):
    bf16, cuda = torch.bfloat16, torch.device("cuda")
    relu, silu = (fastuiat.build_model(name, activation=act) for act in ("relu", "silu"))
    assert not fused.wanted(relu, CPU, bf16) and not fused.wanted(relu, cuda, torch.float32)
    with fused.instead(True):
        assert fused.wanted(relu, CPU, bf16) and not fused.wanted(silu, CPU, bf16)
    with fused.instead(False):
        assert not fused.wanted(relu, cuda, bf16)


@pytest.mark.parametrize("name", ["wrn-10-1", "prn-18-v1", "prn-18-v1-bn"])
def test_which_are_not(name):
    """Shortcuts that take a block's input as it is; other widths."""
    with fused.instead(True):
        assert not fused.wanted(fastuiat.build_model(name), CPU, torch.bfloat16)


def test_images_that_cannot_be_halved_so_often(net):
    """28, 14, 7: by the net as it is written."""
    live = copy.deepcopy(net).float()
    with fused.instead(True):
        view = TrainingView(live, device=CPU, precision="fp32", compiled=False)
    x = torch.rand(2, 3, 28, 28).to(memory_format=torch.channels_last)
    with torch.no_grad(), view.frozen() as shadow:
        assert torch.equal(shadow(x), live(x))


def test_eval_mode_alone_goes_by_them(net):
    """Through the view: attacks in eval mode; batch statistics and training as they are written."""
    live = copy.deepcopy(net).float().train()
    with fused.instead(True):
        view = TrainingView(live, device=CPU, precision="fp32", compiled=False)
    x = torch.rand(2, 3, 16, 16).to(memory_format=torch.channels_last)
    calls = []
    with torch.no_grad():
        for bn in ("eval", "batch"):
            with view.frozen(bn) as shadow:
                handle = view.shadow._folded.net.layer1.register_forward_hook(
                    lambda *_, bn=bn: calls.append(bn)
                )
                shadow(x)
                handle.remove()
    assert calls == ["eval"]
    with torch.no_grad():
        view(x)  # moves the running statistics
        with view.frozen() as shadow:
            moved = shadow(x)
        torch.testing.assert_close(moved, copy.deepcopy(live).eval()(x), rtol=1e-4, atol=1e-5)


# --- the step of an attack by its first convolution ---

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))
X = X.to(memory_format=torch.channels_last)
Y = torch.tensor([1, 7])
ATTACK = {"eps": "8/255", "alpha": "2/255", "steps": 2, "noise": 5}


def view_of(net, way, *, compiled=False):
    live = copy.deepcopy(net).float()
    with fused.instead(way):
        view = TrainingView(live, device=CPU, precision="fp32", compiled=compiled)
    view.regions.strict = True
    return view


@pytest.fixture
def steps(monkeypatch):
    """The shapes of the gradients that the stem stepped by."""
    seen, step = [], fused.conv3x3_sign_step

    def noted(x, x_adv, grad, *given, **how):
        seen.append(tuple(grad.shape))
        return step(x, x_adv, grad, *given, **how)

    monkeypatch.setattr(fused, "conv3x3_sign_step", noted)
    return seen


TARGET = torch.softmax(torch.randn(2, 10, generator=torch.Generator().manual_seed(3)), 1)
HOW = {
    "resnet-18": [{}],
    "prn-18": [
        {"loss": "margin", "targeted": True},
        {"loss": "kl", "target_probs": TARGET, "project": False, "start": "normal"},
    ],
}


@pytest.mark.parametrize("name", HOW)
def test_an_attack_is_that_of_the_net_as_it_is_written(name, steps):
    """In either direction, by every loss, zero gradients counted alike."""
    plain, ours = (view_of(born(name), way) for way in (False, True))
    for how in HOW[name]:
        steps.clear()
        expected, actual = (fastuiat.pgd(view, X, Y, **ATTACK | how) for view in (plain, ours))
        assert steps == 2 * [(2, 64, 8, 8)]
        # A sum that is nothing but rounding has the sign of its order.
        assert (expected - actual).abs().gt(1e-6).float().mean() < 2e-3
        assert (expected - X).abs().gt(1e-3).float().mean() > 0.5
        assert plain.gradient_metrics() == ours.gradient_metrics()
    for view in (plain, ours):
        view.net.linear.weight.data.zero_()
        still = fastuiat.pgd(view, X, Y, **ATTACK | {"start": "zero"})
        assert torch.equal(still, X) and view.gradient_metrics()["grad_zero_share"] == 1


def test_the_step_follows_the_first_convolution(net, steps):
    plain, ours = (view_of(net, way) for way in (False, True))
    for view in (plain, ours):
        with torch.no_grad():
            view.net.conv1.weight.copy_(view.net.conv1.weight.flip(2) - 0.1)
        view.refresh()
    expected, actual = (fastuiat.pgd(view, X, Y, **ATTACK) for view in (plain, ours))
    assert len(steps) == 2
    assert (expected - actual).abs().gt(1e-6).float().mean() < 2e-3


def test_other_passes_step_by_the_image_s_gradient(net, steps):
    """On batch statistics, in training mode, of images in another layout or that are not taken;
    then nothing of an attack is changed."""
    plain, ours = (view_of(net, way) for way in (False, True))
    for x, how in (
        (X, {"bn": "batch"}),
        (X, {"bn": "train"}),
        (torch.rand(2, 3, 6, 6).to(memory_format=torch.channels_last), {}),
    ):
        assert torch.equal(*(fastuiat.pgd(view, x, Y, **ATTACK | how) for view in (plain, ours)))
    contiguous = fastuiat.pgd(ours, X.contiguous(), Y, **ATTACK)
    assert steps == [] and contiguous.is_contiguous()
    expected = fastuiat.pgd(ours, X, Y, **ATTACK)
    assert len(steps) == 2
    assert (expected - contiguous).abs().gt(1e-6).float().mean() < 2e-3


def test_the_step_in_one_graph(net, monkeypatch):
    """A region holds the net behind the stem, its gradient and the step."""
    monkeypatch.setattr("fastuiat.fast.regions.BACKEND", "aot_eager")
    eager, compiled = (view_of(net, True, compiled=way) for way in (False, True))
    once = ATTACK | {"steps": 1}
    expected, actual = (fastuiat.pgd(view, X, Y, **once) for view in (eager, compiled))
    assert (expected - actual).abs().gt(1e-6).float().mean() < 2e-3
    assert eager.gradient_metrics() == compiled.gradient_metrics()


def test_folding_on_a_cpu_is_as_it_is_written(net):
    """Compiled for a CPU, it left forward weights in bf16 that were no numbers."""
    net, weights = copy.deepcopy(net).float(), []
    for compiled in (False, True):
        blocks = Fused(net, frozen(net).bfloat16(), torch.bfloat16)
        blocks.refresh(Regions(compiled=compiled))
        weights.append([buffer.clone() for buffer in blocks.parts.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
