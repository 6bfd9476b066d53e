"""Real processes that meet in one run folder, and real kills of who holds it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastuiat.cli import main
from fastuiat.writer import LOCK
from tests.processes import Process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]
LENGTH = ["--method", "sat", "--steps", "1", "--epochs", "200", "--train-size", "64"]
LENGTH += ["--checkpoint-minutes", "0.001", "--batch-size", "32", "--log-every", "1"]


def wait_for(condition, process: Process) -> None:
    while not condition():
        assert process.poll() is None, process.stderr
        time.sleep(0.02)


def kill(process: Process) -> str:
    process.send_signal(signal.SIGKILL)
    process.wait()
    return process.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(forks, small_run, tmp_path_factory) -> Path:
    """A run of one step with a record of its evaluation, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    train = ("train", *small_run, *LENGTH, "--max-steps", "1", "--out", "run")
    for words in (train, ("eval", "run", "--attacks", "clean", "--n", "8")):
        done = forks.run(*words, folder=folder)
        assert done.returncode == 0, done.stderr
    return folder / "run"


def is_free(folder: Path) -> bool:
    return subprocess.run(["flock", "-n", folder / LOCK, "true"]).returncode == 0


def test_a_run_under_way_is_nobody_elses(tmp_path, small_run, refusal, start):
    """Another start, a resume, an evaluation into it, its report; read it may be by all."""
    run = tmp_path / "run"
    process = start("train", *small_run, *LENGTH, "--out", "run")
    last = run / "checkpoints" / "last.pt"
    wait_for(last.exists, process)
    os.kill(process.pid, signal.SIGSTOP)  # so that nothing changes by itself
    try:
        before = contents(run)
        for words in (
            ["train", "--resume", "run"],
            ["eval", "run", "--attacks", "clean", "--n", "8"],
            ["eval", str(last), "--attacks", "clean", "--n", "8"],
            ["report", "run"],
        ):
            said = refusal(*words)
            assert "run is being written by fastuiat train --dataset digits " in said, said
            assert f"process {process.pid} on " in said
            assert contents(run) == before
        assert "already holds a run" in refusal("train", *small_run, *LENGTH, "--out", "run")
        main(["eval", "run", "--attacks", "clean", "--n", "8", "--out", "elsewhere"])
        main(["report", "run", "--out", "page.html"])
        assert contents(run) == before
    finally:
        os.kill(process.pid, signal.SIGCONT)
        kill(process)
    assert is_free(run)
    main(["eval", "run", "--attacks", "clean", "--n", "8"])
    assert not (run / LOCK).exists()


def test_of_two_that_begin_at_once_one_wins(tmp_path, small_run, start):
    words = ["train", *small_run, *LENGTH[:-2], "--max-steps", "6", "--out", "run"]
    processes = [start(*words) for _ in range(3)]
    codes = [process.wait() for process in processes]
    errors = [process.stderr for process in processes]
    assert sorted(codes) == [0, 2, 2], errors
    for code, said in zip(codes, errors, strict=True):
        if code:
            assert "run is being written by" in said or "already holds a run" in said
            assert said.count("\n") == 1
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [line["step"] for line in map(json.loads, lines) if line["kind"] == "train"]
    assert steps == sorted(set(steps))


def test_a_kill_while_it_compiles_lets_go_at_once(tmp_path, small_run, start):
    """Inductor's workers outlive it for a while: they hold nothing."""
    flags = [word for word in small_run if word != "--no-compile"]
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    process = start("train", *flags, *LENGTH, "--out", "run", environment=env, fresh=True)

    def compiling() -> bool:
        return any((tmp_path / "cache").rglob("*.cpp")) if (tmp_path / "cache").exists() else False

    wait_for(compiling, process)
    assert not is_free(tmp_path / "run")
    kill(process)
    assert is_free(tmp_path / "run")


def test_what_a_killed_run_left_goes_with_the_next_start(tmp_path, small_run, start):
    run = tmp_path / "run"
    process = start("train", *small_run, *LENGTH, "--out", "run")
    wait_for((run / "checkpoints" / "last.pt").exists, process)
    kill(process)
    left = [run / "checkpoints" / ".best.pt-01234567", run / ".config.json-89abcdef"]
    for path in left:
        path.write_bytes(b"half")
    process = start("train", "--resume", "run")
    wait_for(lambda: not any(path.exists() for path in left), process)
    kill(process)


@pytest.mark.parametrize("how", ["removed", "renamed"])
def test_a_folder_that_goes_while_it_is_trained_in_is_one_line(how, tmp_path, small_run, start):
    run = tmp_path / "run"
    process = start("train", *small_run, *LENGTH, "--out", "run")
    wait_for((run / "checkpoints" / "last.pt").exists, process)
    os.kill(process.pid, signal.SIGSTOP)
    run.rename(tmp_path / "gone")
    if how == "removed":
        subprocess.run(["rm", "-r", tmp_path / "gone"], check=True)
    os.kill(process.pid, signal.SIGCONT)
    assert process.wait() == 2
    said = process.stderr
    assert said.count("\n") == 1, said
    assert "removed or renamed" in said
    if how == "renamed":
        (tmp_path / "gone").rename(run)
        process = start("train", "--resume", "run")
        taken = torch.load(run / "checkpoints" / "last.pt", weights_only=True)["step"]
        log = run / "metrics.jsonl"
        wait_for(lambda: json.loads(log.read_bytes().split(b"\n")[-2])["step"] > taken, process)
        kill(process)


LINKED = ["metrics.jsonl", "tensorboard", "eval", "checkpoints", "report-figures", "config.json"]


@pytest.mark.parametrize("name", LINKED)
def test_nothing_is_written_through_a_link(name, tmp_path, finished, refusal):
    shutil.copytree(finished, tmp_path / "run")
    path, foreign = tmp_path / "run" / name, tmp_path / "foreign"
    if path.exists():
        path.rename(foreign)
    path.symlink_to(foreign)
    before = contents(tmp_path)
    commands = [["train", "--resume", "run"], ["report", "run"]]
    if name != "checkpoints":
        commands.append(["eval", "run", "--attacks", "pgd", "--n", "8"])
    for words in commands:
        assert f"{name} is a link to {foreign}" in refusal(*words)
    assert contents(tmp_path) == before


def test_a_run_folder_may_be_a_link(tmp_path, monkeypatch, small_run):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to("disk")
    main(["train", *small_run, "--method", "natural", "--max-steps", "1", "--out", "run"])
    main(["eval", "run", "--attacks", "clean", "--n", "8"])
    main(["report", "run"])
    assert (tmp_path / "disk" / "report.html").exists()


KILLED_IN_VALIDATION = """
import os, signal, sys
from fastuiat.cli import main
from fastuiat.training import run
made, calls = run.evaluation_on, []
def evaluation_on(*words):
    evaluate = made(*words)
    def killed(net):
        calls.append(net)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return evaluate(net)
    return killed
run.evaluation_on = evaluation_on
main(sys.argv[1:])
"""
STOPPED_IN_LAST_STEP = """
import os, signal, sys
from fastuiat.cli import main
from fastuiat.training.trainer import Trainer
take = Trainer.take_step
def stopped(self, batch):
    take(self, batch)
    if self.step == self.last_step:
        os.kill(os.getpid(), signal.SIGTERM)
Trainer.take_step = stopped
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "script, code",
    [(KILLED_IN_VALIDATION, -signal.SIGKILL), (STOPPED_IN_LAST_STEP, 128 + signal.SIGTERM)],
    ids=["killed in the last validation", "stopped in the last step"],
)
def test_the_last_epoch_is_validated_all_the_same(script, code, tmp_path, monkeypatch, small_run):
    """Each epoch has its line, and both checkpoints are those of a run that was left alone."""
    monkeypatch.chdir(tmp_path)
    words = ["train", *small_run, *LENGTH, "--epochs", "2"]
    main([*words, "--out", "whole"])
    command = [sys.executable, "-c", script, *words, "--out", "cut"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == code
    state = torch.load("cut/checkpoints/last.pt", weights_only=True)
    assert (state["step"], state["validated_epoch"]) == (4, 1)
    main(["train", "--resume", "cut"])
    lines = [
        [json.loads(line) for line in Path(name, "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "cut")
    ]
    for line in lines[0] + lines[1]:
        del line["clock"]
    assert lines[0] == lines[1]
    for name in ("best", "last"):
        whole, cut = (
            torch.load(f"{run}/checkpoints/{name}.pt", weights_only=True)
            for run in ("whole", "cut")
        )
        for key in whole["model"]:
            assert torch.equal(whole["model"][key], cut["model"][key])
        assert [whole[k] for k in ("step", "best", "validated_epoch")] == [
            cut[k] for k in ("step", "best", "validated_epoch")
        ]
