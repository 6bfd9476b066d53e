"""p with its gradient in fp16: at a GradScaler's scale both sides of the KL keep it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastuiat import memory, methods
from fastuiat.data import Batch
from fastuiat.fast import regions
from fastuiat.fast.view import TrainingView

CPU = torch.device("cpu")
CLASSES, SIZE, SIDE = 5, 16, 4


class TwoLayers(nn.Module):
    """No convolution: the gradients of its weights in fp16 take a CPU seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 * SIDE * SIDE, 32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor, return_features: bool = False) -> Any:
        features = torch.relu(self.hidden(x.flatten(1)))
        logits = 12 * self.head(features)
        return (logits, features) if return_features else logits


def gradients(net: nn.Module, batch: Batch, reading: str, precision: str, compiled: bool) -> Tensor:
    """All of the weights' gradients of a second uiat step, unscaled, P mixed with in both."""
    net = copy.deepcopy(net)
    method = methods.create(
        "uiat",
        num_classes=CLASSES,
        num_samples=SIZE,
        image_shape=(3, SIDE, SIDE),
        attack={"steps": 1, "eps": 0.2, "alpha": 0.2},
        inverse_forward=reading,
        momentum_epoch=1,
        gamma=0.5,
    )
    view = TrainingView(net, device=CPU, precision=precision, compiled=compiled)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, enabled=precision == "fp16")
    if scaler.is_enabled():
        view.loss_scale = scaler.scale(torch.ones(()))
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    assert method.target.memory.probs.dtype == torch.float16
    method.loss(view, batch)
    method.target.memory.probs[:, 0] += 0.25  # something to be mixed with that p is not
    scaler.scale(method.loss(view, batch).loss).backward()
    scaler.unscale_(optimizer)
    return torch.cat([p.grad.flatten() for p in net.parameters()])


@pytest.mark.parametrize("compiled", [False, True])
def test_both_sides_of_the_kl_keep_their_gradient(compiled, monkeypatch):
    monkeypatch.setattr(regions, "BACKEND", "aot_eager")
    monkeypatch.setattr(memory, "HALF_PRECISION_BYTES", 0)
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = TwoLayers()
    x = torch.rand(SIZE, 3, SIDE, SIDE).to(memory_format=torch.channels_last)
    y = torch.arange(SIZE) % CLASSES
    batch = Batch(x, y, torch.arange(SIZE), 1, 0)
    full = {r: gradients(net, batch, r, "fp32", False) for r in ("train", "attached")}
    half = gradients(net, batch, "attached", "fp16", compiled)
    rounding = (half - full["attached"]).norm()
    assert rounding < 0.02 * full["attached"].norm()
    # What tells the readings apart is far larger than that.
    assert (full["train"] - full["attached"]).norm() > 10 * rounding
