"""A table of many rows: its record is read once, and what is finished is cheap to skip."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

from fastuiat import reproduce
from fastuiat.reproduce import Options, ledger, rows
from fastuiat.reproduce.ledger import Ledger
from tests.large import calls_in

sys.path.insert(0, str(Path(__file__).parent))
from test_reproduce import runs, small

__all__ = ["runs"]
TWICE = 2.3
"""What twice as much may cost."""


def a_run(columns: tuple[str, ...] = ("natural",), epochs: int = 20) -> dict:
    curve = [{"epoch": e, "val_robust": 0.5, "loss": 1.25} for e in range(1, epochs + 1)]
    accuracies = dict.fromkeys(columns, 50.0)
    return {
        "accuracies": accuracies,
        "n": dict.fromkeys(accuracies, 32),
        "curve": curve,
        "made": {"time": "2026-02-01"},
    }


@pytest.fixture
def parsed(monkeypatch):
    """The lines that were parsed."""
    lines, unsealed = [], ledger.sealed.unsealed
    monkeypatch.setattr(
        ledger.sealed, "unsealed", lambda text: lines.append(text) or unsealed(text)
    )
    return lines


def test_a_line_on_record_is_parsed_once(tmp_path, parsed):
    (row,) = rows.rows_of(Options(table="table6", rows=("iat",)))
    path = tmp_path / "runs.jsonl"
    own, others = Ledger(path, "small"), Ledger(path, "small")
    for seed in range(40):
        own.add(row, seed, a_run())
        others.read()
        others.read()
    assert parsed == path.read_bytes().splitlines(keepends=True) and len(parsed) == 40
    assert own.lines.keys() == others.lines.keys() == {("iat", seed) for seed in range(40)}
    assert own.lines["iat", 7]["curve"] == others.lines["iat", 7]["curve"]


def test_a_record_that_was_replaced_is_read_anew(tmp_path, parsed):
    (row,) = rows.rows_of(Options(table="table6", rows=("iat",)))
    path = tmp_path / "runs.jsonl"
    here = Ledger(path, "small")
    for seed in range(3):
        here.add(row, seed, a_run())
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:1], lines[2]]))  # in place, a line fewer
    here.read()
    assert set(here.lines) == {("iat", 0), ("iat", 2)}
    other = tmp_path / "other.jsonl"
    other.write_bytes(b"".join(lines))
    other.replace(path)
    here.read()
    assert set(here.lines) == {("iat", 0), ("iat", 1), ("iat", 2)} and len(parsed) == 5
    path.unlink()
    here.read()
    assert not here.lines


@pytest.fixture
def saved(monkeypatch, tmp_path):
    """The names of the tables that were saved."""
    names, write = [], reproduce.write_json

    def counting(path, value):
        names.append(path.name)
        write(path, value)

    monkeypatch.setattr(reproduce, "write_json", counting)
    return names


def test_a_table_is_saved_once_a_run_and_once_for_all_that_are_finished(runs, saved, tmp_path):
    options = small("table6", rows=("iat",), seeds=(0, 1, 2), out=tmp_path / "o")
    reproduce.reproduce(options, lambda text: None)
    made = len(runs.of("train"))
    assert len(saved) == made == 3
    before = (tmp_path / "o" / "table6.json").read_bytes()
    saved.clear()
    reproduce.reproduce(options, lambda text: None)
    assert saved == ["table6.json"] and len(runs.of("train")) == made
    assert (tmp_path / "o" / "table6.json").read_bytes() == before


def test_skipping_what_is_on_record_grows_with_it(runs, tmp_path, monkeypatch):
    path, costs, made, summed, summarise = tmp_path / "runs.jsonl", [], 0, [], reproduce.summarise
    monkeypatch.setattr(reproduce, "summarise", lambda *of: summed.append(of) or summarise(*of))
    for count in (2, 15, 30):  # the first fills the caches
        seeds = tuple(range(count))
        options = small("table6", rows=("iat",), seeds=seeds, record=path, out=tmp_path / "o")
        (row,) = rows.rows_of(options)
        record, columns = Ledger(path, "table6"), rows.scale_of(options).columns
        for seed in range(made, count):
            record.add(row, seed, a_run(columns) | {"seconds_per_epoch": 1.0})
        made = count
        costs.append(calls_in(partial(reproduce.reproduce, options, lambda text: None)))
    assert not runs.calls and costs[2] < TWICE * costs[1], costs
    assert len(summed) == 3 * 2  # to be saved, and to be shown
