"""A frozen ResNet's blocks in one operator against the net as it is written."""

from __future__ import annotations

import copy

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
    live = born(name)
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
