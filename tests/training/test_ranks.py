"""Several ranks train one run: real launchers, real kills, the bits of a run that never stopped."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastuiat.cli import main
from tests.processes import Process, children_of

sys.path.insert(0, str(Path(__file__).parent))
from test_parts import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
TORCHRUN = "torch.distributed.run"
RUN = [
    *("--dataset", "digits", "--arch", "wrn-10-1", "--batch-size", "16", "--max-lr", "0.1"),
    *("--val-size", "16", "--log-every", "2", "--loader", "resident", "--method", "uiat"),
    *("--steps", "1", "--epochs", "4", "--train-size", "160", "--no-compile"),
    *("--checkpoint-minutes", "0.0001"),
]
RESUME = ("train", "--resume", "run", "--processes", "2")
STEPS = 40
"""Of a run, with a checkpoint after each."""


def steps_in(run: Path) -> int:
    """Steps that the last checkpoint holds."""
    try:
        return int(torch.load(run / "checkpoints" / "last.pt")["step"])
    except (OSError, RuntimeError, EOFError):
        return 0


def wait_for_step(step: int, run: Path, process: Process) -> None:
    while steps_in(run) < step:
        assert process.poll() is None, process.stderr
        time.sleep(0.1)


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def state_of(run: Path) -> dict[str, object]:
    state = torch.load(run / "checkpoints" / "last.pt")
    names = ("step", "model", "optimizer", "method", "best", "validated_epoch", "catastrophic")
    return {name: state[name] for name in names}


@pytest.fixture(scope="module")
def whole(forks, tmp_path_factory) -> Path:
    """A run of two ranks that nobody stopped, each a Python of its own."""
    folder = tmp_path_factory.mktemp("whole")
    words = ("train", *RUN, "--processes", "2", "--out", "run")
    process = forks.run(*words, folder=folder, fresh=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("run folder: run") == 1  # one rank speaks
    return folder / "run"


def gone(processes: list[int]) -> None:
    """Wait until they have ended."""
    until = time.monotonic() + 60
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < until
        time.sleep(0.1)


def resumed(process: Process, folder: Path, whole: Path) -> None:
    """The run in the folder has gone on to its end, which is that of the whole one."""
    assert process.wait() == 0, process.stderr
    assert same(state_of(folder / "run"), state_of(whole))


@pytest.mark.parametrize("victim", ["rank 0", "launcher"])
def test_a_killed_process_and_the_same_bits(tmp_path, start, whole, victim):
    run = tmp_path / "run"
    process = start("train", *RUN, "--processes", "2", "--out", "run")
    wait_for_step(4, run, process)
    ranks = children_of(process.pid)
    assert len(ranks) == 2
    killed = process.pid if victim == "launcher" else ranks[int(victim[-1])]
    os.kill(killed, signal.SIGKILL)
    assert process.wait() not in (0, 2)
    gone(ranks)
    assert 4 <= steps_in(run) < STEPS
    resumed(start(*RESUME), tmp_path, whole)


def test_two_launchers_as_two_machines(tmp_path, start, whole):
    run = tmp_path / "run"
    machines = [
        start(
            "--nnodes", "2", "--nproc-per-node", "1",
            "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "two",
            "-m", "fastuiat", "train", *RUN, "--out", "run",
            module=TORCHRUN, fresh=True,
        )
        for port in [free_port()] * 2
    ]  # fmt: skip
    wait_for_step(4, run, machines[0])
    ranks = [rank for machine in machines for rank in children_of(machine.pid)]
    machines[1].send_signal(signal.SIGKILL)
    for machine in machines:
        machine.wait(100)
    assert machines[0].returncode not in (0, 2)
    gone(ranks)
    assert re.search("fastuiat: (rank [01]|a rank) has ended or hangs", machines[0].stderr)
    assert 4 <= steps_in(run) < STEPS
    resumed(start(*RESUME), tmp_path, whole)


def torchrun(start: Callable[..., Process], *words: str, fresh: bool = False) -> Process:
    launcher = ("--nproc-per-node", "2", "--max-restarts", "2", "--standalone")
    return start(*launcher, *words, module=TORCHRUN, fresh=fresh)


def ours(complained: str) -> list[str]:
    """The lines that are not torchrun's."""
    return [line for line in complained.splitlines() if line.startswith("fastuiat: ")]


def test_torchrun_starts_killed_ranks_again_and_nobody_who_was_stopped(tmp_path, start, whole):
    run = tmp_path / "run"
    words = ("-m", "fastuiat", "train", *RUN, "--out", "run", "--resume-or-start")
    process = torchrun(start, *words)
    for step, signum in ((3, signal.SIGKILL), (12, signal.SIGTERM)):
        wait_for_step(step, run, process)
        os.kill(children_of(process.pid)[1], signum)
        time.sleep(1)
    assert process.wait(100) != 0
    assert ours(process.stderr)[-1] == "fastuiat: stopped by SIGTERM, checkpoint saved"
    stopped_at = steps_in(run)
    assert 12 <= stopped_at < STEPS
    process = torchrun(start, *words)  # a launch of its own
    wait_for_step(stopped_at + 5, run, process)
    os.kill(children_of(process.pid)[0], signal.SIGKILL)
    assert process.wait() == 0, process.stderr
    assert f"resuming run at step {stopped_at} of {STEPS}" in process.stdout
    assert same(state_of(run), state_of(whole))


def test_a_requested_stop_is_one_checkpoint_of_all(tmp_path, start, whole):
    run = tmp_path / "run"
    process = start("train", *RUN, "--processes", "2", "--out", "run")
    wait_for_step(2, run, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    lines = process.stderr.strip().splitlines()
    assert lines == ["fastuiat: stopped by SIGTERM, checkpoint saved"]
    assert steps_in(run) < STEPS
    process = start("train", "--resume", "run", "--processes", "1")
    assert process.wait() == 0, process.stderr
    assert "the run began with 2 ranks and goes on with 1" in process.stdout
    assert steps_in(run) == STEPS


def test_a_rank_that_hangs_within_a_step(tmp_path, start):
    run = tmp_path / "run"
    process = start(
        "train", *RUN, "--processes", "2", "--out", "run",
        "--rank-timeout", "0.25",  # above what a rank starts later than another on a busy machine
    )  # fmt: skip
    wait_for_step(3, run, process)
    stopped = children_of(process.pid)[1]
    os.kill(stopped, signal.SIGSTOP)
    while "\n" not in process.stderr:
        assert process.poll() is None
        time.sleep(0.1)
    os.kill(stopped, signal.SIGCONT)  # its launcher ends it, without waiting
    assert process.wait(60) == 1
    (line,) = process.stderr.splitlines()
    step = re.match(r"fastuiat: rank 1 has ended or hangs: it did not come to step (\d+), ", line)
    assert step and steps_in(run) <= int(step[1]) <= steps_in(run) + 1, line


BROKEN = """
import sys, torch
from fastuiat import cli
from fastuiat.torchrun import place
from fastuiat.training.step import TrainingStep
take = TrainingStep._take
def broken(self, batch):
    out = take(self, batch)
    if place().rank == 1 and self.taken == 3:
        next(self.net.parameters()).data[0] += 1e-6
    return out
TrainingStep._take = broken
cli.main(sys.argv[1:])
"""


def test_a_rank_with_other_bits_ends_the_run(tmp_path, start):
    (tmp_path / "broken.py").write_text(BROKEN)
    process = torchrun(start, "broken.py", "train", *RUN[:-2], "--out", "run", fresh=True)
    assert process.wait() != 0
    (line,) = ours(process.stderr)  # of the first attempt: the others leave as it did
    assert line.startswith("fastuiat: rank 1 has another model at step 4 than rank 0")
    assert not (tmp_path / "run" / "checkpoints" / "last.pt").exists()


def test_a_batch_that_ranks_do_not_divide(tmp_path, start):
    process = start(
        "train", *RUN, "--out", "run", "--batch-size", "15",
        "--processes", "2",
    )  # fmt: skip
    assert process.wait() == 2, process.stderr
    (line,) = process.stderr.strip().splitlines()
    assert "--batch-size 15 does not divide by 2 ranks" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--processes", "0"], "--processes needs a number from 1"),
        (["--processes", "many"], "--processes needs a number from 1"),
        (["--accumulate", "5"], "--batch-size 16 does not divide into --accumulate 5 parts"),
        (["--accumulate", "2", "--batchnorm", "sync"], "leave one of them out"),
        (["--rank-timeout", "-1"], "--rank-timeout needs minutes above 0"),
        (["--resume", "run", "--resume-or-start"], "--resume-or-start goes with --out"),
    ],
)
def test_one_line_of_what_cannot_be(tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["train", *RUN, "--out", "run", *words])
    complained = capsys.readouterr().err
    assert stop.value.code == 2, complained
    assert said in complained and len(complained.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
