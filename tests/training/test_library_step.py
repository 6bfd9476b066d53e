"""TrainingStep in a loop of one's own: the numbers of `fastuiat train`, states, optimizers."""

from __future__ import annotations

import copy
import json
import logging
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fastuiat
from fastuiat import data, methods
from fastuiat.config import OptimizerConfig, UserError
from fastuiat.training import run
from fastuiat.training.config import TrainConfig
from fastuiat.training.step import TrainingStep

sys.path.insert(0, str(Path(__file__).parent))
from library_steps import (
    ONE_STEP,
    B,
    K,
    images,
    losses_of,
    method_of,
    natural_step,
    timm_resnet,
)


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

    own = run.training_data(config)
    pixels, labels, order = own.images, own.labels, own.order
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


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="unknown precision 'bfloat16'"):
        natural_step(fastuiat.build_model("wrn-10-1"), precision="bfloat16")
    state = natural_step(fastuiat.build_model("wrn-10-1")).state_dict()
    with pytest.raises(UserError, match="averages weights"):
        natural_step(fastuiat.build_model("wrn-10-1"), weight_averaging=0.9).load_state_dict(state)
