"""A net is one registered class; every name gives the net that it says."""

from __future__ import annotations

import doctest
import json

import pytest
import torch
from torch import nn

from fastuiat.cli import main
from fastuiat.config import UserError
from fastuiat.models import build_model, register, registry


@pytest.fixture
def names(monkeypatch):
    monkeypatch.setattr(registry, "REGISTRY", dict(registry.REGISTRY))


class Stripes(nn.Module):
    """`stripes-W`, a convolution and a linear layer."""

    def __init__(self, width: int, num_classes: int, activation: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 8, stride=8)
        self.head = nn.Linear(width, num_classes)
        self.activation = activation

    def forward(self, x, return_features=False):
        features = self.conv(x).relu().mean(dim=(2, 3))
        return (self.head(features), features) if return_features else self.head(features)


def test_a_net_is_one_class(names, tmp_path, monkeypatch, capsys):
    register("stripes-{width}", legal=lambda width: width % 2 == 0, example="stripes-4")(Stripes)
    net = build_model("stripes-6", num_classes=7, activation="silu")
    assert isinstance(net, Stripes) and net.activation == "silu"
    assert net(torch.rand(2, 3, 32, 32)).shape == (2, 7) and net.conv.out_channels == 6
    with pytest.raises(UserError, match=r"'stripes-3' has no legal width: .*stripes-W such as"):
        build_model("stripes-3")
    with pytest.raises(UserError, match=r"unknown net 'stripes': .*stripes-W such as stripes-4"):
        build_model("stripes")
    monkeypatch.chdir(tmp_path)
    train = (
        "train --dataset digits --arch stripes-4 --method sat --epochs 1 --batch-size 128 "
        "--val-size 64 --max-steps 2 --steps 1 --loader resident --no-compile --out run --quiet"
    )
    main(train.split())
    capsys.readouterr()
    main(["eval", "run", "--attacks", "clean", "--n", "8", "--json"])
    (record,) = json.loads(capsys.readouterr().out)["records"]
    assert record["checkpoint"]["arch"] == "stripes-4" and record["n"] == 8


def test_names_are_matched_whole():
    for name in ("wrn-28-10x", "xwrn-28-10", "wrnx28-10", "dm-wrn-28", "prn-18-v", "wrn--10"):
        with pytest.raises(UserError, match=f"unknown net '{name}'"):
            build_model(name)


def test_the_example_runs():
    finder = doctest.DocTestFinder()
    tests = [
        t
        for t in finder.find(
            registry.build_model, "build_model", globs={"build_model": build_model}
        )
        if t.examples
    ]
    assert tests
    for test in tests:
        assert doctest.DocTestRunner().run(test).failed == 0
