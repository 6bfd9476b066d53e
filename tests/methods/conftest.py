"""A small net and batches for the comparisons with plainly written formulas."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import fastuiat
from fastuiat import methods
from fastuiat.data import Batch
from fastuiat.methods import Method

CLASSES, SAMPLES, SIZE = 5, 24, 8


@pytest.fixture
def make_net() -> Callable[..., torch.nn.Module]:
    def make(dtype: torch.dtype, seed: int = 0) -> torch.nn.Module:
        torch.manual_seed(seed)
        net = fastuiat.build_model("wrn-10-1", num_classes=CLASSES).to(dtype)
        for module in net.modules():  # running statistics that a batch's own differ from
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
        return net.train()

    return make


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    def make(dtype: torch.dtype, epoch: int = 1, shift: int = 0) -> Batch:
        g = torch.Generator().manual_seed(epoch * 10 + shift)
        x = torch.rand(SIZE, 3, 32, 32, generator=g, dtype=dtype)
        x[0, :, :16] = 0  # pixels on the border of the range
        x[1, :, :16] = 1
        y = torch.tensor([0, 0, 1, 3, 3, 3, 1, 0])
        index = (torch.arange(SIZE) + shift) % SAMPLES
        return Batch(x.to(memory_format=torch.channels_last), y, index, epoch, 0)

    return make


@pytest.fixture
def create(make_net) -> Callable[..., Method]:
    """A method by name, with nets in the roles it requires."""

    def make(name: str, dtype: torch.dtype = torch.float32, **config) -> Method:
        return methods.create(
            name,
            num_classes=CLASSES,
            num_samples=SAMPLES,
            epochs=config.pop("epochs", 4),
            seed=config.pop("seed", 0),
            helpers={role: make_net(dtype, seed=9) for role in methods.get(name).requires},
            **config,
        )

    return make
