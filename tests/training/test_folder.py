"""A checkpoint carries the settings of its run, and what lies beside it is held against them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

from fastuiat.cli import main
from fastuiat.config import UserError
from fastuiat.training import run
from fastuiat.training.config import plain
from fastuiat.training.folder import FREE_ON_RESUME, config_of, refuse_folder
from tests.training.tiny import TINY

MADE = dataclasses.replace(TINY, method="rs-fgsm", settings=None, epochs=3, max_steps=3)


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A run that stopped inside its second epoch, as it lies on the disk."""
    folder = tmp_path_factory.mktemp("begun") / "run"
    return run.train(dataclasses.replace(MADE, out=folder), say=lambda _: None)


@pytest.fixture
def folder(begun, tmp_path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "run"))


def edit(path: Path, **changed: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(folder: Path, capsys, *words: str) -> str:
    """The one line of a `train --resume`, which leaves the folder as it was."""
    before = contents(folder)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["train", "--resume", str(folder), *words])
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("fastuiat: ") and said.count("\n") == 1, said
    assert contents(folder) == before
    return said


def state_of(folder: Path) -> dict:
    return torch.load(folder / "checkpoints" / "last.pt", weights_only=True)


def test_a_checkpoint_carries_what_config_json_says(folder):
    for name in ("last", "best"):
        state = torch.load(folder / "checkpoints" / f"{name}.pt", weights_only=True)
        stored = json.loads((folder / "config.json").read_text())
        assert state["settings"] | {"out": stored["out"]} == stored
        assert state["settings"] == plain(config_of(folder))


OTHER = {
    "dataset": "fashion-mnist",
    "resolution": 64,
    "augment": "none",
    "flip": False,
    "arch": "wrn-10-2",
    "activation": "silu",
    "method": "n-fgsm",
    "epochs": 4,
    "batch_size": 16,
    "accumulate": 2,
    "batchnorm": "sync",
    "seed": 1,
    "precision": "bf16",
    "compile": True,
    "extra_data": "more.npz",
    "extra_share": 0.5,
    "helper": "runs/other",
    "init": "runs/first",
    "freeze_epochs": 1,
    "weight_averaging": 0.5,
    "val_size": 17,
    "train_size": None,
    "test_every": 1,
    "max_steps": 4,
    "recipe": "table5/cifar10/rs-fgsm",
    "device": "cuda",
}


def test_the_other_values_are_of_all_settings():
    """So that a setting which is added is tried as well."""
    names = MADE.to_json().keys() - FREE_ON_RESUME - {"optimizer", "settings"}
    assert names == OTHER.keys()


@pytest.mark.parametrize("name", OTHER)
def test_a_setting_that_was_edited_is_refused(name, folder, capsys):
    value = json.loads((folder / "config.json").read_text())[name]
    edit(folder / "config.json", **{name: OTHER[name]})
    said = refused(folder, capsys)
    if name not in ("device", "compile"):  # this machine may say no before
        assert f"{name} is {OTHER[name]}, but the run was trained with {value}" in said


@pytest.mark.parametrize(
    "group, name, value", [("optimizer", "max_lr", 0.3), ("settings", "eps", 0.125)]
)
def test_a_nested_setting_that_was_edited_is_refused(group, name, value, folder, capsys):
    stored = json.loads((folder / "config.json").read_text())
    nested = stored[group] if name in stored[group] else stored[group]["attack"]
    before = nested[name]
    nested[name] = value
    (folder / "config.json").write_text(json.dumps(stored))
    said = refused(folder, capsys)
    assert f"{name} is {value}, but the run was trained with {before}" in said


def test_what_moves_no_number_may_be_edited(folder, capsys):
    edit(folder / "config.json", workers=2, log_every=7, checkpoint_minutes=1.0, data_dir="other")
    main(["train", "--resume", str(folder)])
    assert "is finished" in capsys.readouterr().out


def test_an_edit_by_hand_is_refused_by_its_name_and_so_is_damage(folder, capsys):
    path = folder / "config.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"seed": 0', b'"seed": 1'))
    said = refused(folder, capsys)
    assert "config.json" in said and "it says seed is 1, the checkpoint 0" in said
    path.write_bytes(whole.replace(b'"workers": ', b'"workerz": '))
    assert "damaged, or edited by hand" in refused(folder, capsys)
    for damage in (b'"see\xe4": 0', b'"seed"  0'):
        path.write_bytes(whole.replace(b'"seed": 0', damage))
        assert "config.json cannot be read" in refused(folder, capsys)
    path.write_bytes(whole.rstrip().replace(b'"log_every": ', b'"log_every": 1'))
    main(["train", "--resume", str(folder)])
    assert "is finished" in capsys.readouterr().out


def test_a_lost_config_json_is_written_anew_from_the_checkpoint(folder, capsys):
    path = folder / "config.json"
    before = json.loads(path.read_text())
    path.unlink()
    with pytest.raises(UserError, match="holds a run"):
        refuse_folder(folder)
    main(["train", "--resume", str(folder)])
    assert "config.json was missing: it is written anew as" in capsys.readouterr().out
    assert json.loads(path.read_text()) == before | {"out": str(folder)}


def test_one_that_no_checkpoint_carries_is_one_line(folder, capsys):
    state = state_of(folder)
    del state["settings"]
    torch.save(state, folder / "checkpoints" / "last.pt")
    (folder / "config.json").unlink()
    assert "config.json is missing" in refused(folder, capsys)
    with pytest.raises(SystemExit):
        main(["eval", str(folder), "--attacks", "clean"])
    assert "config.json is missing" in capsys.readouterr().err
    main(["eval", str(folder), "--attacks", "clean", "--n", "8", "--data-dir", "data"])
    assert (folder / "eval" / "clean_n8.json").exists()  # and not beside the run


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", "3", "[" * 100_000], ids=lambda c: c[:4]
)
def test_a_broken_config_json_is_kept_and_said(content, folder, capsys):
    """Somebody may want it: it is not overwritten."""
    (folder / "config.json").write_text(content)
    assert "config.json" in (said := refused(folder, capsys)) and "remove it, and" in said
    with pytest.raises(SystemExit):
        main(["eval", str(folder), "--attacks", "clean"])
    said = capsys.readouterr().err
    assert "config.json" in said and said.count("\n") == 1


@pytest.mark.parametrize("content", ["{}", '{"dataset": "digits"}'])
def test_settings_that_lack_what_every_run_has_are_one_line(content, folder, capsys):
    (folder / "config.json").write_text(content)
    assert "lacks" in refused(folder, capsys)
    with pytest.raises(SystemExit):
        main(["eval", str(folder), "--attacks", "clean"])
    said = capsys.readouterr().err
    assert "config.json" in said and "lacks" in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "settings", [[], [[]], [["lam", 3]], 5, "x", {"attack": 3}, {"attack": []}]
)
def test_settings_that_are_none_are_one_line(settings, folder, capsys):
    edit(folder / "config.json", settings=settings)
    refused(folder, capsys)


@pytest.mark.parametrize(
    "content",
    [None, "", "threads: 2", "[]", "{}", '{"threads": "2"}', '{"threads": 0}', '{"threads": 2.5}',
     '{"threads": true}', '{"threads": null}', '{"threads": [1]}', '{"threads": 1000000000}',
     '{"threads": -1}', "null", "5", b"\xff\xfe\x00"],
)  # fmt: skip
def test_an_environment_json_without_its_threads_is_one_line(content, folder, capsys):
    path = folder / "environment.json"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refused(folder, capsys)
    assert "environment.json" in said and '{"threads": N}' in said


def test_no_new_run_goes_where_one_lost_its_settings(folder, capsys):
    (folder / "config.json").unlink()
    before = contents(folder)
    with pytest.raises(SystemExit):
        main(["train", "--dataset", "digits", "--arch", "wrn-10-1", "--out", str(folder)])
    assert "already holds a run" in capsys.readouterr().err
    assert contents(folder) == before


@pytest.mark.parametrize(
    "name",
    ["model", "averaged", "optimizer", "scaler", "method", "best", "catastrophic", "sums",
     "summed", "validated_epoch", "metrics_offset", "step", "epoch", "net"],
)  # fmt: skip
def test_a_checkpoint_that_lacks_something(name, folder, capsys):
    last = folder / "checkpoints" / "last.pt"
    state = torch.load(last)
    del state[name]
    torch.save(state, last)
    assert name in refused(folder, capsys) and str(last) in refused(folder, capsys)


@pytest.mark.parametrize(
    "changed", [{"step": 10**9}, {"best": float("nan")}, {"settings": [1]}, {"sums": 3}]
)
def test_a_checkpoint_that_says_what_cannot_be(changed, folder, capsys):
    last = folder / "checkpoints" / "last.pt"
    torch.save(torch.load(last) | changed, last)
    assert str(last) in refused(folder, capsys)
