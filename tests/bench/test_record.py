"""Records: their fields, appending, and what a kill leaves behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timezone

import pytest
import torch

from fastuiat import machine
from fastuiat.bench.record import RecordFile, config_hash, make_record
from fastuiat.bench.timing import Measurement
from fastuiat.config import UserError

CPU = torch.device("cpu")
CONTRACT = [
    "suite",
    "case",
    "provider",
    "device",
    "median_s",
    "p20_s",
    "p80_s",
    "n",
    "extrapolated",
    "error",
]


def record(measured: Measurement, **more) -> dict:
    return make_record(
        suite="step", case="net/b8/sat", measured=measured, device=CPU, config={"a": 1}, **more
    )


def test_a_record_says_all_that_a_comparison_needs():
    line = record(Measurement("fastuiat", [3.0, 1.0, 2.0], first_s=10.0), passes=23.0)
    assert not set(CONTRACT) - set(line)
    assert (line["median_s"], line["p20_s"], line["p80_s"], line["n"]) == (2.0, 1.4, 2.6, 3)
    assert line["compile_s"] == 8.0 and line["passes"] == 23.0 and line["error"] is None
    assert line["device"] == machine.cpu()["name"] and line["device_type"] == "cpu"
    assert line["versions"]["torch"] == torch.__version__ and line["gpu"] is None
    assert {"fastuiat", "triton", "cuda"} <= set(line["versions"])
    assert {"commit", "dirty"} <= set(line)
    age = datetime.now(timezone.utc) - datetime.fromisoformat(line["time"])
    assert 0 <= age.total_seconds() < 60 and line["time"].endswith("+00:00")
    json.dumps(line)


def test_a_failed_row_is_a_record_with_its_error():
    line = record(Measurement("naive", error="out of memory"))
    assert line["error"] == "out of memory" and line["n"] == 0
    assert line["median_s"] is None and line["p20_s"] is None and line["compile_s"] is None


def test_config_hash_depends_on_values_and_not_on_order():
    assert config_hash({"a": 1, "b": {"c": 2}}) == config_hash({"b": {"c": 2}, "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})


def test_records_are_appended(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    for i in range(2):
        recorder = RecordFile(path)
        recorder.write([{"i": i}, {"i": i + 10}])
        recorder.close()
    assert [json.loads(x)["i"] for x in path.read_text().splitlines()] == [0, 10, 1, 11]


def test_half_a_line_left_by_a_kill_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"i": 0}\n{"i": 1, "half')
    recorder = RecordFile(path)
    recorder.write([{"i": 2}])
    lines = [line.rstrip() for line in path.read_text().splitlines()]
    assert lines == ['{"i": 0}', '{"i": 1, "half', '{"i": 2}']


@pytest.mark.slow
def test_what_a_killed_process_had_finished_is_there(tmp_path):
    path = tmp_path / "results.jsonl"
    code = f"""
import itertools
from pathlib import Path
from fastuiat.bench.record import RecordFile
recorder = RecordFile(Path({str(path)!r}))
for i in itertools.count():
    recorder.write([{{"i": i, "padding": "x" * 5000}}])
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    until = time.monotonic() + 60
    while (not path.exists() or path.stat().st_size < 50_000) and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    lines = path.read_text().splitlines()
    assert len(lines) >= 9
    assert [json.loads(line)["i"] for line in lines] == list(range(len(lines)))


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        RecordFile(tmp_path / "file" / "results.jsonl")
    with pytest.raises(UserError, match="cannot be written"):
        RecordFile(tmp_path)


def test_a_file_that_nothing_came_into_is_not_left_behind(tmp_path):
    new, old = tmp_path / "new.jsonl", tmp_path / "old.jsonl"
    old.touch()
    for path in (new, old):
        with pytest.raises(UserError, match="no such net"), RecordFile(path):
            raise UserError("no such net")
    assert not new.exists() and old.exists()
