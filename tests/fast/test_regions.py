"""The compiled regions: the same numbers as eager, each compiled once, whatever the run does."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch

import fastuiat
from fastuiat import methods
from fastuiat.attacks import pgd
from fastuiat.config import OptimizerConfig
from fastuiat.data import Batch
from fastuiat.fast import recording
from fastuiat.fast.recording import leaves_of
from fastuiat.fast.view import TrainingView
from fastuiat.methods.natural import cross_entropy_loss
from fastuiat.training.optim import make_optimizer

CPU = torch.device("cpu")
B, K = 6, 10


def net_with_history(activation: str = "relu") -> torch.nn.Module:
    """A net whose running statistics are not those it was born with."""
    torch.manual_seed(0)
    net = fastuiat.build_model("wrn-10-1", activation=activation).train()
    with torch.no_grad():
        for _ in range(3):
            net(images(1))
    return net


def images(seed: int, count: int = B) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, 32, 32, generator=g).to(memory_format=torch.channels_last)


def labels(count: int = B) -> torch.Tensor:
    return torch.arange(count) % K


def view_of(net, compiled, precision="fp32"):
    return TrainingView(net, device=CPU, precision=precision, compiled=compiled)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["ce", "margin"])
def test_compiled_attack_is_eager_bit_for_bit(loss):
    net = net_with_history()
    x, y = images(2), labels()
    outcomes = [
        pgd(model, x, y, eps=8 / 255, alpha=2 / 255, steps=5, loss=loss)
        for model in (net, view_of(net, False), view_of(net, True))
    ]
    assert torch.equal(outcomes[0], outcomes[1])
    assert torch.equal(outcomes[0], outcomes[2])


@pytest.mark.slow
def test_compiled_kl_attack_takes_the_steps_of_eager():
    """q − p cancels near x, so here and there a sign is one of rounding: one step, not all bits."""
    net = net_with_history()
    x, y = images(2), labels()
    probs = torch.softmax(net.eval()(x), dim=1).detach()
    settings = {"eps": 8 / 255, "alpha": 2 / 255, "steps": 1, "loss": "kl", "target_probs": probs}
    eager = pgd(net, x, y, **settings)
    assert torch.equal(pgd(view_of(net, False), x, y, **settings), eager)
    assert (pgd(view_of(net, True), x, y, **settings) == eager).float().mean() > 0.9999


def relative(a, b):
    distance = sum((p.double() - q.double()).square().sum() for p, q in zip(a, b, strict=True))
    size = sum(q.double().square().sum() for q in b)
    return (distance / size).sqrt().item()


@pytest.mark.slow
def test_one_training_step_agrees_with_eager():
    """SiLU: a rounding difference that flips one ReLU moves a gradient by more than rounding."""
    net = net_with_history("silu")
    twin = copy.deepcopy(net)
    x, y = images(3, 32), labels(32)
    eager, logits = view_of(net, False).training_region(cross_entropy_loss)(x, y)
    compiled, same_logits = view_of(twin, True).training_region(cross_entropy_loss)(x, y)
    assert not same_logits.requires_grad
    assert compiled.item() == pytest.approx(eager.item(), abs=1e-6)
    eager.backward()
    compiled.backward()
    wanted, got = ([p.grad for p in n.parameters()] for n in (net, twin))
    assert relative(got, wanted) < 1e-4
    assert all(g.stride() == p.stride() for g, p in zip(got, twin.parameters(), strict=True))
    for (name, a), b in zip(net.named_buffers(), twin.buffers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6), name
    torch.testing.assert_close(same_logits, logits.detach(), rtol=1e-4, atol=1e-5)
    with pytest.raises(RuntimeError, match="handed out before"):
        compiled.backward()


@pytest.mark.slow
def test_gradients_accumulate_and_follow_the_factor_and_the_scale(counted):
    net = net_with_history("silu")
    view = view_of(net, True)
    x, y = images(4), labels()
    region = view.training_region(cross_entropy_loss)
    region(x, y)[0].backward()
    once = [p.grad.clone() for p in net.parameters()]
    (3 * region(x, y)[0]).backward()
    for p, g in zip(net.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 4 * g, rtol=1e-4, atol=1e-6)
        p.grad = None
    # As under a GradScaler: the region runs at the scale, and the loss is scaled by it once more.
    view.loss_scale = torch.tensor(1024.0)
    loss, _ = region(x, y)
    (loss * view.loss_scale).backward()
    for p, g in zip(net.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 1024 * g, rtol=1e-4, atol=1e-3)


def aligned(net, x, x_noisy, y):
    """A loss with a gradient inside, as GradAlign's."""
    inner = torch.nn.functional.cross_entropy(net(x_noisy), y, reduction="sum")
    (grad,) = torch.autograd.grad(inner, x_noisy, create_graph=True)
    return torch.nn.functional.cross_entropy(net(x), y) + grad.square().sum(), grad


@pytest.mark.slow
def test_a_double_backward_stays_inside_the_region(counted):
    net = net_with_history("silu")
    twin = copy.deepcopy(net)
    for n, compiled in ((net, False), (twin, True)):
        noisy = images(6).requires_grad_()
        loss, grad = view_of(n, compiled).training_region(aligned)(images(5), noisy, labels())
        assert not grad.requires_grad
        loss.backward()
    assert len(counted) == 1
    assert relative([p.grad for p in twin.parameters()], [p.grad for p in net.parameters()]) < 1e-4


def batch_of(epoch: int, step: int, first: int) -> Batch:
    index = torch.arange(first, first + B)
    return Batch(images(100 * epoch + step), labels(), index, epoch, step)


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.names())
def test_each_region_compiles_once(name, counted, small_net):
    """Over epochs, an evaluation between them, and a state loaded; the one-off epoch T' apart."""
    net = small_net()
    view = view_of(net, True)
    helpers = {role: small_net() for role in methods.get(name).requires}
    method = methods.create(name, num_classes=K, num_samples=8 * B, epochs=5, helpers=helpers)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    graphs_after = []
    for epoch, step in itertools.product(range(1, 6), range(2)):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 / (1 + epoch + step)
        net.train()
        out = method.loss(view, batch_of(epoch, step, first=(epoch + step) * B // 2))
        optimizer.zero_grad(set_to_none=True)
        out.loss.backward()
        optimizer.step()
        view.refresh()
        if step == 1:
            net.eval()
            pgd(net, images(1), labels(), eps=8 / 255, alpha=2 / 255, steps=2)
            net.load_state_dict(copy.deepcopy(net.state_dict()))
            method.load_state_dict(copy.deepcopy(method.state_dict()))
            graphs_after.append(len(counted))
    assert graphs_after[0] == graphs_after[2]
    assert graphs_after[3] - graphs_after[2] <= 1  # T' of 5 epochs is 4: the inverse gradient
    assert graphs_after[4] == graphs_after[3]
    assert 1 <= graphs_after[4] <= 5


def train(view, seed: int, x, y, steps: int = 50) -> tuple[float, float]:
    """Loss over the last ten of 50 UIAT steps, and the accuracy afterwards."""
    net = view.net.train()
    config = {"attack": {"steps": 3}, "lam": 1.0, "momentum_epoch": 1}
    method = methods.create("uiat", num_classes=K, num_samples=len(x), seed=seed, **config)
    optimizer = make_optimizer(net, OptimizerConfig(max_lr=0.05))
    losses = []
    for step in range(steps):
        rows = torch.randperm(len(x))[:64]
        batch = Batch(x[rows], y[rows], rows, 1, step, seed)
        out = method.loss(view, batch)
        optimizer.zero_grad(set_to_none=True)
        out.loss.backward()
        optimizer.step()
        view.refresh()
        losses.append(out.loss.item())
    with torch.no_grad():
        accuracy = (net.eval()(x).argmax(dim=1) == y).float().mean().item()
    return sum(losses[-10:]) / 10, accuracy


@pytest.mark.slow
def test_fifty_steps_end_inside_the_spread_of_the_seeds(small_net, digits):
    outcomes = []
    for compiled in (False, True):
        view = view_of(small_net(), compiled)
        for seed in range(3):
            torch.manual_seed(seed)
            view.net.load_state_dict(small_net().state_dict())
            outcomes.append(train(view, seed, *digits))
    eager, compiled = torch.tensor(outcomes).split(3)
    assert (eager[:, 1] > 0.5).all()
    mean = compiled.mean(dim=0)
    assert (eager.amin(dim=0) <= mean).all() and (mean <= eager.amax(dim=0)).all()


class Tape:
    """Stands for CUDA's recorder: recording leaves nothing behind, each replay does the work."""

    def __init__(self, net):
        self.net, self.recorded = net, 0

    def __call__(self, work):
        self.recorded += 1
        before = copy.deepcopy(self.net.state_dict())
        results = work()
        self.net.load_state_dict(before)

        def replay():
            with torch.enable_grad():
                new = work()
            for old, value in zip(leaves_of(results), leaves_of(new), strict=True):
                if isinstance(old, torch.Tensor):
                    old.copy_(value)

        return results, replay


def test_regions_that_are_not_compiled_are_replayed_all_the_same(monkeypatch):
    """As on a GPU: the steps of an eager view to the bit, BatchNorm's statistics included."""
    monkeypatch.setattr(recording, "on_gpu", lambda tensors: True)

    def trained(replayed):
        view = view_of(net_with_history(), False)
        view.regions.replayed, view.regions._record = replayed, Tape(view.net)
        method = methods.create("sat", num_classes=K, num_samples=B, attack={"steps": 2})
        optimizer = make_optimizer(view.net, OptimizerConfig())
        for step in range(4):
            out = method.loss(view, Batch(images(step), labels(), torch.arange(B), 1, step))
            optimizer.zero_grad(set_to_none=True)
            out.loss.backward()
            optimizer.step()
            view.refresh()
        return view

    plain, replayed = trained(False), trained(True)
    assert replayed.regions._record.recorded == 2 and plain.regions._record.recorded == 0
    for name, value in plain.net.state_dict().items():
        assert torch.equal(value, replayed.net.state_dict()[name]), name
