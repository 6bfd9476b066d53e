"""Whoever reads what fastuiat wrote says that it is damaged, by the file's name and its line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastuiat import export
from fastuiat.bench.gpu.results import json_lines
from fastuiat.bench.reading import read_records
from fastuiat.bench.record import RecordFile, make_record
from fastuiat.bench.timing import Measurement
from fastuiat.commands import settings_file
from fastuiat.config import UserError
from fastuiat.data import checked_once, preparation
from fastuiat.evaluation.record import refuse_foreign
from fastuiat.files import sha256_of, write_json
from fastuiat.report.runs import read_json, read_metrics, read_record
from fastuiat.reproduce import runs
from fastuiat.sealed import line
from fastuiat.training.config import TrainConfig
from fastuiat.training.folder import other_ranks, threads_in
from fastuiat.training.metrics import is_kept

RECORD = {"attack": "clean", "accuracy": 0.5, "n": 8, "checkpoint": {"sha256": "0", "path": "x"}}
STEPS = [
    {"kind": "train", "step": i, "epoch": 1, "loss": 0.125, "clock": {"images_per_second": 9.5}}
    for i in (1, 2, 3)
]


def spoil(path: Path, old: bytes, new: bytes) -> None:
    """One bit is another in both, and the length is the same."""
    content = path.read_bytes()
    assert content.count(old) == 1 and len(old) == len(new)
    path.write_bytes(content.replace(old, new))


@pytest.fixture
def folder(tmp_path) -> Path:
    """A run's files of text, each with a flipped bit in a number."""
    (tmp_path / "eval").mkdir()
    write_json(tmp_path / "eval" / "clean_n8.json", RECORD)
    spoil(tmp_path / "eval" / "clean_n8.json", b'"accuracy": 0.5', b'"accuracy": 0.4')
    write_json(tmp_path / "environment.json", {"threads": 1, "ranks": 1})
    spoil(tmp_path / "environment.json", b'"threads": 1', b'"threads": 3')
    write_json(tmp_path / "config.json", TrainConfig(dataset="digits").to_json())
    spoil(tmp_path / "config.json", b'"seed": 0', b'"seed": 1')
    write_json(tmp_path / "made.json", {"jobs": 2})
    spoil(tmp_path / "made.json", b"2", b"3")
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(map(line, STEPS)))
    spoil(tmp_path / "metrics.jsonl", b'"step": 2, "epoch": 1', b'"step": 2, "epoch": 0')
    return tmp_path


READERS = {
    "a report's record": lambda f: read_record(f / "eval/clean_n8.json"),
    "a report's settings": lambda f: read_json(f / "config.json"),
    "a report's log": lambda f: read_metrics(f / "metrics.jsonl"),
    "an evaluation": lambda f: refuse_foreign(f / "eval/clean_n8.json", {"sha256": "0"}, True),
    "a table's record": lambda f: runs.measured(f, "clean", 0.1, 8),
    "a table's log": lambda f: [*runs.logged_in(f)],
    "a table's machine": lambda f: runs.made(f, 1, torch.device("cpu")),
    "an export": lambda f: export.records_of(f, {}),
    "threads": threads_in,
    "settings": lambda f: settings_file.read(f),
}
NAMED = {"log": "metrics.jsonl, line 2", "record": "eval/clean_n8.json", "machine": "made.json"}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_says_so(reader, folder):
    with pytest.raises(UserError, match=NAMED.get(reader.split()[-1], r"\.json")) as raised:
        READERS[reader](folder)
    assert "\n" not in str(raised.value)


def test_a_resumed_log_drops_the_line_alone(folder):
    lines = (folder / "metrics.jsonl").read_bytes().splitlines()
    assert [is_kept(text, 9, 9) for text in lines] == [True, False, True]
    assert other_ranks(folder, 1, TrainConfig(dataset="digits")) is None  # `threads_in` refuses


def test_records_of_benches_by_their_line(tmp_path):
    path = tmp_path / "records.jsonl"
    measured = Measurement(name="fastuiat", samples=[0.25, 0.5, 0.75])
    record = make_record(
        suite="sorting", case="x", measured=measured, device=torch.device("cpu"), config={}
    )
    with RecordFile(path) as file:
        file.write([record, record | {"n": 4}])
    spoil(path, b'"n": 4', b'"n": 5')
    with pytest.raises(UserError, match=r"records\.jsonl:2 is damaged"):
        read_records(path)
    with pytest.raises(UserError, match=r"records\.jsonl, line 2"):
        list(json_lines(path))


def test_what_is_said_beside_prepared_pictures(tmp_path):
    path = tmp_path / "x.beton"
    write_json(path.with_suffix(".json"), {"skipped": 2, "bytes": 3})
    spoil(path.with_suffix(".json"), b'"skipped": 2', b'"skipped": 3')
    assert preparation._told(path) == {}


def test_a_large_file_is_read_once_until_it_is_touched(tmp_path, monkeypatch):
    path = tmp_path / "x.beton"
    path.write_bytes(b"x" * 9)
    sha256, count = sha256_of(path), []
    monkeypatch.setattr(
        "fastuiat.data.checked_once.sha256_of", lambda path: count.append(1) or sha256_of(path)
    )
    assert [checked_once.holds(path, sha256) for _ in range(3)] == [True] * 3 and len(count) == 1
    assert not checked_once.holds(path, "0" * 64)
    path.write_bytes(b"x" * 8 + b"y")
    assert not checked_once.holds(path, sha256) and not checked_once.holds(path, sha256)
    path.write_bytes(b"x" * 9)
    assert checked_once.holds(path, sha256)
