"""Records are told apart by what the weights are, never by where they lie."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import fastuiat
from fastuiat.cli import main
from fastuiat.evaluation import record as module
from fastuiat.training.checkpoint import FORMAT
from fastuiat.training.config import TrainConfig

NET = {"arch": "wrn-10-1", "activation": "relu", "num_classes": 10, "dataset": "digits"}
EVAL = ["--attacks", "clean", "--n", "8"]


def state(seed: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    return fastuiat.build_model("wrn-10-1").state_dict()


def save(path: Path, seed: int, *, averaged: int | None = None, step: int = 1) -> None:
    content = {"format": FORMAT, "net": NET, "model": state(seed), "epoch": 1, "step": step}
    torch.save(content | {"averaged": averaged and state(averaged)}, path)


@pytest.fixture
def runs(tmp_path, monkeypatch) -> Path:
    """runs/sat and runs/uiat, of other weights."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("sat", "uiat")):
        folder = tmp_path / "runs" / name
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(TrainConfig(dataset="digits").to_json()))
        save(folder / "checkpoints" / "best.pt", 10 * number)
        save(folder / "checkpoints" / "last.pt", 10 * number + 1, averaged=10 * number + 2)
    return tmp_path / "runs"


def record(path: Path) -> dict:
    return json.loads(path.read_text())


def measured(capsys, *words: str) -> dict:
    capsys.readouterr()
    main(["eval", *words, *EVAL, "--json"])
    return json.loads(capsys.readouterr().out)["records"][0]


def test_a_run_is_the_same_by_any_path(runs, tmp_path, capsys, monkeypatch):
    """And after a move, and as a copy of its file: the record is renewed."""
    place = runs / "sat" / "eval" / "clean_n8.json"
    first = measured(capsys, "runs/sat")
    for words in (["runs/sat/"], [str(runs / "sat")], ["runs/sat/checkpoints/best.pt"]):
        assert measured(capsys, *words)["checkpoint"]["sha256"] == first["checkpoint"]["sha256"]
        assert record(place)["checkpoint"]["path"].startswith(
            words[0].split("/chec")[0].rstrip("/")
        )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    measured(capsys, "../runs/sat")
    monkeypatch.chdir(runs / "sat" / "checkpoints")
    measured(capsys, "best.pt")
    monkeypatch.chdir(tmp_path)
    shutil.move(runs / "sat", runs / "moved")
    moved = measured(capsys, "runs/moved")
    place = runs / "moved" / "eval" / "clean_n8.json"
    assert record(place)["checkpoint"] == moved["checkpoint"]
    shutil.copy(runs / "moved" / "checkpoints" / "best.pt", "copy.pt")
    measured(capsys, "copy.pt", "--out", "runs/moved")
    assert [p.name for p in (runs / "moved" / "eval").iterdir()] == ["clean_n8.json"]


def test_what_was_chosen_stands_beside_the_default(runs, capsys):
    measured(capsys, "runs/sat")
    measured(capsys, "runs/sat", "--which", "last")
    measured(capsys, "runs/sat/checkpoints/last.pt", "--weights", "raw")
    folder = runs / "sat" / "eval"
    names = ["clean_n8.json", "clean_n8_last.json", "clean_n8_last_raw.json"]
    assert sorted(p.name for p in folder.iterdir()) == names
    told = [record(folder / name)["checkpoint"] for name in names]
    assert [(c["which"], c["weights"], c["chosen"]) for c in told] == [
        ("best", "raw", []), ("last", "averaged", ["last"]), ("last", "raw", ["last", "raw"]),
    ]  # fmt: skip
    assert all("taken" in c and "notes" in c and "normalisation" in c for c in told)


def test_best_and_last_of_one_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"best": state(1), "last": state(2)}, "net.pt")
    words = ["net.pt", "--arch", "wrn-10-1", "--dataset", "digits", "--out", "out"]
    best, last = (measured(capsys, *words, "--which", which) for which in ("best", "last"))
    assert (best["checkpoint"]["nest"], last["checkpoint"]["nest"]) == ("best", "last")
    assert best["checkpoint"]["sha256"] == last["checkpoint"]["sha256"]
    names = ["clean_n8.json", "clean_n8_last.json"]
    assert sorted(p.name for p in Path("out/eval").iterdir()) == names


def test_records_of_other_weights_stay(runs, tmp_path, capsys, refusal):
    measured(capsys, "runs/sat", "--out", "shared")
    place = tmp_path / "shared" / "eval" / "clean_n8.json"
    before = place.read_bytes()
    said = refusal("eval", "runs/uiat", *EVAL, "--out", "shared")
    assert "another checkpoint (runs/sat/checkpoints/best.pt" in said
    assert "choose another --out" in said and place.read_bytes() == before
    measured(capsys, "runs/uiat", "--out", "runs/sat")
    assert "another checkpoint" in refusal("eval", "runs/sat", *EVAL)
    torch.save({"state_dict": state(1), "state_dict_ema": state(2)}, "net.pt")
    words = ["net.pt", "--arch", "wrn-10-1", "--dataset", "digits"]
    measured(capsys, *words, "--out", "one")
    constants = ["--mean", "0.5", "0.5", "0.5", "--std", "0.2,0.2,0.2"]
    said = refusal("eval", *words, *EVAL, *constants, "--out", "one")
    assert "another choice from this file (net.pt, state_dict_ema, averaged)" in said
    assert "another" in refusal("eval", *words, *EVAL, "--activation", "silu", "--out", "one")


def test_a_run_that_trained_on_renews_its_own(runs, capsys, refusal):
    """What it measured of itself, with its older best checkpoint; not what others put there."""
    old = measured(capsys, "runs/sat")
    assert old["of_this_run"]
    save(runs / "sat" / "checkpoints" / "best.pt", 5, step=9)
    new = measured(capsys, "runs/sat")
    assert new["checkpoint"]["sha256"] != old["checkpoint"]["sha256"]
    assert record(runs / "sat" / "eval" / "clean_n8.json")["checkpoint"] == new["checkpoint"]
    assert "another checkpoint" in refusal("eval", "runs/uiat", *EVAL, "--out", "runs/sat")


def test_older_records_tell_less(runs, capsys, refusal):
    """Path, sha256, weights, arch and activation: enough to know them again."""
    new = measured(capsys, "runs/sat")
    kept = ("path", "sha256", "weights", "arch", "activation", "num_classes", "dataset")
    older = {k: v for k, v in new.items() if k != "of_this_run"}
    older["checkpoint"] = {k: new["checkpoint"][k] for k in kept} | {"path": "gone/best.pt"}
    place = runs / "sat" / "eval" / "clean_n8.json"
    place.write_text(json.dumps(older))
    assert measured(capsys, "runs/sat")["correct"] == new["correct"]
    older["checkpoint"]["sha256"] = "0" * 64
    place.write_text(json.dumps(older))
    assert "gone/best.pt" in refusal("eval", "runs/sat", *EVAL)
    for broken in ("[]", "{", '{"checkpoint": 5}', '{"checkpoint": null}'):
        place.write_text(broken)
        assert "is no evaluation record" in refusal("eval", "runs/sat", *EVAL)


def test_the_state_of_an_unfinished_evaluation_has_the_records_name(runs, capsys, monkeypatch):
    from fastuiat.evaluation.attacks import get

    seen = []
    kind = get("clean")
    measure = kind.measure
    monkeypatch.setattr(
        kind, "measure", lambda self, evaluation, eps, state: seen.append(state.name)
        or measure(self, evaluation, eps, state),
    )  # fmt: skip
    measured(capsys, "runs/sat", "--which", "last", "--weights", "raw")
    assert seen == ["clean_n8_last_raw.state"]


def test_a_report_keeps_the_choices_apart(runs, capsys):
    from fastuiat.report.runs import read_run

    measured(capsys, "runs/sat")
    measured(capsys, "runs/sat", "--which", "last", "--weights", "raw")
    run = read_run(runs / "sat")
    assert [r.attack for r in run.records] == ["clean", "clean, last checkpoint, raw weights"]
    (default,) = [r for r in run.records if r.attack == "clean"]
    assert run.record("clean") is default and default.values["checkpoint"]["which"] == "best"


@pytest.mark.parametrize("now", ["nothing", "a link", "a link beside"])
def test_records_do_not_follow_a_folder_that_went_meanwhile(
    now, runs, tmp_path, refusal, monkeypatch
):
    """Between the first and the second of two records; that of no run is held itself."""
    out = tmp_path / "apart" if now == "a link beside" else runs / "sat"
    folder = out / "eval"
    aside, foreign = tmp_path / "aside", out / "mine" if now == "a link beside" else tmp_path / "x"
    write = module.write_json

    def then_gone(path, value):
        write(path, value)
        if not aside.exists():
            folder.rename(aside)
            if now != "nothing":
                foreign.mkdir()
                folder.symlink_to(foreign)

    monkeypatch.setattr(module, "write_json", then_gone)
    words = (*EVAL[:2], "pgd", "--steps", "1", *EVAL[2:], "--out", str(out))
    said = refusal("eval", "runs/sat", *words)
    assert ("is a link to" if now == "a link" else "removed or renamed meanwhile") in said
    assert [path.name for path in aside.iterdir() if path.name != ".lock"] == ["clean_n8.json"]
    assert now == "nothing" or not [*foreign.iterdir()]
