"""reproduce --record and --rows: finished runs on file, and only the rows that are asked for."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastuiat import data, recipes, reproduce
from fastuiat.config import UserError
from fastuiat.files import sha256_of
from fastuiat.reproduce import Options, rows
from fastuiat.reproduce.ledger import Ledger, first_difference
from fastuiat.reproduce.recorded import curves_of, gain, table_of

sys.path.insert(0, str(Path(__file__).parent))
from test_reproduce import runs, small

__all__ = ["runs"]


def filled(options: Options) -> dict[str, dict]:
    """The table's rows by name."""
    out = reproduce.reproduce(options, lambda text: None)
    document = json.loads((out / f"{options.table}.json").read_text())
    return {row["row"]: row for row in document["rows"]}


def test_rows_by_name_and_pattern():
    def names(*patterns: str) -> list[str]:
        options = Options(table="cifar10-small", rows=patterns)
        return [row.name for row in rows.rows_of(options)]

    readings = ["pgd-5/uiat-eval", "pgd-5/uiat-train", "pgd-5/uiat-attached"]
    assert names("pgd-5/sat", "pgd-5/uiat-[eta]*[lnd]") == ["pgd-5/sat", *readings]
    assert names("pgd-10/*") == ["pgd-10/sat", "pgd-10/uiat"]
    assert len(names()) == 13
    with pytest.raises(UserError, match="--rows nothing: no such row, there are pgd-5/sat"):
        names("pgd-5/sat", "nothing")


def test_a_run_on_record_is_not_made_again(runs, tmp_path):
    record = tmp_path / "kept" / "runs.jsonl"
    first = filled(small("table6", rows=("iat", "uag"), record=record, out=tmp_path / "a"))
    assert len(runs.of("train")) == 2
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    assert [(line["row"], line["seed"]) for line in lines] == [("iat", 0), ("uag", 0)]
    for line in lines:
        assert line["table"] == "table6" and set(line["n"].values()) == {32}
        assert line["accuracies"] == first[line["row"]]["seeds"]["0"]
        assert [epoch["epoch"] for epoch in line["curve"]] == [1, 2]
        assert line["settings"]["settings"]["beta"] == 0 and line["made"]["device"]
    # On another machine: the folders are gone, and one row more is asked for.
    runs.calls.clear()
    again = filled(small("table6", rows=("iat", "uag*"), record=record, out=tmp_path / "b"))
    trained = [words[words.index("--recipe") + 1] for words in runs.of("train")]
    assert trained == ["table6/uag+fr", "table6/uag+iam", "table6/uag+fr+iam"]
    assert again["iat"]["ours"] == first["iat"]["ours"]
    assert len(record.read_text().splitlines()) == 5
    # What is on record and in its folder stays once on record.
    filled(small("table6", rows=("iat", "uag*"), record=record, out=tmp_path / "b"))
    assert len(record.read_text().splitlines()) == 5


def test_a_failed_run_is_not_on_record(runs, tmp_path):
    record = tmp_path / "runs.jsonl"
    runs.fails = ("table6/uag",)
    with pytest.raises(UserError, match="1 of 2 rows failed"):
        filled(small("table6", rows=("iat", "uag"), record=record))
    assert [json.loads(line)["row"] for line in record.read_text().splitlines()] == ["iat"]


def test_a_record_of_other_settings_is_refused(runs, tmp_path, monkeypatch):
    record = tmp_path / "runs.jsonl"
    filled(small("table6", rows=("iat",), record=record, out=tmp_path / "a"))
    runs.calls.clear()
    for other, said in (
        ({"epochs": 4}, "epochs 3, not 4"),
        ({"n": 16}, "natural 32, not 16"),
        ({"arch": "wrn-10-2"}, "arch wrn-10-1, not wrn-10-2"),
    ):
        options = small("table6", rows=("iat",), record=record, out=tmp_path / "b", **other)
        with pytest.raises(UserError, match=f"has iat, seed 0, with {said}"):
            filled(options)
    layer = recipes.RECIPES["table6/iat"]
    monkeypatch.setitem(layer.settings, "lam", 1.0)
    with pytest.raises(UserError, match=r"lam 3\.5, not 1\.0"):
        filled(small("table6", rows=("iat",), record=record, out=tmp_path / "b"))
    assert runs.calls == [] and not (tmp_path / "b").exists()


@pytest.mark.parametrize("part", ["train", "test"])
def test_runs_of_other_data_are_not_mixed_in(runs, tmp_path, monkeypatch, part):
    """Those on file, and those in their folders."""
    record = tmp_path / "runs.jsonl"
    filled(small("table6", rows=("iat",), record=record, out=tmp_path / "a"))
    (line,) = map(json.loads, record.read_text().splitlines())
    found = data.load("digits", tmp_path, part)
    assert line["data"][part] == found.fingerprint.sha256
    (folder,) = (tmp_path / "a").glob("iat/seed-0")
    for name in ("last", "best"):
        path = folder / "checkpoints" / f"{name}.pt"
        known = {"train": data.load("digits", tmp_path, "train").fingerprint.to_json()}
        torch.save({"data": known, **torch.load(path, weights_only=True)}, path)
    sha = sha256_of(folder / "checkpoints" / "best.pt")
    for path in (folder / "eval").glob("*.json"):
        test = data.load("digits", tmp_path, "test").fingerprint.to_json()
        content = json.loads(path.read_text()) | {"checkpoint": {"sha256": sha}}
        path.write_text(json.dumps(content | {"attack": "x", "dataset": "digits", "data": test}))
    runs.calls.clear()
    filled(small("table6", rows=("iat",), out=tmp_path / "a"))
    assert runs.calls == []  # the same data: what is there counts

    real = data.load

    def changed(name, data_dir, split, unchecked=False):
        images = real(name, data_dir, split)
        if split != part:
            return images
        other = images.labels[::-1].copy()
        return data.fingerprinted(replace(images, labels=other, fingerprint=None), split)

    monkeypatch.setattr(data, "load", changed)
    with pytest.raises(UserError, match=f"has iat, seed 0, of other {part} images or labels"):
        filled(small("table6", rows=("iat",), record=record, out=tmp_path / "b"))
    with pytest.raises(UserError, match="1 of 1 rows failed"):
        filled(small("table6", rows=("iat",), out=tmp_path / "a"))
    table = json.loads((tmp_path / "a" / "table6.json").read_text())
    assert "the labels of the " in table["rows"][0]["failed"]
    assert runs.calls == []


def test_settings_that_came_later_count_as_they_were():
    assert (
        first_difference({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 2, "d": 3}, "e": 4}) is None
    )
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 2}}) == "b 1, not 2"
    assert first_difference({"a": 1}, {}) == "a 1, not None"


def test_a_line_that_was_cut_off_is_finished_with(tmp_path):
    """A process killed while it wrote leaves half a line: it is no run, and stays no obstacle."""
    path = tmp_path / "runs.jsonl"
    whole = run_of("sat", 0, 40, 30)
    path.write_text(whole + "\n" + whole[:20])  # and a blank line, as a merge by hand leaves one
    ledger, beside = Ledger(path, "small"), Ledger(path, "small")
    assert list(ledger.lines) == [("pgd-5/sat", 0)]
    (row,) = rows.rows_of(Options(table="table6", rows=("iat",)))
    content = {"accuracies": {}, "n": {}, "curve": [], "made": {"time": "2026-02-01"}}
    ledger.add(row, 1, content)
    beside.add(row, 1, content)  # by another process, which had read the file before
    beside.add(row, 2, content)
    assert set(Ledger(path, "small").lines) == {("pgd-5/sat", 0), ("iat", 1), ("iat", 2)}
    assert len(list(filter(None, path.read_text().splitlines()))) == 3
    changed = (
        {"seed": []}, {"accuracies": {"pgd": "high"}}, {"n": 5}, {"curve": [[]]}, {"made": {}},
    )  # fmt: skip
    impossible = (json.dumps(json.loads(whole) | change) + "\n" for change in changed)
    begun = '{"table": "small", "row": "a", "seed": 0}\n'
    for damaged in ("not a run\n", "[]\n", '"x"\n', begun, *impossible):
        path.write_text(whole + damaged)
        with pytest.raises(UserError, match="line 2, is no record of a run"):
            Ledger(path, "small")
    assert Ledger(tmp_path / "none.jsonl", "t").lines == {}
    with pytest.raises(UserError, match="cannot be read"):
        Ledger(tmp_path, "t")


def run_of(row: str, seed: int, natural: float, pgd: float, device: str = "a CPU") -> str:
    line = {
        "table": "small",
        "row": f"pgd-5/{row}",
        "seed": seed,
        "settings": {"method": row.removesuffix("-eval")},
        "accuracies": {"natural": natural, "pgd": pgd},
        "n": {"natural": 9, "pgd": 7},
        "curve": [
            {"epoch": e, "val_natural": natural / 200 * e, "val_robust": pgd / 200 * e}
            for e in (1, 2)
        ],
        "made": {
            "device": device,
            "cpu": {"features": ["avx2"]},
            "versions": {"torch": "9.9", "fastuiat": "0.1"},
            "commit": "abcdef0123456789",
            "precision": "fp32",
            "time": f"2026-02-0{seed + 1}T04:05:06+00:00",
        },
    }
    return json.dumps(line) + "\n"


def test_a_record_as_a_table(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text(
        "".join(
            [
                *(run_of("sat", seed, 40 + seed, 30) for seed in (0, 1, 2)),
                *(run_of("uiat-eval", seed, 42 + seed, 20 + 2 * seed) for seed in (0, 1)),
                run_of("n-fgsm+uiat", 0, 50, 35, device="another"),
                run_of("n-fgsm", 0, 49, 34),
            ]
        )
    )
    text = table_of(path, "small")
    lines = text.splitlines()
    assert lines[0] == (
        "| row | seeds | natural | PGD-20 | beside | natural, gain | PGD-20, gain | "
        "paper: natural | paper: PGD-20 |"
    )
    assert "| pgd-5/sat | 3 | 41.0 ± 1.0 | 30.0 ± 0.0 | – | – | – | 83.80 | 51.40 |" in lines
    # +2, +2 by seed; −10 and −8: both are above twice their spread.
    assert (
        "| pgd-5/uiat-eval | 2 | 42.5 ± 0.7 | 21.0 ± 1.4 | pgd-5/sat | **+2.0 ± 0.0** | "
        "**-9.0 ± 1.4** | 85.01 | 54.63 |" in lines
    )
    assert "| pgd-5/n-fgsm+uiat | 1 | 50.0 | 35.0 | pgd-5/n-fgsm † | +1.0 | +1.0 | – | – |" in lines
    assert "natural 9, pgd 7." in text
    assert "Made on a CPU (avx2), fp32; fastuiat 0.1, torch 9.9 at abcdef0123; 6 runs; " in text
    assert "Made on another (avx2), fp32" in text and "1 runs; 2026-02-01." in text
    curves = curves_of(path, "small").splitlines()
    assert "| pgd-5/uiat-eval | natural | 21 | 42 |" in curves
    assert "| pgd-5/uiat-eval | PGD-10 | 11 | 21 |" in curves
    assert table_of(tmp_path / "none", "small") == curves_of(tmp_path / "none", "small")
    assert table_of(path, "another table") == "Not measured yet.\n"


def test_a_run_may_be_measured_in_two_goes(tmp_path):
    """A line that lacks a column is no finished run, and one that has it takes its place."""
    path = tmp_path / "runs.jsonl"
    sat = [run_of("sat", seed, 40 + seed, 30) for seed in (0, 1)]
    natural_alone = json.loads(sat[1])
    for part in ("accuracies", "n"):
        del natural_alone[part]["pgd"]
    path.write_text(sat[0] + json.dumps(natural_alone) + "\n")
    assert "| pgd-5/sat | 2 | 40.5 ± 0.7 | 30.0 (1 seed) | – |" in table_of(path, "small")
    (row,) = rows.rows_of(Options(table="table6", rows=("iat",)))
    ledger, points = Ledger(path, "table6"), {"natural": 9, "pgd": 7}
    made = {"time": "2026-02-01"}
    less = {"accuracies": {"natural": 1.0}, "n": {"natural": 9}, "curve": [], "made": made}
    more = less | {"accuracies": {"natural": 1.0, "pgd": 2.0}, "n": points}
    ledger.add(row, 0, less)
    assert ledger.find(row, 0, points) is None and ledger.find(row, 0, {"natural": 9}) is not None
    ledger.add(row, 0, more)
    ledger.add(row, 0, less)
    for read in (ledger, Ledger(path, "table6")):
        line = read.find(row, 0, points)
        assert line is not None and line["accuracies"]["pgd"] == 2.0
    assert path.read_text().count('"table6"') == 2
    with pytest.raises(UserError, match="natural 9, not 8"):
        ledger.find(row, 0, {"natural": 8, "pgd": 7})


def test_a_gain_is_shown_above_twice_its_spread():
    def runs(*values: float) -> dict[int, dict[str, float]]:
        return {seed: {"pgd": value} for seed, value in enumerate(values)}

    assert gain(runs(3, 5), runs(1, 2), "pgd") == "**+2.5 ± 0.7**"
    assert gain(runs(2, 5), runs(1, 2), "pgd") == "+2.0 ± 1.4"
    assert gain(runs(2), runs(1, 2), "pgd") == "+1.0"
    assert gain(runs(), runs(1, 2), "pgd") == "–"


def test_what_the_presets_on_cifar10_are():
    def made(table: str) -> dict[str, rows.Row]:
        return {row.name: row for row in rows.rows_of(Options(table=table))}

    small = made("cifar10-small")
    for name, row in small.items():
        c, attack = row.config, row.config.settings.attack
        assert (c.arch, c.train_size, c.val_size, c.epochs, c.batch_size) == (
            ("wrn-10-2", 12_800, 1000, 14, 128)
        )
        assert (c.optimizer.max_lr, c.optimizer.schedule, c.optimizer.nesterov) == (
            (0.1, "one-cycle", True)
        )
        if "n-fgsm" not in name:
            wanted = (5, 3 / 255) if name.startswith("pgd-5") else (10, 2 / 255)
            assert (attack.steps, attack.alpha) == wanted and row.eps == 8 / 255
        for setting in ("momentum_epoch", "oneoff_epoch"):
            assert getattr(c.settings, setting, 11) == 11
    for reading in ("eval", "train", "attached"):
        assert small[f"pgd-5/uiat-{reading}"].config.settings.inverse_forward == reading
    assert rows.scale_of(Options(table="cifar10-small")).seeds == (0, 1, 2)
    large = made("cifar10-20")
    readings = {n: r.config.settings.inverse_forward for n, r in large.items() if "uiat" in n}
    assert list(large)[:4] == ["sat", "uiat", "uiat-oneoff", "trades"]
    assert sorted(readings[n] for n in readings if n != "uiat-oneoff") == [
        "attached",
        "eval",
        "train",
    ]
    uiat, oneoff = (large[n].config for n in ("uiat", "uiat-oneoff"))
    assert (uiat.arch, uiat.epochs, uiat.batch_size) == ("resnet-18", 20, 128)
    assert (uiat.settings.momentum_epoch, oneoff.settings.oneoff_epoch) == (15, 16)
    points = rows.scale_of(Options(table="cifar10-20")).points(10_000)
    assert points == {"natural": 10_000, "pgd": 10_000, "autoattack": 1000}
