"""The library's evaluation: the numbers of `fastuiat eval`, any classifier, left as it was."""

from __future__ import annotations

import doctest
import json
import logging

import pytest
import torch
import torchvision
from torch import nn

from fastuiat import build_model, data
from fastuiat.cli import main
from fastuiat.config import UserError
from fastuiat.evaluation import arrays
from fastuiat.evaluation.package import package
from fastuiat.training.checkpoint import FORMAT

N = 24


@pytest.fixture(scope="module")
def net():
    """Right about digits more often than not, without any training: class means as weights."""
    torch.manual_seed(0)
    net = build_model("wrn-10-1").eval()
    x, y = digits(359)
    with torch.no_grad():
        features = net(x, return_features=True)[1]
        centre = features.mean(dim=0)
        for k in range(10):
            net.fc.weight[k] = 20 * (features[y == k].mean(dim=0) - centre)
        net.fc.bias.copy_(-(net.fc.weight @ centre))
    return net


def digits(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    test = data.load("digits", "unused", "test")
    x = torch.from_numpy(test.images[:n]).permute(0, 3, 1, 2) / 255
    return x, torch.from_numpy(test.labels[:n])


@pytest.mark.parametrize("batch_size", [7, N])
def test_the_numbers_of_the_command(net, tmp_path, capsys, batch_size):
    about = {"arch": "wrn-10-1", "activation": "relu", "num_classes": 10, "dataset": "digits"}
    content = {"format": FORMAT, "model": net.state_dict(), "net": about, "epoch": 1, "step": 1}
    torch.save(content, tmp_path / "net.pt")
    words = (
        f"eval {tmp_path / 'net.pt'} --attacks clean pgd cw --n {N} --eps 1/255 --steps 3 --alpha "
        f"0.5/255 --restarts 2 --seed 4 --batch-size {batch_size} --device cpu --json"
    )
    capsys.readouterr()
    main(words.split())
    records = json.loads(capsys.readouterr().out)["records"]
    expected = {record["attack"]: record["accuracy"] for record in records}
    ours = arrays.evaluate(
        net, *digits(N), attacks=["clean", "pgd", "cw"], eps=1 / 255, steps=3, alpha="0.5/255",
        restarts=2, seed=4, batch_size=batch_size,
    )  # fmt: skip
    assert ours == expected
    assert 1 >= ours["clean"] > ours["pgd"] > 0


class Partly(nn.Module):
    """A classifier with parts in every state: frozen BatchNorm, dropout, a frozen parameter."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(216, classes)
        self.train()
        self.norm.eval()
        self.conv.bias.requires_grad_(False)

    def forward(self, x):
        return self.head(self.drop(self.norm(self.conv(x)).relu().flatten(1)))


def state_of(net: nn.Module) -> list:
    return [
        [(name, module.training) for name, module in net.named_modules()],
        [(name, p.requires_grad, p.grad is None) for name, p in net.named_parameters()],
        {name: value.nan_to_num() for name, value in net.state_dict().items()},
    ]


def points(net: nn.Module, n: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    was = net.training
    with torch.no_grad():
        y = net.eval()(x).argmax(dim=1)
    net.train(was)
    y[:2] = (y[:2] + 1) % 4
    return x, y


def same(before: list, after: list) -> bool:
    tensors = all(torch.equal(before[2][k], v) for k, v in after[2].items())
    return before[:2] == after[:2] and tensors


@pytest.fixture
def few_steps(monkeypatch):
    """The package's attacks with few iterations, ours and the plain one's."""

    def fewer(adversary):
        for attack in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
            attack.n_iter = 3
        adversary.square.n_queries = 20
        return adversary

    real = arrays.registry.get("autoattack").measure.__globals__["run_autoattack"]
    monkeypatch.setitem(
        arrays.registry.get("autoattack").measure.__globals__,
        "run_autoattack",
        lambda *a, **k: real(*a, **k, adjust=fewer),
    )
    return fewer


@pytest.mark.parametrize("fails", [False, True])
def test_a_net_comes_back_as_it_was(few_steps, fails):
    torch.manual_seed(0)
    net = Partly()
    x, y = points(Partly().eval())
    if fails:
        with torch.no_grad():
            net.head.weight[0, 0] = float("nan")
    before = state_of(net)
    for run in (
        lambda: arrays.autoattack(net, x, y, eps=0.01),
        lambda: arrays.evaluate(net, x, y, attacks=["clean", "pgd", "cw"], eps=0.01, steps=2),
    ):
        if fails:
            with pytest.raises(UserError, match="non-finite"):
                run()
        else:
            run()
        assert same(before, state_of(net))


@pytest.mark.parametrize("labels", [torch.arange(5), -torch.arange(5)])
def test_labels_without_logits_are_refused(labels):
    net, x = Partly().eval(), torch.rand(5, 3, 8, 8)
    for run in (arrays.autoattack, arrays.evaluate):
        with pytest.raises(UserError, match=r"y must lie in 0 … 3 for 4 logits, got "):
            run(net, x, labels, eps=0.01)
    with pytest.raises(UserError, match="x and y must be tensors, got ndarray, Tensor"):
        arrays.evaluate(net, x.numpy(), labels, eps=0.01)


def test_autoattack_is_the_package_s(few_steps):
    torch.manual_seed(1)
    net = Partly()
    net.conv.bias.requires_grad_(True)
    x, y = points(net)
    ours = arrays.autoattack(net, x, y, eps="2.55/255", seed=3)
    net.eval()
    plain = few_steps(package()[0](net, norm="Linf", eps=0.01, seed=3, device="cpu"))
    plain.apgd_targeted.n_target_classes = plain.fab.n_target_classes = 3
    x_adv = plain.run_standard_evaluation(x, y, batch_size=len(x))[0]
    with torch.no_grad():
        expected = net(x_adv).argmax(dim=1) == y
    assert ours.dtype == torch.bool and torch.equal(ours, expected)
    assert not ours[:2].any() and ours.any()


def test_torchvision_s_nets_are_classifiers(few_steps, caplog):
    torch.manual_seed(0)
    net = torchvision.models.resnet18(num_classes=4).train()
    net.layer1.eval()
    x = torch.rand(5, 3, 32, 32)
    before = state_of(net)
    y = torch.arange(5) % 4
    with caplog.at_level(logging.WARNING):
        held = arrays.autoattack(net, x, y, eps=1 / 255)
    assert held.shape == (5,) and any("3 instead of 9" in r.message for r in caplog.records)
    found = arrays.evaluate(net, x, y, eps=1 / 255, steps=2)
    assert list(found) == ["clean", "pgd"] and held.float().mean() <= found["clean"]
    assert same(before, state_of(net))


def test_what_is_no_such_set_is_refused():
    net = Partly()
    x, y = points(net)
    for bad, said in (
        ((255 * x, y), r"lie in \[0, 1\]"),
        ((x[0], y), r"\(N, C, H, W\)"),
        ((x, y[:3]), "integers"),
        ((x, y.float()), "integers"),
        ((x[:0], y[:0]), "N, C, H, W"),
    ):
        with pytest.raises(UserError, match=said):
            arrays.evaluate(net, *bad, eps=0.1)
    with pytest.raises(UserError, match="autoattack has no inverse"):
        arrays.autoattack(net, x, y, eps=-0.1)
    with pytest.raises(UserError, match="version does nothing for clean, pgd"):
        arrays.evaluate(net, x, y, eps=0.1, version="plus")
    with pytest.raises(UserError, match="choose from standard, plus, rand"):
        arrays.autoattack(net, x, y, eps=0.1, version="fast")


def test_the_examples_run():
    results = doctest.testmod(arrays)
    assert results.attempted >= 10 and results.failed == 0
