"""Steps, batches and other people's nets for the tests of TrainingStep."""

from __future__ import annotations

from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

import fastuiat
from fastuiat import methods
from fastuiat.methods import Method
from fastuiat.training.step import TrainingStep

B, K, N = 8, 10, 64
ONE_STEP = {"attack": {"steps": 1}}


def method_of(
    name: str, net: Any = lambda: fastuiat.build_model("wrn-10-1"), **settings: Any
) -> Method:
    helpers = {role: net().eval() for role in methods.get(name).requires}
    return methods.create(name, num_classes=K, num_samples=N, epochs=4, helpers=helpers, **settings)


def images(step: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(step)
    index = torch.randperm(N, generator=g)[:B]
    return torch.rand(B, 3, 32, 32, generator=g), index % K, index


def losses_of(step: TrainingStep, epochs: range | tuple[int, ...] = range(1, 5)) -> list[float]:
    return [step(*images(epoch), epoch=epoch).loss.item() for epoch in epochs]


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


def natural_step(net: nn.Module, **more: Any) -> TrainingStep:
    settings = {"total_steps": 4, "precision": "fp32", "compile": False} | more
    return TrainingStep(net, method_of("natural"), **settings)
