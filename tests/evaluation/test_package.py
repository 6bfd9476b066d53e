"""AutoAttack by a package that lacks what is asked of it: slower, said once, the same verdicts."""

from __future__ import annotations

import importlib
import logging

import pytest
import torch
from torch import nn

from fastuiat.evaluation import package as adapter
from fastuiat.evaluation import run_autoattack
from fastuiat.evaluation.attacked_net import AttackedNet
from fastuiat.evaluation.package import ASKED, PARTS, Run, make_adversary, package, runs_of
from fastuiat.evaluation.projection import fast_projection, projection_linf
from fastuiat.fast import torch_internals

K, N, EPS, CPU = 4, 10, 0.02, torch.device("cpu")


@pytest.fixture(autouse=True)
def said(caplog):
    """What the log was told so far, each line once."""
    torch_internals.say_once.cache_clear()
    caplog.set_level(logging.WARNING)
    return lambda: [r.message for r in caplog.records if r.name == torch_internals.__name__]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, K)).eval()


@pytest.fixture(scope="module")
def points(net):
    x = torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return x, net(x).argmax(dim=1)


class Hiding:
    """A part of the package without one of its names; all else is the part's own."""

    def __init__(self, part, name):
        self.__dict__.update(part=part, name=name)

    def __getattr__(self, name):
        if name == self.name:
            raise AttributeError(name)
        return getattr(self.part, name)

    def __setattr__(self, name, value):
        setattr(self.part, name, value)


def few_steps(adversary):
    for part in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
        part.n_iter = 3
    adversary.square.n_queries = 20


def verdicts(net, points, version, lacking=()):
    def adjust(adversary):
        few_steps(adversary)
        for part, name in lacking:
            setattr(adversary, part, Hiding(getattr(adversary, part), name))

    return run_autoattack(
        net, *points, eps=EPS, version=version, seed=3, batch_size=N, device=CPU, adjust=adjust
    )


@pytest.fixture(scope="module")
def whole(net, points):
    return verdicts(net, points, "plus")


@pytest.mark.parametrize(
    ("part", "name"), [(part, name) for part, names in ASKED.items() for name in names.split()]
)
def test_each_name_taken_away(net, points, whole, said, part, name):
    """With one batch for all points the package's own loop draws what ours does."""
    result = verdicts(net, points, "plus", [(part, name)])
    assert torch.equal(result.robust, whole.robust) and result.accuracy == whole.accuracy
    assert 0 < whole.robust.sum() < N
    lines = said()
    attacks = [attack for attack, its in PARTS.items() if its == part]
    assert [line.split(": ")[1].split()[0] for line in lines] == sorted(
        attacks, key=lines_of(whole)
    )
    assert all(f"has no {part}.{name}" in line and "slower" in line for line in lines)
    rows = [p for p in result.parts if p["attack"] in attacks]
    assert [p["restart"] for p in rows] == [adapter.WHOLE] * len(attacks)


def lines_of(whole):
    order = list(whole.accuracy)
    return order.index


def test_nothing_is_lacking_in_the_package_installed(net, points, whole, said):
    assert not said() and all(p["restart"] >= 0 for p in whole.parts)
    adversary = make_adversary(net, eps=EPS, version="plus", seed=0, device=CPU)
    assert all(isinstance(run, Run) for a in PARTS for run in runs_of(adversary, a, K))
    assert not said()


@pytest.mark.parametrize("name", ["check_randomized", "check_range_output", "check_dynamic"])
def test_a_check_taken_away(net, points, monkeypatch, said, name):
    checks = importlib.import_module(f"{package()[0].__module__.split('.')[0]}.checks")
    monkeypatch.delattr(checks, name)
    found = adapter.warnings_before(net, *points, version="standard", attacks=["apgd-ce"])
    assert found == [] and len(said()) == 1 and name in said()[0]


def test_the_counter_of_a_check_taken_away(net, points, monkeypatch, said):
    checks = importlib.import_module(f"{package()[0].__module__.split('.')[0]}.checks")
    monkeypatch.setattr(checks, "funcs", {})
    assert adapter.warnings_before(net, *points, version="rand", attacks=["apgd-ce"]) == []


@pytest.mark.parametrize(
    ("part", "name"),
    [
        ("apgd", "is_tf_model"),
        ("apgd_targeted", "is_tf_model"),
        ("fab", "get_diff_logits_grads_batch_targeted"),
    ],
)
def test_gradients_taken_away(net, said, part, name):
    adversary = make_adversary(net, eps=EPS, version="plus", seed=0, device=CPU)
    setattr(adversary, part, Hiding(getattr(adversary, part), name))
    adapter.let_net_differentiate(adversary, AttackedNet(net))
    assert len(said()) == 1 and "slower" in said()[0]
    flags = [
        getattr(getattr(adversary, p), "is_tf_model", False) for p in ("apgd", "apgd_targeted")
    ]
    assert flags == [False, False]


def test_the_projection_taken_away(net, monkeypatch, said):
    adversary = make_adversary(net, eps=EPS, version="plus", seed=0, device=CPU)
    base = next(c for c in type(adversary.fab).__mro__ if c.__name__ == "FABAttack")
    module = importlib.import_module(base.__module__)
    its_own = module.projection_linf
    with fast_projection(adversary.fab):
        assert module.projection_linf is projection_linf
    assert module.projection_linf is its_own and not said()
    monkeypatch.delattr(module, "projection_linf")
    with fast_projection(adversary.fab):
        assert not hasattr(module, "projection_linf")
    assert not hasattr(module, "projection_linf")
    assert len(said()) == 1 and "slower" in said()[0]


def test_a_part_taken_away_with_all_its_names(net, points, whole, said):
    """The package may call its attacks otherwise: its own evaluation is all that is needed."""

    def adjust(adversary):
        few_steps(adversary)
        hidden = dict(adversary.__dict__)
        evaluation = adversary.run_standard_evaluation

        def run(x, y, *, batch_size):
            adversary.__dict__.update(hidden, attacks_to_run=adversary.attacks_to_run)
            try:
                return evaluation(x, y, batch_size=batch_size)
            finally:
                del adversary.square

        adversary.run_standard_evaluation = run
        del adversary.square

    result = run_autoattack(
        net, *points, eps=EPS, version="plus", seed=3, batch_size=N, device=CPU, adjust=adjust
    )
    assert torch.equal(result.robust, whole.robust)
    assert len(said()) == 1 and "has no square.attack_single_run" in said()[0]
