"""`fastuiat bench` as a process, in a folder that is not the repository."""

from __future__ import annotations

import json
import signal
import time

import pytest

from fastuiat.cli import main

STEP = ["bench", "step", "--arch", "wrn-10-1", "--batch-size", "4", "--repeats", "1"]


def test_step_prints_a_plain_table_and_appends_records(fastuiat, tmp_path):
    words = [*STEP, "--method", "natural", "--no-compile", "--json", "out/step.jsonl"]
    for _ in range(2):
        done = fastuiat(*words)
        assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("wrn-10-1/b4/natural on ")
    assert lines[1].split()[:3] == ["provider", "passes", "median"]
    assert [x.split()[0] for x in lines[2:6]] == [
        "naive",
        "tuned-eager",
        "fastuiat",
        "convolutions",
    ]
    assert "─" not in done.stdout and "\x1b" not in done.stdout
    records = [json.loads(x) for x in (tmp_path / "out/step.jsonl").read_text().splitlines()]
    assert len(records) == 8 and all(r["error"] is None for r in records)
    assert {r["suite"] for r in records} == {"step"}
    assert len({r["config_hash"] for r in records if r["provider"] == "fastuiat"}) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["out"], "nothing else is written"


def test_one_phase_of_a_one_off_run(fastuiat):
    words = [*STEP, "--method", "uiat-oneoff", "--epoch-phase", "after", "--no-compile"]
    done = fastuiat(*words, "--providers", "tuned-eager")
    assert done.returncode == 0, done.stderr
    assert "wrn-10-1/b4/uiat-oneoff/after" in done.stdout and "22.9" in done.stdout


@pytest.mark.slow
def test_what_a_killed_bench_had_finished_is_on_disk(tmp_path, start):
    """Three cases, one a phase; killed in the second, the first stands whole."""
    path = tmp_path / "step.jsonl"
    words = ["--method", "uiat-oneoff", "--no-compile", "--repeats", "3", "--json", str(path)]
    process = start(*STEP, *words)
    until = time.monotonic() + 200
    while not (path.exists() and path.stat().st_size) and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() < 0, "it had ended by itself"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["provider"] for r in records] == ["naive", "tuned-eager", "fastuiat", "convolutions"]
    assert {r["case"] for r in records} == {"wrn-10-1/b4/uiat-oneoff/before"}


def test_usage_lists_the_suites(fastuiat):
    done = fastuiat("bench", "--help")
    assert done.returncode == 0
    suites = ("step", "kernels", "loader", "table2", "table5")
    assert all(name in done.stdout for name in suites)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["bench", "stairs"], "unknown suite 'stairs': choose from step, kernels, layers"),
        (["bench", "step", "--arch", "resnet-5"], "unknown net 'resnet-5'"),
        (["bench", "step", "--method", "magic"], "unknown method 'magic'"),
        (["bench", "step", "--batch-size", "0"], "batch-size must be above 0 and finite, got 0"),
        (["bench", "step", "--repeats", "0"], "repeats must be above 0"),
        (["bench", "step", "--budget", "-1"], "budget must be above 0"),
        (["bench", "step", "--precision", "fp16"], "--precision fp16"),
        (["bench", "step", "--epoch-phase", "after"], "uiat has no such phase"),
        (["bench", "step", "--device", "cuda"], "no CUDA device"),
        (["bench", "step", "--json", "/proc/nowhere/x.jsonl"], "cannot be written"),
        (["bench", "step", "--providers", "theirs"], "providers"),
        (["bench", "kernels", "--kernels", "nope"], "unknown kernel 'nope'"),
        (["bench", "loader", "--n", "10"], "--n 10 makes no batch of 128"),
        (["bench", "loader", "--workers", "0"], "workers must be above 0"),
    ],
)
def test_bad_input_is_one_line(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastuiat: ") and said in line
    assert not list(tmp_path.iterdir())


def test_bad_input_in_a_process_of_its_own(start):
    done = start("bench", "step", "--arch", "wrn-11-2", "--json", "x.jsonl", fresh=True)
    assert done.wait() == 2 and done.stdout == ""
    assert "'wrn-11-2' has no legal depth and width" in done.stderr
    assert "Traceback" not in done.stderr
