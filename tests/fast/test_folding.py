"""A folded net is the net in eval mode, at the statistics that it has just then."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastuiat.fast.folding import Folded, Shift, foldable
from fastuiat.fast.regions import Regions
from fastuiat.fast.view import TrainingView
from fastuiat.models import build_model
from fastuiat.network import frozen

ARCHS = ("resnet-18", "prn-18", "prn-18-v1", "prn-18-v1-bn", "wrn-16-2", "dm-prn-18", "dm-wrn-16-2")


def unsettle(net: nn.Module) -> None:
    """BatchNorms with factors, shifts and statistics unlike those of a fresh net."""
    generator = torch.Generator().manual_seed(1)
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d):
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                assert tensor is not None
                tensor.detach().uniform_(0.5, 1.5, generator=generator)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_the_folded_net_is_the_net(arch: str, activation: str) -> None:
    torch.manual_seed(0)
    live = build_model(arch, activation=activation).double().eval()
    twin = copy.deepcopy(live).requires_grad_(False)
    folded = Folded(live, twin)
    unsettle(live)
    twin.load_state_dict(live.state_dict())
    folded.refresh(Regions(compiled=False))
    x = torch.rand(4, 3, 32, 32, dtype=torch.float64, requires_grad=True)

    def answers(net: nn.Module) -> tuple[torch.Tensor, ...]:
        logits, features = net(x, return_features=True)
        loss = logits.square().sum() + features.square().sum()
        return logits.detach(), features.detach(), *torch.autograd.grad(loss, x)

    for left, right in zip(answers(live), answers(folded.net), strict=True):
        assert (left - right).abs().max() < 1e-10 * left.abs().max()


@pytest.mark.parametrize(
    ("arch", "count"),
    # resnet-18: its 20 convolutions. The others normalise first: one convolution of each block
    # stands before a BatchNorm, and the stem where the first block's shortcut is normalised too.
    [("resnet-18", 20), ("prn-18", 8), ("wrn-16-2", 7)],
)
def test_what_can_be_folded(arch: str, count: int) -> None:
    live = build_model(arch)
    assert len(foldable(live)) == count
    folded = Folded(live, copy.deepcopy(live))
    assert sum(isinstance(m, Shift) for m in folded.net.modules()) == count


def test_weights_that_are_not_folded_are_shared() -> None:
    live = build_model("wrn-10-1")
    twin = copy.deepcopy(live)
    folded = Folded(live, twin)
    mine, theirs = dict(folded.net.named_parameters()), dict(twin.named_parameters())
    convs = {f"{conv}.weight" for conv, _ in foldable(live)}
    assert {name for name in mine if mine[name] is not theirs[name]} == convs


@pytest.mark.parametrize("how", ["training forward", "training region", "train mode", "refresh"])
def test_every_change_of_the_statistics_reaches_it(how: str) -> None:
    torch.manual_seed(0)
    net = build_model("wrn-10-1").train()
    view = TrainingView(net, device=torch.device("cpu"), precision="bf16", compiled=True)
    view.regions.compiled = False  # what is folded is decided; nothing need be compiled
    x = torch.rand(8, 3, 32, 32)

    def logits() -> torch.Tensor:
        with frozen(view) as shadow, torch.no_grad():
            return shadow(x).float()

    before = logits()
    if how == "training forward":
        view(x + 3)
    elif how == "training region":
        view.training_region(lambda net, x: (net(x).sum(),))(x + 3)
    elif how == "train mode":
        with frozen(view, "train") as shadow:
            shadow(x + 3)
    else:
        unsettle(net)
        view.refresh()
    after = logits()
    assert (after - before).abs().max() > 0.1 * before.abs().max()
    expected = net.eval()(x)
    assert (after - expected).abs().max() < 0.03 * expected.abs().max()
