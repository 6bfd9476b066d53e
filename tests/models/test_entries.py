"""Entries that are no part of a net are left out and said; the unknown stays a refusal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastuiat
from fastuiat.config import UserError

sys.path.insert(0, str(Path(__file__).parent))
from published_nets import ARCH, net_of

MEAN, STD = (0.49, 0.48, 0.44), (0.24, 0.25, 0.26)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return net_of(0)


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def loaded(tmp_path):
    def load(content: Any, arch: str = ARCH, **said: Any) -> tuple[nn.Module, dict[str, Any]]:
        torch.save(content, tmp_path / "net.pt")
        return fastuiat.load_checkpoint(tmp_path / "net.pt", arch, **said)

    return load


NORMALISERS = [
    ("normalize.mean", "normalize.std"), ("normalizer.new_mean", "normalizer.new_std"),
    ("mu", "sigma"), ("data_mean", "data_std"), ("0.mean", "0.std"),
    ("norm_layer.mu", "norm_layer.sd"),
    ("model.pixel_mean", "model.pixel_std"), ("transform._mean", "transform._std"),
]  # fmt: skip


@pytest.mark.parametrize("names", NORMALISERS, ids=lambda names: names[0])
@pytest.mark.parametrize("shape", [(3,), (3, 1, 1), (1, 3, 1, 1)], ids=str)
@torch.no_grad()
def test_a_normaliser_under_any_name(loaded, net, x, names, shape):
    prefix = {"0.mean": "1.", "model.pixel_mean": "model.net."}.get(names[0], "")
    mean, std = (torch.tensor(values) for values in (MEAN, STD))
    state = {prefix + key: value for key, value in net.state_dict().items()}
    state |= dict(zip(names, (mean.view(shape), std.view(shape)), strict=True))
    for content in (state, {"state_dict": {f"module.{k}": v for k, v in state.items()}}):
        model, info = loaded(content)
        expected = net((x - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
        found = info["normalisation"]
        assert (found["mean"], found["std"]) == (list(MEAN), list(STD))
        assert names[0] in found["from"] and names[0] in info["taken"] and not info["left_out"]


@torch.no_grad()
def test_a_normaliser_in_grey_levels_or_of_one_value(loaded, net, x):
    levels = {"mean": torch.tensor(MEAN) * 255, "std": torch.tensor(STD) * 255}
    model, info = loaded(net.state_dict() | {f"norm.{k}": v for k, v in levels.items()})
    expected = net((x * 255 - levels["mean"].view(3, 1, 1)) / levels["std"].view(3, 1, 1))
    torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)
    assert any("grey levels" in note for note in info["notes"])
    model, _ = loaded(net.state_dict() | {"mean": torch.tensor(0.5), "std": torch.tensor([0.5])})
    torch.testing.assert_close(model(x), net(2 * x - 1), atol=1e-5, rtol=1e-5)
    for std in (0.0, float("nan"), -1.0):
        with pytest.raises(UserError, match="a normalisation that is none"):
            loaded(net.state_dict() | {"n.mean": torch.zeros(3), "n.std": torch.full((3,), std)})


@pytest.mark.parametrize("values", [list, tuple, torch.tensor], ids=lambda kind: kind.__name__)
def test_constants_outside_the_nest_are_said(loaded, net, values):
    """Whether they were applied no file says: they are shown as the options that apply them."""
    constants = {"mean": values([0.5, 0.4, 0.3]), "std": values([0.2, 0.2, 0.25])}
    for beside in (constants, {"normalize": constants}):
        _, info = loaded({"state_dict": net.state_dict(), **beside})
        assert info["normalisation"] is None
        assert any("--mean 0.5 0.4 0.3 --std 0.2 0.2 0.25" in note for note in info["notes"])


@torch.no_grad()
def test_an_attackers_copies(loaded, net, x):
    state = net.state_dict()
    content = {f"module.model.{k}": v for k, v in state.items()}
    copies = {f"module.attacker.model.{k}": v.clone() for k, v in state.items()}
    norm = {"module.normalizer.new_mean": torch.full((3, 1, 1), 0.5)}
    norm |= {"module.normalizer.new_std": torch.full((3, 1, 1), 0.25)}
    model, info = loaded({"model": content | copies | norm})
    torch.testing.assert_close(model(x), net((x - 0.5) / 0.25), atol=1e-5, rtol=1e-5)
    assert "model.module.attacker.model" in info["left_out"]
    assert any("attacker.model repeats" in note for note in info["notes"])
    copies["module.attacker.model.fc.bias"] += 1
    model, info = loaded({"model": content | copies})
    torch.testing.assert_close(model(x), net(x))
    assert any("attacker.model differs from" in note for note in info["notes"])


@pytest.mark.parametrize("how", ["shared", "equal"])
def test_entries_that_repeat_others(loaded, net, how):
    state = net.state_dict()
    extra = {"head.0.weight": state["conv1.weight"]}
    bn = [key for key in state if key.startswith("block1.layer.0.bn2.")]
    extra |= {key.replace("block1.layer.0.bn2", "feature.1"): state[key] for key in bn}
    if how == "equal":
        extra = {key: value.clone() for key, value in extra.items()}
    model, info = loaded({"net": state | extra})
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert sorted(info["left_out"]) == ["feature.* (5)", "head.0.weight"]


def test_counters_and_dead_parts_are_left_out(loaded, net):
    counted = {
        f"{name}.{kind}".lstrip("."): torch.zeros(1, dtype=torch.float64)
        for name, _ in net.named_modules()
        for kind in ("total_ops", "total_params")
    }
    dead = {f"sub_block1.{k}": v for k, v in net.block1.state_dict().items()}
    _, info = loaded(net.state_dict() | counted | dead | {"n_averaged": torch.tensor(3)})
    left = " ".join(info["left_out"])
    assert all(name in left for name in ("total_ops", "sub_block1.*", "n_averaged"))
    assert "sub_block1" in info["taken"]


@pytest.mark.parametrize(
    "extra",
    [
        {"aux.fc.weight": torch.randn(10, 64)},
        {"linear_rotations.weight": torch.ones(4, 64), "linear_rotations.bias": torch.zeros(4)},
        {"bn_adv.weight": torch.ones(64), "bn_adv.bias": torch.zeros(64)},
        {"block3.layer.1.conv1.weight": torch.randn(64, 64, 3, 3)},
        {"norm.mean": torch.zeros(3)},
    ],
)
def test_what_may_be_part_of_a_net_is_never_dropped(loaded, net, extra):
    for wrapped in (
        net.state_dict() | extra,
        {f"module.{k}": v for k, v in net.state_dict().items()} | extra,
    ):
        with pytest.raises(UserError, match=next(iter(extra)).replace(".", r"\.")):
            loaded({"state_dict": wrapped})


def test_a_net_never_looks_like_itself_and_nothing_has_0_classes(loaded, net):
    state = net.state_dict()
    for content in (
        {k: v for k, v in state.items() if k != "fc.bias"},
        {k: v for k, v in state.items() if not k.startswith("fc.")},
        state | {"aux.weight": torch.randn(3, 5)},
    ):
        with pytest.raises(UserError) as refused:
            loaded(content)
        assert "looks like" not in str(refused.value)
    headless = {k: v for k, v in state.items() if not k.startswith("fc.")}
    with pytest.raises(UserError, match=r"looks like wrn-10-1$"):
        loaded(headless, "resnet-18")
    for arch, shown in (
        ("prn-18", "prn-18 or prn-18-v1-bn with 10"),
        ("prn-18-v1", "prn-18-v1 with 10"),
    ):
        with pytest.raises(UserError, match=f"looks like {shown} classes"):
            loaded(fastuiat.build_model(arch).state_dict(), "resnet-18")


def test_the_constants_of_a_dm_net_go_by_its_data_set(loaded, x):
    torch.manual_seed(1)
    theirs = fastuiat.build_model("dm-wrn-10-1", 10, "silu").eval()
    bare = {k: v for k, v in theirs.state_dict().items() if k not in ("mean", "std")}
    half = (0.5, 0.5, 0.5)
    model, info = loaded(bare, dataset="svhn")
    assert info["normalisation"]["mean"] == info["normalisation"]["std"] == list(half)
    assert "svhn" in info["normalisation"]["from"] and "svhn" in info["taken"]
    expected = theirs((x - 0.5) / 0.5 * theirs.std + theirs.mean)
    torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)
    _, info = loaded(bare, dataset="cifar10")
    assert info["normalisation"]["mean"][0] == 0.4914 and not info["notes"]
    _, info = loaded(bare)
    assert any("cifar10" in note and "svhn" not in note for note in info["notes"])
    model, info = loaded(bare, dataset="svhn", normalise=(MEAN, STD))
    assert info["normalisation"]["from"] == "--mean and --std"
    kept = bare | {"mean": torch.full((3, 1, 1), 0.3), "std": torch.full((3, 1, 1), 0.2)}
    assert loaded(kept, dataset="svhn")[1]["normalisation"]["mean"] == [0.3, 0.3, 0.3]


@torch.no_grad()
def test_an_inverse_std_is_inverted(loaded, net, x):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    expected = net((x - mean) / std)
    for name in ("inv_std", "istd", "std_inv", "invstd", "rstd", "inverse_std"):
        model, info = loaded(net.state_dict() | {"norm.mean": mean, f"norm.{name}": 1 / std})
        torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
        assert f"norm.{name}, inverted" in info["normalisation"]["from"]
        assert any("1 / std" in note for note in info["notes"])


@torch.no_grad()
def test_mean_and_std_have_a_unit_each(loaded, net, x):
    mean, std = (torch.tensor(values) for values in (MEAN, STD))
    expected = net((x - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    for a, b, word in ((255, 1, "mean alone"), (1, 255, "std alone"), (255, 255, "normalisation")):
        model, info = loaded(net.state_dict() | {"n.mean": a * mean, "n.std": b * std})
        torch.testing.assert_close(model(x), expected, atol=1e-4, rtol=1e-4)
        assert any(f"its {word} is in grey levels" in note for note in info["notes"])
    given = ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    for a, b, said in (
        (255 * mean, torch.ones(3), "neither of pixels"),
        (mean, torch.full((3,), 1.5), "neither of pixels"),
        (-mean, std, "negative mean"),
        (300 * torch.ones(3), 60 * torch.ones(3), "neither of pixels"),
    ):
        state = net.state_dict() | {"n.mean": a, "n.std": b}
        with pytest.raises(UserError, match=f"{said}.*--mean and --std"):
            loaded(state)
        model, info = loaded(state, normalise=given)
        torch.testing.assert_close(model(x), net((x - 0.5) / 0.25), atol=1e-5, rtol=1e-5)
        assert info["normalisation"]["from"] == "--mean and --std"
        assert any("in its place" in note for note in info["notes"])


@torch.no_grad()
def test_two_normalisations_are_not_chosen_between(loaded, net, x):
    state = net.state_dict() | {
        "pre.mean": torch.full((3,), 0.5), "pre.std": torch.full((3,), 0.25),
        "post.mean": torch.zeros(3), "post.std": torch.ones(3),
    }  # fmt: skip
    with pytest.raises(UserError, match=r"several normalisations, in post, pre: .*--mean"):
        loaded(state)
    model, _ = loaded(state, normalise=((0.5,) * 3, (0.25,) * 3))
    torch.testing.assert_close(model(x), net((x - 0.5) / 0.25), atol=1e-5, rtol=1e-5)


def test_constants_beside_the_net_are_options_that_can_be_given(loaded, net):
    state = net.state_dict()
    space = argparse.Namespace(lr=0.1, mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.25])
    for beside, said in (
        ({"mean": [127.5, 102, 76.5], "std": [51.0, 51.0, 63.75]}, True),
        ({"args": space}, True),
        ({"mean": [0.5, 0.4, 0.3], "inv_std": [5.0, 5.0, 4.0]}, True),
        ({"config": {"data": {"mean": "0.5, 0.4, 0.3", "std": "0.2 0.2 0.25"}}}, True),
        ({"mean": [127.5, 102, 76.5], "std": [1.0, 1.0, 1.0]}, False),
    ):
        _, info = loaded({"net": state, **beside})
        assert info["normalisation"] is None
        options = "--mean 0.5 0.4 0.3 --std 0.2 0.2 0.25" in " ".join(info["notes"])
        assert options == said, info["notes"]
        assert "mean and a std stand beside" in " ".join(info["notes"])


def test_an_activation_in_the_files_settings_is_said(loaded, net):
    for told in ("silu", "Swish", "nn.SiLU", "torch.nn.SiLU()"):
        content = {"net": net.state_dict(), "args": argparse.Namespace(activation=told)}
        assert any("--activation silu" in note for note in loaded(content)[1]["notes"])
        assert "--activation" not in " ".join(loaded(content, activation="silu")[1]["notes"])
    content["args"].activation = "nn.ReLU"
    assert "--activation" not in " ".join(loaded(content)[1]["notes"])


def test_what_trainers_keep_beside_a_net_is_left_out(loaded, net):
    beside = {
        "epoch": torch.tensor(3), "initted": torch.tensor(True), "best_acc": torch.tensor(0.5),
        "train_acc.correct": torch.tensor(3), "criterion.weight": torch.ones(10),
        "dummy": torch.empty(0),
    }  # fmt: skip
    for state in (net.state_dict(), {f"model.{k}": v for k, v in net.state_dict().items()}):
        model, info = loaded({"state_dict": state | beside})
        assert all(torch.equal(v, net.state_dict()[k]) for k, v in model.state_dict().items())
        assert sorted(info["left_out"]) == sorted(beside)
    for extra in (
        {"temperature": torch.tensor(1.5)},
        {"norm.running_mean": torch.zeros(3)},
        {"acc_head.weight": torch.ones(4, 64)},
        {"block1.scale": torch.tensor(2)},
    ):
        with pytest.raises(UserError, match="no part of a wrn-10-1"):
            loaded(net.state_dict() | extra)
