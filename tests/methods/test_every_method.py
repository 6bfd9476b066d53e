"""What every registered method owes: no host sync, state in the state dict, pass counts' seams."""

from __future__ import annotations

import copy

import pytest
import torch

import fastuiat
from fastuiat import methods
from fastuiat.config import UserError
from fastuiat.data import Batch


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.names())
def test_one_step_on_meta(name):
    """No tensor is made on the wrong device, and nothing asks the device for a value."""
    net = fastuiat.build_model("wrn-10-1").to("meta").train()
    helpers = {role: copy.deepcopy(net) for role in methods.get(name).requires}
    method = methods.create(name, num_classes=10, num_samples=64, epochs=5, helpers=helpers)
    method.to("meta")
    for epoch in range(1, 6):
        x = torch.empty(4, 3, 32, 32, device="meta").to(memory_format=torch.channels_last)
        index = torch.arange(4, device="meta")
        out = method.loss(net, Batch(x, index, index, epoch, 0))
        out.loss.backward()
        assert out.loss.device.type == "meta" and out.loss.shape == ()


@pytest.mark.parametrize("name", methods.names())
def test_state_travels_in_the_state_dict(name, create, make_net, make_batch):
    a, b = (create(name, epochs=2, seed=s) for s in (0, 1))
    net = make_net(torch.float32)
    for epoch in (1, 2):
        a.loss(net, make_batch(torch.float32, epoch))
    b.load_state_dict(a.state_dict())
    later = make_batch(torch.float32, 2, shift=4)
    twin = copy.deepcopy(net)
    assert a.loss(net, later).loss.item() == b.loss(twin, later).loss.item()


@pytest.mark.parametrize("name", methods.names())
def test_weights_and_mode_are_left_alone(name, create, make_net, make_batch):
    """Only running statistics move; every parameter gets a gradient, and stays trainable."""
    net = make_net(torch.float32)
    before = copy.deepcopy(net)
    method = create(name)
    helpers = {role: copy.deepcopy(helper) for role, helper in method.helpers.items()}
    method.loss(net, make_batch(torch.float32)).loss.backward()
    assert all(module.training for module in net.modules())
    for parameter, old in zip(net.parameters(), before.parameters(), strict=True):
        assert parameter.requires_grad and torch.equal(parameter, old)
        assert parameter.grad is not None and parameter.grad.isfinite().all()
    for role, helper in method.helpers.items():
        for now, old in zip(
            helper.state_dict().values(), helpers[role].state_dict().values(), strict=True
        ):
            assert torch.equal(now, old)


@pytest.mark.parametrize("name", methods.names())
def test_copies_do_not_share_state(name, create, make_net, make_batch):
    """Benchmarks and warm-ups advance a copy."""
    method = create(name, epochs=1)
    before = copy.deepcopy(method.state_dict())
    copy.deepcopy(method).loss(make_net(torch.float32), make_batch(torch.float32))
    for key, value in method.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_unknown_settings_are_named():
    for name, config in [
        ("trades", {"gamma": 1}),
        ("rs-fgsm", {"attack": {"steps": 2}}),
        ("gradalign", {"attack": {"start": "uniform"}}),
        ("sat", {"helpers": {"helper": None}}),
        ("hat", {"label_smoothing": 1.0}),
        ("iat", {"inverse_steps": 0}),
        ("gradalign+uiat", {"mu": -1.0}),
        ("n-fgsm+uiat", {"oneoff_epoch": 101}),
        ("mart", {"beta": float("nan")}),
    ]:
        with pytest.raises(UserError):
            methods.create(name, num_classes=10, num_samples=8, **config)


def test_a_missing_helper_is_named(make_net, make_batch):
    method = methods.create("hat", num_classes=5, num_samples=24)
    with pytest.raises(UserError, match="natural"):
        method.loss(make_net(torch.float32), make_batch(torch.float32))
