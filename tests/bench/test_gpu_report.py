"""`fastuiat bench gpu`: its stages, what they are read as, and the folder that it fills."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path

import pytest

from fastuiat.bench import suites
from fastuiat.bench.gpu import packing, recorded, report, results
from fastuiat.bench.gpu import stages as table
from fastuiat.bench.gpu.stages import STAGES, TRAINED, Place, train_figures
from fastuiat.commands.parsing import parse
from fastuiat.config import UserError
from fastuiat.reproduce.rows import PRESETS, Options

sys.path.insert(0, str(Path(__file__).parent))
from quick_stages import (
    CONFIG,
    RECORD,
    call,
    line,
    machine,
    members,
    out,
    said,
    shell,
    state_of,
    verdicts,
)

__all__ = ["machine", "out"]  # fixtures


def test_runs_that_are_too_large_stay_behind_and_the_summary_says_so(out, machine, monkeypatch):
    monkeypatch.setattr(packing, "LIMIT", 200_000)
    document = {"columns": ["pgd"], "rows": [
        {"row": name, "seeds": {"0": {"pgd": 50.0}}, "ours": {"pgd": {"mean": 50.0}}}
        for name in ("small", "large")
    ]}  # fmt: skip
    script = f"""
        mkdir -p $2/train; cd $2/train; mkdir -p small/seed-0 large/seed-0
        touch small/seed-0/config.json large/seed-0/config.json
        head -c 300000 /dev/urandom > large/seed-0/last.pt
        echo '{json.dumps(document)}' > {TRAINED}.json
        echo a row > {TRAINED}.jsonl
    """
    call(out, [shell("train", script, figures=train_figures)])
    kept = members(out / "train.tar.gz")
    names = [f"{TRAINED}.json", f"{TRAINED}.jsonl", "small/seed-0/config.json"]
    assert sorted(kept) == names
    assert state_of(out)["stages"]["train"]["figures"] == "small pgd 50.0; large pgd 50.0"
    assert "kept here: of train, large/seed-0\n" in (out / "summary.txt").read_text()
    machine("second")
    call(out, [shell("train", "exit 1"), shell("more", "ls $2/train")])
    there = members(out / "logs.tar.gz")["more.log"].decode().splitlines()[1:]
    assert there == [f"{TRAINED}.json", f"{TRAINED}.jsonl", "small"]


def test_caches_travel(out, machine):
    compiles = "mkdir -p $TRITON_CACHE_DIR/k; test -e $TRITON_CACHE_DIR/k/cubin || exit 7"
    prepares = "mkdir -p $TRITON_CACHE_DIR/k && echo code > $TRITON_CACHE_DIR/k/cubin"
    call(out, [shell("cold", compiles), shell("warm", prepares)])
    assert members(out / "caches.tar.gz") == {"triton/k/cubin": b"code\n"}
    assert verdicts(out)["cold"] == "failed"
    machine("second")
    call(out, [shell("cold", compiles)])
    assert verdicts(out)["cold"] == "passed"


def test_the_folder_stays_small(out):
    noise = "head -c 9000000 /dev/urandom; echo the end of $0"
    stages = [shell(name, noise) for name in "ab"]
    call(out, stages)
    sizes = {path.name: path.stat().st_size for path in out.iterdir()}
    assert len(sizes) <= 8 and max(sizes.values()) < 16_000_000, sizes
    logs = members(out / "logs.tar.gz")
    assert sorted(logs) == ["a.log", "b.log"]
    assert all(logs[f"{name}.log"].endswith(f"the end of {name}\n".encode()) for name in "ab")
    assert all(b"bytes before this are left out" in content[:100] for content in logs.values())
    assert all(path.is_file() for path in out.iterdir())


def test_records_that_do_not_fit_are_the_oldest(monkeypatch):
    monkeypatch.setattr(report, "LIMIT", 10)
    assert report.newest(["1234", "5678", "9"]) == ["5678\n", "9\n"]


@pytest.mark.slow
def test_the_outcomes_of_tests_survive_a_run_that_does_not(out, tmp_path, monkeypatch):
    """One test of each kind, then one that ends the process: no report of pytest's own is left."""
    folder = tmp_path / "checks"
    folder.mkdir()
    (folder / "test_some.py").write_text(
        "import os, pytest\n"
        "def test_good(): pass\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_bad(n): assert n == 2\n"
        "@pytest.fixture\n"
        "def broken():\n    yield\n    raise OSError\n"
        "def test_ends_badly(broken): pass\n"
        "def test_skipped(): pytest.skip()\n"
        "def test_crashes(): os.kill(os.getpid(), 9)\n"
        "def test_never_begun(): pass\n"
    )
    (folder / "test_unreadable.py").write_text("import nothing_of_this_name\n")
    monkeypatch.setattr(table, "cores", lambda: 1)
    stage = table.tests_in("checks", str(folder), 1.0, [])
    call(out, [dataclasses.replace(stage, tests="checks")])
    entry = state_of(out)["stages"]["checks"]
    assert entry["verdict"] == "failed"
    assert entry["note"] == "the package nothing_of_this_name is not here"
    assert entry["codes"] == [128 + signal.SIGKILL]
    failed = ["test_unreadable.py", "test_some.py::test_bad[1]", "test_some.py::test_ends_badly"]
    counts = {"total": 8, "passed": 2, "failed": 3, "skipped": 1}
    assert entry["tests"] == counts | {"failed_tests": failed}
    assert entry["figures"] == "2 of 8 tests passed, 3 failed, 1 skipped, 2 not ended"
    assert f"failed: checks: {failed[0]}, {failed[1]}" in (out / "summary.txt").read_text()


def test_tests_use_what_plugins_there_are(tmp_path, monkeypatch):
    """Neither xdist nor pytest-timeout need be there."""
    monkeypatch.setattr(table, "cores", lambda: 16)
    place = Place(tmp_path, tmp_path, tmp_path, "cuda", 100.0)
    words = STAGES[1].commands[0](place)
    assert words[words.index("-n") + 1] == "4" and "--timeout=75" in words
    small = dataclasses.replace(place, memory_bytes=24 << 30)
    assert "-n 3 " in " ".join(STAGES[1].commands[0](small))
    assert f"--junitxml={place.junit}" in words and str(tmp_path / "tests/cuda") in words
    monkeypatch.setattr(table, "has", lambda package: False)
    words = STAGES[1].commands[0](place)
    assert "-n" not in words and not [word for word in words if word.startswith("--timeout")]


def test_the_figures_that_matter():
    """Of real kinds of records; and one that lacks what is shown loses nothing else."""
    rows = [("convolution forward", 0.3), ("idle", 0.05), ("convolution forward", 0.2)]
    profile = {"rows": [{"kind": kind, "share": share} for kind, share in rows], "layers": []}
    naive = RECORD | {"provider": "naive", "median_s": 0.0723, "ratio_median": 3.378}
    step = results.figures([RECORD | {"profile": profile}, naive])
    assert step == (
        "wrn-10-1/b4/uiat 21.4 ms, 18.1% of peak, convolution forward 50%, idle 5% (naive 3.38×)"
    )
    failed = {"profile": None, "profile_error": "no CUPTI"}
    assert "of peak, no profile: no CUPTI" in results.figures([RECORD | failed])
    row = RECORD | {"suite": "table2", "row": "uiat", "epoch_s": 9.66}
    assert results.figures([row, row | {"row": "hat", "epoch_s": 11.22}]) == (
        "wrn-10-1 uiat 0.161, hat 0.187 min/epoch"
    )
    assert "1 records, not understood (KeyError: 'row')" in results.figures(
        [RECORD | {"suite": "table5"}]
    )
    by_way = [
        RECORD | {"suite": "autoattack", "provider": provider, "config": CONFIG | {"compile": on}}
        for provider, on in (("package b512", True), ("fastuiat", True), ("fastuiat", False))
    ]
    assert results.figures(by_way) == (
        "package b512 21.4 ms, fastuiat compiled 21.4 ms, fastuiat eager 21.4 ms"
    )


def test_what_a_stage_lacks(tmp_path):
    """Of an installed package, without CIFAR-10, without FFCV."""
    (tmp_path / "data").mkdir()
    place = Place(tmp_path, tmp_path / "data", tmp_path, "x", 100.0)
    stage = {stage.name: stage for stage in STAGES}
    assert "no tests: call it from a checkout" in stage["cuda"].obstacle(place)
    assert "no CIFAR-10 in" in stage["train"].obstacle(place)
    (tmp_path / "data" / "cifar-10-python.tar.gz").touch()
    assert stage["train"].obstacle(place) is None and stage["step"].obstacle(place) is None
    checkout = dataclasses.replace(place, root=Path(__file__).parents[2])
    assert stage["cuda"].obstacle(checkout) is None


def test_the_stages_are_the_ones_that_are_promised(tmp_path):
    """In order of worth; and every bench that they call takes what it is told."""
    assert [stage.name for stage in STAGES] == [
        "kernels",
        "cuda",
        "conv",
        "step",
        "train",
        "table2-resnet-18",
        "step-wrn",
        "operations",
        "table2-wrn",
        "table5",
        "autoattack",
        "loader",
    ]
    root = Path(__file__).parents[2]
    for stage in STAGES:
        place = Place(root, tmp_path, tmp_path, stage.name, 100.0)
        assert not stage.tests or (root / stage.tests).is_dir()
        for make in stage.commands:
            python, m, _, *words = make(place)
            assert (python, m) == (sys.executable, "-m")
            if words[0] == "bench":
                suite, *flags = words[1:]
                options = parse(suites.get(suite).Options, flags, prog="fastuiat bench")
                assert options.json == place.records and options.device == "cuda"
                assert 0 < options.budget <= 100
            if words[0] == "reproduce":
                options = parse(Options, words[1:], prog="fastuiat reproduce")
                assert options.table in PRESETS and options.record.parent == options.out
    without_train = [stage for stage in STAGES if stage.name != "train"]
    first = sum(stage.share for stage in without_train[:5])
    assert first / sum(stage.share for stage in without_train) > 0.8


def test_reports_are_kept_and_shown(out, tmp_path):
    kept = tmp_path / "results"
    kept.mkdir()
    assert recorded.table_of(kept) == "None yet.\n"
    call(out, [shell("step", said(line())), shell("cuda", "exit 1"), shell("far", "", least=1e4)])
    state = state_of(out)
    tests = {"total": 9, "passed": 4, "failed": 2, "skipped": 0}
    state["stages"]["cuda"]["tests"] = tests | {"failed_tests": ["t.py::a", "t.py::b"]}
    (out / "state.json").write_text(json.dumps(state))
    for _ in range(2):  # what is there already stays once
        files = recorded.add(out, kept)
    assert [file.name for file in files] == ["gpu-nvidia-test-80gb-abcdef0123.json", "step.jsonl"]
    assert (kept / "step.jsonl").read_text().rstrip() == line()
    text = recorded.table_of(kept)
    assert (
        f"| NVIDIA Test 80GB | torch 9.9, triton 3.9, python 3.12.3 | abcdef0123 | "
        f"{state['time'][:10]} | step | cuda (4 of 9 tests passed, 2 failed, 3 not ended) | far |"
        in text
    )
    named = "- abcdef0123 on NVIDIA Test 80GB, failed in cuda: `t.py::a`, `t.py::b`; exit code 1."
    assert text.endswith(f"\n\n{named}\n")
    with pytest.raises(UserError, match="name a folder that bench gpu has filled"):
        recorded.add(tmp_path, kept)


def test_files_of_a_report_that_are_none_or_hold_too_much(tmp_path, monkeypatch):
    """Nobody writes into these pipes."""
    for name in ("records.jsonl", "logs.tar.gz"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=r"records\.jsonl cannot be read: it is no plain file"):
        [*results.json_lines(tmp_path / "records.jsonl")]
    assert [*results.json_lines(tmp_path / "none")] == []
    assert not packing.unpack(tmp_path / "logs.tar.gz", tmp_path / "out")
    (tmp_path / "large").write_bytes(bytes(1000))
    content, _ = packing.pack([packing.Unit("large", {"large": tmp_path / "large"})])
    (tmp_path / "kept.tar.gz").write_bytes(content)
    monkeypatch.setattr(packing, "MOST_UNPACKED", 999)
    assert not packing.unpack(tmp_path / "kept.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(packing, "MOST_UNPACKED", 1000)
    assert packing.unpack(tmp_path / "kept.tar.gz", tmp_path / "out")
    assert (tmp_path / "out" / "large").read_bytes() == bytes(1000)
