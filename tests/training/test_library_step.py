"""TrainingStep in a loop of one's own: the numbers of `fastuiat train`, and any classifier."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastuiat
from fastuiat import data, methods
from fastuiat.config import OptimizerConfig, UserError
from fastuiat.network import batchnorm_mode, frozen
from fastuiat.training import run
from fastuiat.training.config import TrainConfig
from fastuiat.training.step import TrainingStep

B, K, N = 8, 10, 64
ONE_STEP = {"attack": {"steps": 1}}


def method_of(name: str, net: Any = lambda: fastuiat.build_model("wrn-10-1"), **settings: Any):
    helpers = {role: net().eval() for role in methods.get(name).requires}
    return methods.create(name, num_classes=K, num_samples=N, epochs=4, helpers=helpers, **settings)


def images(step: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(step)
    index = torch.randperm(N, generator=g)[:B]
    return torch.rand(B, 3, 32, 32, generator=g), index % K, index


def losses_of(step: TrainingStep, epochs: range | tuple[int, ...] = range(1, 5)) -> list[float]:
    return [step(*images(epoch), epoch=epoch).loss.item() for epoch in epochs]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uiat", "rs-fgsm", "rebuffi"])
def test_a_loop_of_ones_own_is_the_run_of_the_command(name, tmp_path):
    """Bit for bit: two epochs of digits, with averaged weights, by the same loader."""
    config = TrainConfig(
        method=name,
        settings=methods.configure(methods.get(name).Config, {} if name == "rs-fgsm" else ONE_STEP),
        dataset="digits",
        arch="wrn-10-1",
        epochs=2,
        batch_size=256,
        val_size=64,
        log_every=1,
        weight_averaging=0.9,
        precision="fp32",
        compile=False,
        device="cpu",
        loader="resident",
        out=tmp_path / "run",
    )
    run.train(config)
    lines = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    logged = [line["loss"] for line in lines if line["kind"] == "train"]

    pixels, labels, order, _ = run.training_data(config)
    torch.manual_seed(config.seed)
    net = fastuiat.build_model("wrn-10-1")
    method = methods.create(
        name,
        num_classes=K,
        num_samples=len(labels),
        epochs=2,
        **({} if name == "rs-fgsm" else ONE_STEP),
    )
    step = TrainingStep(
        net,
        method,
        total_steps=len(logged),
        weight_averaging=0.9,
        precision="fp32",
        compile=False,
    )
    loader = data.ResidentLoader(pixels, labels, order, device=torch.device("cpu"), flip=False)
    own = [
        step(batch.x, batch.y, batch.index, epoch=epoch).loss.item()
        for epoch in (1, 2)
        for batch in loader.epoch(epoch)
    ]
    assert own == logged and len(own) == 2 * order.steps_per_epoch
    last = torch.load(tmp_path / "run" / "checkpoints" / "last.pt", weights_only=True)
    for key, ours in (("model", step.net), ("averaged", step.averaged), ("method", step.method)):
        for tensor_name, value in ours.state_dict().items():
            assert torch.equal(value, last[key][tensor_name]), (key, tensor_name)


@pytest.mark.parametrize("name", ["uiat", "uiat-oneoff", "hat"])
def test_a_loaded_state_goes_on_to_the_bit(name):
    helpers = {role: fastuiat.build_model("wrn-10-1") for role in methods.get(name).requires}
    settings = ONE_STEP if name == "hat" else ONE_STEP | {"beta": 0.0}

    def made() -> TrainingStep:
        method = method_of(name, **settings)
        method.helpers.update(copy.deepcopy(helpers))
        return TrainingStep(
            fastuiat.build_model("wrn-10-1"),  # other weights at each call
            method,
            total_steps=6,
            weight_averaging=0.9,
            precision="fp32",
            compile=False,
        )

    whole, other = made(), made()
    losses_of(whole, (1, 1, 3))  # stopped inside epoch 3
    state = copy.deepcopy(whole.state_dict())
    rest = losses_of(whole, (3, 4))
    other.load_state_dict(state)
    assert losses_of(other, (3, 4)) == rest
    for a, b in zip(other.net.state_dict().values(), whole.net.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_an_optimizer_of_ones_own_is_taken_as_it_is():
    """Two steps of it by hand, on natural training: no schedule, no decay of ours."""
    torch.manual_seed(0)
    net = fastuiat.build_model("wrn-10-1")
    twin = copy.deepcopy(net).train()
    own = torch.optim.Adam(net.parameters(), lr=1e-3)
    by_hand = torch.optim.Adam(twin.parameters(), lr=1e-3)
    step = TrainingStep(
        net, method_of("natural"), total_steps=2, optimizer=own, precision="fp32", compile=False
    )
    for epoch in (1, 2):
        x, y, index = images(epoch)
        step(x, y, index, epoch=epoch)
        by_hand.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        by_hand.step()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert own.param_groups[0]["lr"] == 1e-3
    with pytest.raises(UserError, match="made for 2 steps"):
        step(*images(), epoch=3)


def resnet() -> nn.Module:
    return torchvision.models.resnet18(num_classes=K)


def timm_resnet() -> nn.Module:
    net: nn.Module = timm.create_model("test_resnet", num_classes=K, drop_rate=0.2)
    return net


def timm_vit() -> nn.Module:
    """With LayerNorm, dropout and stochastic depth."""
    net: nn.Module = timm.create_model(
        "test_vit", num_classes=K, img_size=32, drop_rate=0.2, drop_path_rate=0.2
    )
    return net


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
    # PyTorch's fast attention cannot be differentiated twice, as GradAlign does.
    twice = name.startswith("gradalign") and make is timm_vit
    attention = sdpa_kernel(SDPBackend.MATH) if twice else contextlib.nullcontext()

    def losses(compiled: bool) -> list[float]:
        torch.manual_seed(0)
        net = make()
        settings = ONE_STEP if name == "uiat" else {}
        method = method_of(name, make, **settings)
        step = TrainingStep(net, method, total_steps=4, precision="fp32", compile=compiled)
        return losses_of(step)

    with attention:
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


@pytest.mark.parametrize(
    "arguments, said",
    [
        ((torch.zeros(B, 3, 32, 32, dtype=torch.uint8), *images()[1:]), "must be float"),
        ((torch.zeros(B, 32, 32), *images()[1:]), "must be float"),
        ((images()[0], images()[1].float(), images()[2]), "y must be int64"),
        ((images()[0], images()[1], images()[2][:2]), "index must be int64"),
        ((images()[0],), "give a Batch, or x, y, index and epoch"),
    ],
)
def test_bad_batches_are_named(arguments, said):
    step = TrainingStep(
        fastuiat.build_model("wrn-10-1"), method_of("natural"), total_steps=1, compile=False
    )
    with pytest.raises(ValueError, match=said):
        step(*arguments, epoch=1)
    with pytest.raises(ValueError, match="epochs count from 1"):
        step(*images(), epoch=0)


def test_without_a_compiler_it_is_eager_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr("fastuiat.training.step.missing_for_compilation", lambda _: "no compiler")
    with caplog.at_level(logging.WARNING, "fastuiat"):
        step = TrainingStep(fastuiat.build_model("wrn-10-1"), method_of("natural"), total_steps=1)
    (said,) = [r.getMessage() for r in caplog.records if r.name.startswith("fastuiat")]
    assert said == "not compiling: no compiler" and not step.compiled
    losses_of(step, (1,))


def test_settings_of_the_optimizer_reach_it():
    step = TrainingStep(
        fastuiat.build_model("wrn-10-1"),
        method_of("natural"),
        total_steps=4,
        optimizer=OptimizerConfig(max_lr=0.4, schedule="linear:0.5", momentum=0.5, nesterov=False),
        compile=False,
    )
    losses_of(step, (1, 1))
    (group,) = step.optimizer.param_groups
    assert group["lr"] == pytest.approx(0.2) and group["momentum"] == 0.5


def natural_step(net: nn.Module, **more: Any) -> TrainingStep:
    settings = {"total_steps": 4, "precision": "fp32", "compile": False} | more
    return TrainingStep(net, method_of("natural"), **settings)


@pytest.mark.parametrize("fused", [True, False])
def test_momenta_follow_the_layout_of_their_weights(fused):
    """An optimizer that has stepped on an NCHW net, which becomes channels-last."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(6 * 900, K))
    nets = plain, copy.deepcopy(plain)
    optimizers = [torch.optim.SGD(n.parameters(), lr=0.1, momentum=0.9, fused=fused) for n in nets]
    for net, optimizer in zip(nets, optimizers, strict=True):
        F.cross_entropy(net(images(9)[0]), images(9)[1]).backward()
        optimizer.step()
    step = natural_step(nets[0], optimizer=optimizers[0])
    x, y, index = images(1)
    step(x, y, index, epoch=1)
    optimizers[1].zero_grad()
    F.cross_entropy(nets[1](x), y).backward()
    optimizers[1].step()
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_an_evaluation_between_steps_unfreezes_nothing():
    net = timm_resnet()
    norm = next(m for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    norm.eval()
    step = natural_step(net)
    losses_of(step, (1,))
    net.eval()
    losses_of(step, (2,))
    assert net.training and not norm.training


def test_weights_that_were_changed_between_steps_are_attacked(monkeypatch):
    """In bf16, whose weights are copies."""
    net = fastuiat.build_model("wrn-10-1")
    step = TrainingStep(
        net, method_of("sat", **ONE_STEP), total_steps=4, precision="bf16", compile=False
    )
    losses_of(step, (1,))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    seen = []
    original = step.method.loss

    def loss(view, batch):
        pairs = zip(view.shadow.net.parameters(), net.parameters(), strict=True)
        seen.append(all(torch.equal(twin, live.to(twin.dtype)) for twin, live in pairs))
        return original(view, batch)

    monkeypatch.setattr(step.method, "loss", loss)
    losses_of(step, (2,))
    assert seen == [True]


def test_the_callers_helpers_stay_the_callers():
    method = method_of("hat", **ONE_STEP)
    before = dict(method.helpers)
    for precision in ("bf16", "fp32"):
        step = TrainingStep(
            fastuiat.build_model("wrn-10-1"),
            method,
            total_steps=4,
            precision=precision,
            compile=False,
        )
        losses_of(step, (1,))
        assert dict(method.helpers) == before


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


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="unknown precision 'bfloat16'"):
        natural_step(Unused(), precision="bfloat16")
    state = natural_step(Unused()).state_dict()
    with pytest.raises(UserError, match="averages weights"):
        natural_step(Unused(), weight_averaging=0.9).load_state_dict(state)
