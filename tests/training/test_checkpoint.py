"""What a run's checkpoint says of itself, and what a stranger's may wrongly say."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import safetensors.torch
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
    "a model of complex numbers": (
        "model",
        lambda c: c | {"model": {k: v.to(torch.complex64) for k, v in c["model"].items()}},
    ),
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
        ({"arch": "wrn-10-99999999"}, "choose a smaller net"),
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


@pytest.mark.parametrize(
    "said, words",
    [
        ({"normalise": ((0.5, 0.5), (1, 1))}, "three numbers"),
        ({"normalise": (0.5, 0.5)}, "normalise is"),
        ({"normalise": "x"}, "normalise is"),
        ({"normalise": ((0.5,) * 3,)}, "normalise is"),
        ({"normalise": ((None,) * 3, (1,) * 3)}, "normalise is"),
        ({"dataset": "nope"}, "unknown data set 'nope'"),
        ({"arch": 3}, "arch is a name"),
        ({"activation": ["relu"]}, "activation is a name"),
        ({"path": None}, "path is a text or a Path"),
        ({"path": b"net.pt"}, "path is a text or a Path"),
    ],
)
def test_impossible_arguments_are_refused_in_one_line(tmp_path, said, words):
    path = tmp_path / "net.pt"
    torch.save(fastuiat.build_model("wrn-10-1").state_dict(), path)
    with pytest.raises(UserError, match=words) as refused:
        fastuiat.load_checkpoint(**({"path": path, "arch": "wrn-10-1"} | said))
    assert "\n" not in str(refused.value)


def test_a_pair_may_be_of_tensors_and_a_data_set_of_other_case(tmp_path):
    net = fastuiat.build_model("dm-wrn-10-1", 10, "silu")
    torch.save({k: v for k, v in net.state_dict().items() if "." in k}, tmp_path / "net.pt")
    _, info = fastuiat.load_checkpoint(tmp_path / "net.pt", "dm-wrn-10-1", dataset="SVHN")
    assert info["normalisation"]["mean"] == [0.5, 0.5, 0.5]
    pair = torch.tensor([[0.25] * 3, [0.5] * 3])
    _, info = fastuiat.load_checkpoint(tmp_path / "net.pt", "dm-wrn-10-1", normalise=pair)
    assert info["normalisation"]["mean"] == [0.25, 0.25, 0.25]


def test_metadata_of_others_are_hints_and_ours_are_believed(tmp_path):
    path = tmp_path / "net.safetensors"
    state = fastuiat.build_model("wrn-10-1", 10, "silu").state_dict()
    state = {key: value.contiguous() for key, value in state.items()}
    safetensors.torch.save_file(state, path, {"format": "pt", "arch": "resnet18"})
    with pytest.raises(UserError, match=r"--arch; its metadata.* arch resnet18"):
        fastuiat.load_checkpoint(path)
    _, info = fastuiat.load_checkpoint(path, "wrn-10-1")
    assert any("arch resnet18" in note for note in info["notes"])
    assert any("--mean and --std" in note for note in info["notes"])
    told = {"arch": "wrn-10-1", "num_classes": "10", "activation": "silu", "dataset": "digits"}
    safetensors.torch.save_file(state, path, told)
    _, info = fastuiat.load_checkpoint(path)
    assert (info["activation"], info["dataset"], info["notes"]) == ("silu", "digits", [])


def test_weights_of_impossible_types_and_values(tmp_path):
    path = tmp_path / "net.pt"
    state = fastuiat.build_model("wrn-10-1").state_dict()
    for kind in (torch.int8, torch.bool, torch.complex64):
        torch.save(state | {"fc.weight": state["fc.weight"].to(kind)}, path)
        with pytest.raises(UserError, match=rf"holds fc\.weight as {str(kind)[6:]}"):
            fastuiat.load_checkpoint(path, "wrn-10-1")
    torch.save(state | {"fc.bias": torch.full((10,), float("nan"))}, path)
    _, info = fastuiat.load_checkpoint(path, "wrn-10-1")
    assert "it holds weights that are not finite: fc.bias" in info["notes"]
    torch.save(state | {"bn1.running_var": -torch.ones(64)}, path)
    _, info = fastuiat.load_checkpoint(path, "wrn-10-1")
    assert "it holds negative variances: bn1.running_var" in info["notes"]


def test_the_library_says_what_it_guessed(tmp_path, caplog):
    path = tmp_path / "net.pt"
    torch.save({"net": fastuiat.build_model("wrn-10-1").state_dict(), "epoch": 3}, path)
    with caplog.at_level(logging.INFO, "fastuiat"):
        _, info = fastuiat.load_checkpoint(path, arch="wrn-10-1")
    said = [(r.levelname, r.getMessage()) for r in caplog.records]
    assert said == [("INFO", info["taken"])] + [
        ("WARNING", f"{path}: {note}") for note in info["notes"]
    ]
    assert "net, the raw weights" in info["taken"] and info["notes"]
