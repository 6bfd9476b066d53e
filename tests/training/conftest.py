"""A small net that has learnt something, for what random weights would not show."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastuiat import data
from fastuiat.models.blocks import Classifier, pooled
from fastuiat.models.convolution import Conv3x3


class SmallNet(Classifier):
    """Three strided convolutions with BatchNorm: trains in seconds, compiles in seconds."""

    head = "fc"

    def __init__(self, width: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        pairs = list(itertools.pairwise(widths))
        self.convs = nn.ModuleList(Conv3x3(i, o, stride=2) for i, o in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o in pairs)
        self.fc = nn.Linear(widths[-1], num_classes)
        self.initialise()

    def features(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return pooled(x)


@pytest.fixture(scope="session")
def small_net() -> type[Classifier]:
    return SmallNet


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """The training images in [0, 1], channels-last, and their labels."""
    train = data.load("digits", "data", "train")
    x = torch.from_numpy(train.images).permute(0, 3, 1, 2) / 255
    return x, torch.from_numpy(train.labels)


@pytest.fixture(scope="session")
def trained(digits: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """`net` in eval mode, accurate on the `x`, `y` of digits that it was trained on."""
    torch.manual_seed(0)
    x, y = digits
    net = SmallNet().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(8):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        assert (net(x).argmax(dim=1) == y).float().mean() > 0.95
    return {"net": net, "x": x, "y": y}


@pytest.fixture
def counted(monkeypatch):
    """The graphs made of regions, traced but not compiled; making one anew is an error."""
    from torch._dynamo.backends.debugging import aot_eager

    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    monkeypatch.setattr("fastuiat.training.regions.BACKEND", backend)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield graphs
