"""Learning rate, momentum, decay and BatchNorm's momentum, against PyTorch's and NumPy's own."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastuiat
from fastuiat import methods
from fastuiat.config import OptimizerConfig, UserError
from fastuiat.data import Batch
from fastuiat.training.optim import learning_rate, make_optimizer, momentum, set_for_step
from fastuiat.training.step import TrainingStep

B, K, N = 8, 10, 64
CPU = torch.device("cpu")


def scheduled(scheduler: type, total: int, **settings: Any) -> list[tuple[float, float]]:
    """(learning rate, momentum) of each step under one of PyTorch's schedulers."""
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3, momentum=0.9)
    schedule = scheduler(optimizer, **settings)
    values = []
    for _ in range(total):
        group = optimizer.param_groups[0]
        values.append((group["lr"], group["momentum"]))
        optimizer.step()
        schedule.step()
    return values


def ours(config: OptimizerConfig, total: int) -> list[tuple[float, float]]:
    """What the steps of a run get, through an optimiser's groups."""
    optimizer = make_optimizer(nn.Linear(1, 1), config)
    values = []
    for step in range(total):
        set_for_step(optimizer, config, step, total)
        (group,) = optimizer.param_groups
        values.append((group["lr"], group["momentum"]))
    return values


@pytest.mark.parametrize("total", [8, 37, 400])
@pytest.mark.parametrize("cycled", [False, True])
def test_one_cycle_is_pytorchs(total, cycled):
    wanted = scheduled(
        torch.optim.lr_scheduler.OneCycleLR,
        total,
        max_lr=0.3,
        total_steps=total,
        pct_start=0.25,
        cycle_momentum=cycled,
    )
    got = ours(OptimizerConfig(max_lr=0.3, cycle_momentum=cycled), total)
    np.testing.assert_allclose(got, wanted, rtol=1e-12)
    assert len({m for _, m in got}) > 1 if cycled else {m for _, m in got} == {0.9}
    if cycled:
        assert max(got)[1] == pytest.approx(0.85, abs=2e-3) and got[0][1] == pytest.approx(0.95)


ONE_CYCLE = {
    0: "0x1.0624dd2f1aa00p-8",
    1: "0x1.0625542cefeb0p-8",
    2924: "0x1.999999999999ap-4",
    2925: "0x1.999998bd65956p-4",
    11699: "0x1.ad7f29abcaf49p-22",
}
"""Of 11700 steps with peak 0.1, as they were when there was no other schedule."""


def test_one_cycle_has_the_bits_it_had():
    """So a run that began then goes on as it would have."""
    for step, bits in ONE_CYCLE.items():
        assert learning_rate(OptimizerConfig(), step, 11700).hex() == bits


@pytest.mark.parametrize("share, total", [(0.5, 30), (0.4, 390), (0.5, 7), (1 / 3, 10)])
def test_linear_is_a_broken_line(share, total):
    config = OptimizerConfig(max_lr=0.2, schedule=f"linear:{share!r}")
    got = [learning_rate(config, step, total) for step in range(total)]
    wanted = np.interp(np.arange(total), [0, share * total, total], [0, 0.2, 0])
    np.testing.assert_allclose(got, wanted, rtol=1e-12)
    assert got[0] == 0 and 0 < got[-1] < 0.2
    assert [momentum(config, step, total) for step in range(total)] == [0.9] * total


def test_linear_is_the_schedule_of_the_single_step_papers():
    """CyclicLR from 0 over 0.2 to 0, stepped after each batch."""
    wanted = scheduled(
        torch.optim.lr_scheduler.CyclicLR,
        100,
        base_lr=0.0,
        max_lr=0.2,
        step_size_up=50,
        step_size_down=50,
        cycle_momentum=False,
    )
    config = OptimizerConfig(max_lr=0.2, schedule="linear:0.5", nesterov=False)
    np.testing.assert_allclose(ours(config, 100), wanted, atol=1e-9)


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"schedule": "cosine"}, "unknown schedule 'cosine': choose from one-cycle, linear:SHARE"),
        ({"schedule": "linear:0"}, "the peak's place"),
        ({"schedule": "linear:1"}, "the peak's place"),
        ({"schedule": "linear:x"}, "the peak's place"),
        ({"schedule": "linear:0.5", "cycle_momentum": True}, "goes with --schedule one-cycle"),
        ({"momentum": -0.1}, "--momentum must be in"),
        ({"momentum": 0.0}, "--nesterov needs"),
        ({"batchnorm_momentum": 1.1}, "--batchnorm-momentum must be in"),
        ({"weight_decay": float("nan")}, "--weight-decay"),
        ({"max_lr": 0.0}, "--max-lr must be above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(settings, said):
    with pytest.raises(UserError, match=said):
        OptimizerConfig(**settings)


def test_one_schedule_has_one_name():
    assert OptimizerConfig(schedule="linear:.50") == OptimizerConfig(schedule="linear:0.5")


def moved(net: nn.Module, config: OptimizerConfig) -> list[torch.Tensor]:
    """The parameters after three steps on gradients of 1, as a run makes them."""
    optimizer = make_optimizer(net, config)
    for step in range(3):
        set_for_step(optimizer, config, step, 4)
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    return [p.detach() for p in net.parameters()]


def by_hand(p: torch.Tensor, decay: float, nesterov: bool, config: OptimizerConfig) -> torch.Tensor:
    p, velocity = p.double(), 0.0
    for step in range(3):
        grad = 1 + decay * p
        velocity = grad if step == 0 else config.momentum * velocity + grad
        direction = grad + config.momentum * velocity if nesterov else velocity
        p = p - learning_rate(config, step, 4) * direction
    return p


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("decay_batchnorm", [True, False])
def test_what_is_decayed(nesterov, decay_batchnorm, small_net):
    torch.manual_seed(0)
    net = small_net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.uniform_(0.5, 1.5)
    config = OptimizerConfig(
        nesterov=nesterov, momentum=0.8, weight_decay=0.1, decay_batchnorm=decay_batchnorm
    )
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    after = moved(net, config)
    for (name, p), got in zip(before.items(), after, strict=True):
        spared = not decay_batchnorm and name.startswith("norms.")
        wanted = by_hand(p, 0.0 if spared else 0.1, nesterov, config)
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-6)
    assert sum(name.startswith("norms.") for name in before) == 6


def batch_of(step: int) -> Batch:
    g = torch.Generator().manual_seed(step)
    x = torch.rand(B, 3, 32, 32, generator=g).to(memory_format=torch.channels_last)
    index = torch.arange(step * B, step * B + B) % N
    return Batch(x, index % K, index, 1, step)


def method_of(name: str, small_net: Any) -> Any:
    torch.manual_seed(3)
    helpers = {role: small_net().eval() for role in methods.get(name).requires}
    return methods.create(name, num_classes=K, num_samples=N, epochs=2, helpers=helpers)


def step_of(name: str, small_net: Any, config: OptimizerConfig, **more: Any) -> TrainingStep:
    torch.manual_seed(0)
    more = {"precision": "fp32"} | more
    net = small_net()  # before the method, which sets a seed of its own
    return TrainingStep(net, method_of(name, small_net), total_steps=10, optimizer=config, **more)


def by_the_book(name: str, small_net: Any, steps: int) -> list[nn.Module]:
    """The net after each step of a plain loop in which PyTorch's BatchNorms have momentum 1 in the
    first step and 0.01 in the others."""
    torch.manual_seed(0)
    net, method, states = small_net(), method_of(name, small_net), []
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for step in range(steps):
        for norm in net.norms:
            norm.momentum = 0.01 if step else 1.0
        net.train()
        optimizer.param_groups[0]["lr"] = learning_rate(OptimizerConfig(), step, 10)
        optimizer.zero_grad()
        method.loss(net, batch_of(step)).loss.backward()
        optimizer.step()
        states.append(copy.deepcopy(net))
    return states


TRACKED = OptimizerConfig(batchnorm_momentum=0.01, weight_decay=0.0)


def assert_same_buffers(got: nn.Module, wanted: nn.Module, tolerance: float) -> None:
    for (name, a), b in zip(got.named_buffers(), wanted.buffers(), strict=True):
        if a.is_floating_point():
            assert (a - b).norm() <= tolerance * b.norm(), name
        else:
            assert torch.equal(a, b), name


# Training forwards in a step: one; two; two beside one in eval mode; an attack on batch statistics.
@pytest.mark.parametrize("name", ["natural", "trades", "n-fgsm+uiat", "rebuffi", "hat"])
@pytest.mark.parametrize("compiled", [False, True])
def test_batchnorm_has_momentum_1_in_the_first_step(name, compiled, small_net, counted):
    book = by_the_book(name, small_net, 4)
    step = step_of(name, small_net, TRACKED, compile=compiled)
    for i, wanted in enumerate(book):
        step(batch_of(i))
        assert_same_buffers(step.net, wanted, 1e-6 if i == 0 else 1e-3)
        # The net that HAT asks beside its own is compiled at once.
        assert bool(counted) == (compiled and (i > 0 or name == "hat"))
    norms = [m for m in step.net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.momentum for norm in norms} == {0.01}


def test_the_first_statistics_are_a_batchs(small_net):
    step = step_of("natural", small_net, TRACKED, compile=False)
    first = batch_of(0).x
    with torch.no_grad():
        seen = step.net.convs[0](first)
    norm = step.net.norms[0]
    step(batch_of(0))
    torch.testing.assert_close(norm.running_mean, seen.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(norm.running_var, seen.var(dim=(0, 2, 3)))
    before = norm.running_var.clone()
    step(batch_of(1))
    assert 0 < (norm.running_var - before).norm() < 0.02 * before.norm()
    usual = step_of("natural", small_net, OptimizerConfig(), compile=False)
    usual(batch_of(0))
    mixed = 0.9 + 0.1 * seen.var(dim=(0, 2, 3))
    torch.testing.assert_close(usual.net.norms[0].running_var, mixed)


def test_folded_convolutions_see_the_first_statistics(small_net, counted):
    """In bf16 the attack runs on folded weights: they are of the statistics as they are."""
    step = step_of("n-fgsm+uiat", small_net, TRACKED, compile=True, precision="bf16")
    assert step.view.shadow._folded is not None
    for i in range(3):
        step(batch_of(i))
        step.view.refresh()
        with step.view.frozen() as net, torch.no_grad():
            got = net(batch_of(9).x).float()
            wanted = step.net.eval()(batch_of(9).x)
        assert (got - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_restored_run_ends_in_the_same_bits(after, small_net):
    config = OptimizerConfig(
        batchnorm_momentum=0.05, decay_batchnorm=False, cycle_momentum=True, nesterov=False
    )
    whole = step_of("n-fgsm+uiat", small_net, config, compile=False)
    broken = step_of("n-fgsm+uiat", small_net, config, compile=False)
    for i in range(5):
        whole(batch_of(i))
        if i == after:
            state = copy.deepcopy(broken.state_dict())
            broken = step_of("n-fgsm+uiat", small_net, config, compile=False)
            broken.load_state_dict(state)
        broken(batch_of(i))
    ours, theirs = whole.state_dict(), broken.state_dict()
    for name in ("model", "method"):
        for key, value in ours[name].items():
            assert torch.equal(value, theirs[name][key]), key
    momenta = [s["momentum_buffer"] for s in ours["optimizer"]["state"].values()]
    assert momenta and all(
        torch.equal(a, s["momentum_buffer"])
        for a, s in zip(momenta, theirs["optimizer"]["state"].values(), strict=True)
    )


def test_it_is_public():
    assert fastuiat.OptimizerConfig is OptimizerConfig
