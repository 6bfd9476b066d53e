"""Any classifier is a net: torchvision's, timm's, frozen in part, of layers of its own."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fastuiat
from fastuiat import methods
from fastuiat.config import UserError
from fastuiat.network import batchnorm_mode, frozen
from fastuiat.training.step import TrainingStep

sys.path.insert(0, str(Path(__file__).parent))
from library_steps import (
    ONE_STEP,
    K,
    images,
    losses_of,
    method_of,
    natural_step,
    resnet,
    timm_resnet,
    timm_vit,
)


@pytest.mark.parametrize("name", methods.names())
def test_other_peoples_nets_train_with_every_method(name):
    torch.manual_seed(0)
    net = timm_resnet()
    step = TrainingStep(
        net, method_of(name, timm_resnet), total_steps=4, precision="bf16", compile=False
    )
    before = [p.detach().clone() for p in net.parameters()]
    assert all(loss == loss for loss in losses_of(step))
    moved = [bool((p != q).any()) for p, q in zip(net.parameters(), before, strict=True)]
    assert all(moved)


@pytest.mark.slow
@pytest.mark.parametrize("make", [resnet, timm_resnet, timm_vit])
@pytest.mark.parametrize("name", ["uiat", "gradalign+uiat", "rebuffi"])
def test_other_peoples_nets_compile_to_what_they_are(make, name, counted):
    """GradAlign among them, which differentiates a net with attention twice."""

    def losses(compiled: bool) -> list[float]:
        torch.manual_seed(0)
        net = make()
        settings = ONE_STEP if name == "uiat" else {}
        method = method_of(name, make, **settings)
        step = TrainingStep(net, method, total_steps=4, precision="fp32", compile=compiled)
        return losses_of(step)

    eager = losses(False)
    assert not counted
    assert losses(True) == pytest.approx(eager, rel=1e-4)
    assert counted


@pytest.mark.slow
def test_dropout_compiled_by_inductor_is_a_function_of_seed_and_step():
    """A step that is loaded draws what the other would have drawn, whatever was drawn between."""

    def made() -> TrainingStep:
        torch.manual_seed(0)
        net = timm_vit()
        return TrainingStep(
            net, method_of("natural"), total_steps=6, precision="fp32", compile=True
        )

    whole = made()
    losses_of(whole, (1, 1))
    state = copy.deepcopy(whole.state_dict())
    rest = losses_of(whole, (1, 2))
    other = made()
    other.load_state_dict(state)
    torch.rand(1000)
    assert losses_of(other, (1, 2)) == rest
    again = made()
    again.load_state_dict(state | {"step": 3})
    assert losses_of(again, (1, 2)) != rest, "else no dropout was drawn"


def test_the_generator_of_the_caller_is_left_alone():
    step = TrainingStep(
        timm_resnet(), method_of("natural"), total_steps=2, precision="fp32", compile=False
    )
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    losses_of(step, (1,))
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_frozen_or_unused_stays(compiled, counted):
    class Partly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem = nn.Conv2d(3, 8, 3, stride=4)
            self.norm = nn.BatchNorm2d(8)
            self.unused = nn.Linear(8, 8)
            self.head = nn.Linear(8, K)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(self.norm(self.stem(x))).mean(dim=(2, 3)))

    net = Partly()
    net.stem.requires_grad_(False)
    net.norm.eval()
    before = copy.deepcopy(net.state_dict())
    step = TrainingStep(
        net,
        method_of("uiat", inverse_forward="train", **ONE_STEP),
        total_steps=4,
        precision="fp32",
        compile=compiled,
    )
    losses_of(step)
    assert bool(counted) == compiled
    after = net.state_dict()
    same = {name for name in before if torch.equal(before[name], after[name])}
    trained = {"norm.weight", "norm.bias", "head.weight", "head.bias"}
    assert same == set(before) - trained, "unused: no gradient, and so no weight decay either"
    assert net.training and not net.norm.training and not net.stem.weight.requires_grad


def test_features_are_asked_for_where_the_method_uses_them():
    class NoLinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(3, K, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x).mean(dim=(2, 3))

    with pytest.raises(UserError, match="has no linear layer"):
        TrainingStep(NoLinear(), method_of("uiat"), total_steps=1, compile=False)
    step = TrainingStep(
        NoLinear(), method_of("uiat", beta=0.0, **ONE_STEP), total_steps=1, compile=False
    )
    losses_of(step, (1,))


def test_features_by_the_hook_are_those_that_a_net_offers():
    torch.manual_seed(0)
    net = fastuiat.build_model("wrn-10-1").eval()

    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    x = images()[0]
    with torch.no_grad(), frozen(net) as own, frozen(Silent()) as hooked:
        for a, b in zip(own.with_features(x), hooked.with_features(x), strict=True):
            assert torch.equal(a, b)
    assert not any(module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("mode", ["eval", "batch", "train"])
def test_modes_come_back_module_by_module(mode):
    net = resnet().train()
    net.bn1.eval()
    flags = [module.training for module in net.modules()]
    with batchnorm_mode(net, mode):
        assert net.training == (mode != "eval") and not net.bn1.training
    assert [module.training for module in net.modules()] == flags


class Unused(nn.Module):
    """A linear layer that is registered last and never called."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.auxiliary = nn.Linear(3, K), nn.Linear(3, K)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(input=x.mean(dim=(2, 3)))


def test_a_last_layer_that_is_not_called():
    losses_of(natural_step(Unused()), (1,))
    step = TrainingStep(
        Unused(), method_of("uiat", beta=0.0, **ONE_STEP), total_steps=1, compile=False
    )
    losses_of(step, (1,))
    step = TrainingStep(Unused(), method_of("uiat", **ONE_STEP), total_steps=1, compile=False)
    with pytest.raises(UserError, match="takes no part in its forward"):
        losses_of(step, (1,))


class Standardised(nn.Conv2d):
    """Arithmetic on the weights: in bf16 it would be other arithmetic than that of training."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.weight.dtype == torch.float32
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


def test_layers_derived_from_known_ones_keep_their_weights():
    net = nn.Sequential(Standardised(3, 6, 3), nn.Flatten(), nn.Linear(6 * 900, K))
    step = TrainingStep(
        net, method_of("sat", **ONE_STEP), total_steps=1, precision="bf16", compile=False
    )
    (loss,) = losses_of(step, (1,))
    assert loss == loss and step.taken == 1


def test_gradients_of_what_the_optimizer_does_not_hold_do_not_pile_up():
    net = Unused()
    net.body = nn.Linear(1, 1)
    held = torch.optim.SGD(net.head.parameters(), lr=0.0)
    net.forward = lambda x: net.head(x.mean(dim=(2, 3)) * net.body.weight.sum())  # type: ignore
    step = natural_step(net, optimizer=held)
    sizes = []
    for _ in range(2):
        step(*images(1), epoch=1)
        sizes.append(net.body.weight.grad.clone())
    assert torch.equal(*sizes)


@pytest.mark.parametrize(
    "net, said",
    [
        (nn.Flatten(), "has no parameter that takes a gradient"),
        (Unused().requires_grad_(False), "has no parameter that takes a gradient"),
        (Unused().bfloat16(), "give it in fp32"),
    ],
)
def test_nets_that_cannot_be_trained_are_refused(net, said):
    with pytest.raises(UserError, match=said):
        natural_step(net)
