"""What a run's checkpoint says of itself, and what a stranger's may wrongly say."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastuiat
from fastuiat.config import UserError
from fastuiat.training.checkpoint import FORMAT, load_checkpoint, read

NET = {"arch": "wrn-10-1", "activation": "silu", "num_classes": 10, "dataset": "digits"}


@pytest.fixture(scope="module")
def content() -> dict:
    torch.manual_seed(0)
    model, averaged = (fastuiat.build_model("wrn-10-1").state_dict() for _ in range(2))
    return {
        "format": FORMAT, "net": NET, "model": model, "averaged": averaged, "epoch": 3, "step": 42,
        "validated_epoch": 3,
    }  # fmt: skip


@pytest.fixture
def run(tmp_path, content) -> Path:
    """A run folder with both checkpoints, of which the last is another."""
    folder = tmp_path / "runs" / "sat"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text('{"data_dir": "data"}')
    torch.save(content, folder / "checkpoints" / "best.pt")
    model = content["model"] | {"fc.bias": content["model"]["fc.bias"] + 1}
    torch.save(content | {"model": model, "step": 50}, folder / "checkpoints" / "last.pt")
    return folder


def test_what_a_run_gives_is_said(run, content):
    _, info = load_checkpoint(run)
    best = run / "checkpoints" / "best.pt"
    assert info["path"] == str(best) and (info["which"], info["weights"]) == ("best", "averaged")
    assert info["chosen"] == info["notes"] == info["left_out"] == []
    assert (info["nest"], info["normalisation"]) == ("averaged", None)
    assert info["taken"] == (
        f"taken: the averaged weights of {best} as a wrn-10-1 with silu and 10 classes, "
        "no normalisation"
    )
    for path in (run, run / "checkpoints" / "last.pt"):
        net, info = load_checkpoint(path, which="last", weights="raw")
        assert info["chosen"] == ["last", "raw"] and info["step"] == 50
        assert torch.equal(net.fc.bias, content["model"]["fc.bias"] + 1)
    best.unlink()
    _, info = load_checkpoint(run)
    assert (info["which"], info["chosen"]) == ("last", [])
    assert info["notes"] == ["the run has no best.pt: its last.pt was taken"]
    torch.save(content | {"averaged": None}, best)
    _, info = load_checkpoint(run, weights="raw")
    assert (info["weights"], info["chosen"]) == ("raw", [])


def test_the_constants_of_a_trained_dm_net_are_told(tmp_path, content):
    net = fastuiat.build_model("dm-wrn-10-1", 10, "silu")
    about = content | {"net": NET | {"arch": "dm-wrn-10-1"}, "model": net.state_dict()}
    torch.save(about | {"averaged": None}, tmp_path / "net.pt")
    _, info = load_checkpoint(tmp_path / "net.pt")
    assert info["normalisation"]["mean"] == [0.4914, 0.4822, 0.4465]
    assert info["normalisation"]["from"] == "the checkpoint"


BROKEN = {
    "only a format": ("model", lambda c: {"format": FORMAT}),
    "no model": ("model", lambda c: {k: v for k, v in c.items() if k != "model"}),
    "a model of other things": ("model", lambda c: c | {"model": {"a": 1}}),
    "an empty model": ("model", lambda c: c | {"model": {}}),
    "averaged 5": ("averaged", lambda c: c | {"averaged": 5}),
    "no epoch": ("epoch", lambda c: {k: v for k, v in c.items() if k != "epoch"}),
    "epoch none": ("epoch", lambda c: c | {"epoch": None}),
    "epoch true": ("epoch", lambda c: c | {"epoch": True}),
    "a negative step": ("step", lambda c: c | {"step": -5}),
    "step as text": ("step", lambda c: c | {"step": "7"}),
    "validated never": ("validated_epoch", lambda c: c | {"validated_epoch": -1}),
    "net 5": ("net", lambda c: c | {"net": 5}),
    "net without arch": ("net", lambda c: c | {"net": {"num_classes": 10}}),
    "a billion classes": ("net", lambda c: c | {"net": NET | {"num_classes": 10**9}}),
    "no classes": ("net", lambda c: c | {"net": NET | {"num_classes": 0}}),
    "classes as text": ("net", lambda c: c | {"net": NET | {"num_classes": "10"}}),
    "arch as a list": ("net", lambda c: c | {"net": NET | {"arch": ["wrn"]}}),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_checkpoint_is_one_line(content, tmp_path, refusal, what):
    named, break_it = BROKEN[what]
    torch.save(break_it(content), tmp_path / "net.pt")
    assert f"'{named}'" in refusal("eval", "net.pt")
    with pytest.raises(UserError, match="no whole checkpoint"):
        read(tmp_path / "net.pt")


@pytest.mark.parametrize(
    "net, said",
    [
        ({"num_classes": 10**6}, "fc.weight, fc.bias do not fit wrn-10-1"),
        ({"arch": "wrn-10-99999999"}, "no legal depth and width"),
        ({"arch": "wrn-" + "9" * 5000 + "-1"}, "unknown net"),
        ({"activation": "gelu"}, "unknown activation"),
        ({"arch": "wrn-16-1"}, "do not fit wrn-16-1"),
    ],
)
def test_a_net_that_the_weights_are_not_of(content, tmp_path, refusal, net, said):
    torch.save(content | {"net": NET | net}, tmp_path / "net.pt")
    assert said in refusal("eval", "net.pt")


def test_choices_that_are_none(content, tmp_path):
    torch.save(content, tmp_path / "net.pt")
    for said in ({"which": "first"}, {"weights": "swa"}):
        with pytest.raises(UserError, match="'best' or 'last'"):
            load_checkpoint(tmp_path / "net.pt", **said)
