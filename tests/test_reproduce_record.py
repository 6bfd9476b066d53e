"""reproduce --record and --rows: finished runs on file, and only the rows that are asked for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fastuiat import recipes, reproduce
from fastuiat.config import UserError
from fastuiat.reproduce import Options, rows
from fastuiat.reproduce.ledger import Ledger, first_difference

sys.path.insert(0, str(Path(__file__).parent))
from test_reproduce import configure, runs, small

__all__ = ["runs"]


def filled(options: Options) -> dict[str, dict]:
    """The table's rows by name."""
    out = reproduce.reproduce(options, configure, lambda text: None)
    document = json.loads((out / f"{options.table}.json").read_text())
    return {row["row"]: row for row in document["rows"]}


def test_rows_by_name_and_pattern():
    def names(*patterns: str) -> list[str]:
        options = Options(table="cifar10-small", rows=patterns)
        return [row.name for row in rows.rows_of(options, configure)]

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


def test_settings_that_came_later_count_as_they_were():
    assert (
        first_difference({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 2, "d": 3}, "e": 4}) is None
    )
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 2}}) == "b 1, not 2"
    assert first_difference({"a": 1}, {}) == "a 1, not None"


def test_a_line_that_was_cut_off_is_finished_with(tmp_path):
    """A process killed while it wrote leaves half a line: it is no run, and stays no obstacle."""
    path = tmp_path / "runs.jsonl"
    whole = json.dumps({"table": "t", "row": "a", "seed": 0})
    path.write_text(whole + "\n" + whole[:20])
    ledger = Ledger(path, "t")
    assert list(ledger.lines) == [("a", 0)]
    (row,) = rows.rows_of(Options(table="table6", rows=("iat",)), configure)
    ledger.add(row, 1, {})
    assert set(Ledger(path, "t").lines) == {("a", 0), ("iat", 1)}
    path.write_text("not a run\n" + whole + "\n")
    with pytest.raises(UserError, match="line 1, is no record of a run"):
        Ledger(path, "t")
    assert Ledger(tmp_path / "none.jsonl", "t").lines == {}
    with pytest.raises(UserError, match="cannot be read"):
        Ledger(tmp_path, "t")
