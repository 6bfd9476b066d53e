"""Comparing many records: work grows with them, charts and words are bounded."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from fastuiat.bench import compare, compare_page, compare_tables, floors
from fastuiat.bench.comparison import compare as compared
from fastuiat.bench.reading import read_records
from fastuiat.bench.record import config_hash
from fastuiat.cli import main
from tests.large import bench_records, calls_in, write_records

TWICE = 2.3
"""What twice as much may cost: once more than that is more than linear."""
CARDS = {name: floors.datasheets()[name] for name in floors.SHOWN}


def all_of_it(path: Path) -> None:
    """What `bench compare` does, its charts and the measuring of this CPU apart."""
    found = compared(read_records(path))
    compare.show_comparison(found, CARDS)
    compare_tables.csv_text(found, CARDS)
    compare_page.make_page(found, CARDS)


@pytest.mark.parametrize("distinct", [True, False])
def test_comparing_grows_with_the_records(distinct, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare_page, "add_charts", lambda *of_it: None)
    counts = []
    for n in (2, 200, 400):  # the first fills the caches
        write_records(tmp_path / "records.jsonl", n, distinct=distinct)
        counts.append(calls_in(lambda: all_of_it(tmp_path / "records.jsonl")))
    assert counts[2] < TWICE * counts[1]


def test_comparing_grows_with_the_devices(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare_page, "add_charts", lambda *of_it: None)
    cases, counts = list(bench_records(10, distinct=True))[::2], []
    for n in (2, 40, 80):  # the first fills the caches
        named = (f"card {i}" for i in range(n))
        records = [one | {"device": name, "gpu": None} for name in named for one in cases]
        (tmp_path / "r.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
        counts.append(calls_in(lambda: all_of_it(tmp_path / "r.jsonl")))
    assert counts[2] < TWICE * counts[1]


def test_a_net_is_built_once_for_all_its_batches(monkeypatch):
    built, build = [], floors.build_model

    def counting(*words):
        built.append(words)
        return build(*words)

    monkeypatch.setattr(floors, "build_model", counting)
    floors.held_by_two_images.cache_clear()
    works = [floors.work_of(record) for record in bench_records(40, distinct=True)]
    assert len(built) == 1 and len({work.live_bytes for work in works if work}) == 20


def test_charts_are_of_some_cases_and_the_table_of_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(compare_page, "MOST_GROUPS", 2)
    write_records(Path("r.jsonl"), 20, distinct=True)
    main(["bench", "compare", "r.jsonl", "--no-bounds", "--csv", "r.csv", "--html", "p.html"])
    text = Path("p.html").read_text()
    assert text.count("<figure") == 2 * 2  # time, and share of peak
    assert "Charts of the first 2 of 10 cases; the table has all." in text
    assert all(text.count(f"resnet-18/b{batch}/uiat</th>") == 1 for batch in range(3, 11))
    with open("r.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 20


def test_of_many_bars_the_extremes_are_drawn(monkeypatch):
    monkeypatch.setattr(compare_page, "MOST_BARS", 4)
    values = [5.0, None, 1.0, 4.0, 9.0, 2.0, 8.0, None]
    kept, said = compare_page.bars_of([values, [None, 3.0, *[None] * 6]])
    assert [[5.0, 3.0, 1.0, 4.0, 9.0, 2.0, 8.0, None][i] for i in kept] == [1.0, 9.0, 2.0, 8.0]
    assert "of 7 rows the 2 least and the 2 greatest" in said
    assert compare_page.bars_of([[1.0, None, 2.0]]) == ([0, 2], "")


def test_many_configurations_and_devices_are_said_in_short_lines(tmp_path, capsys):
    records = list(bench_records(80, distinct=False))
    for i, record in enumerate(records):
        record["config"] = record["config"] | {"eps": i // 2}
        record["config_hash"] = config_hash(record["config"])
    (said,) = compared(records).notes
    assert said.endswith("19 and 20 more)") and len(said) < 250
    many = tmp_path / "many.jsonl"
    lines = [json.dumps(record | {"device": f"card {i}"}) for i, record in enumerate(records * 2)]
    many.write_text("\n".join(lines))
    with pytest.raises(SystemExit) as stop:
        main(["bench", "compare", str(many), "--html", str(tmp_path / "p.html")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and len(error) < 700 and error.count("\n") == 1
    assert "160 devices" in error and "of 100 at most" in error
