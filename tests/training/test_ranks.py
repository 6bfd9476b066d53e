"""Several ranks train one run: real launchers, real kills, the bits of a run that never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
RUN = [
    *("--dataset", "digits", "--arch", "wrn-10-1", "--batch-size", "64", "--max-lr", "0.1"),
    *("--val-size", "64", "--log-every", "2", "--loader", "resident", "--method", "uiat"),
    *("--steps", "1", "--epochs", "3", "--train-size", "640", "--no-compile"),
    *("--checkpoint-minutes", "0.0001"),
]
"""30 steps, a checkpoint after each."""


def start(cwd: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *words], cwd=cwd, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def ranks_below(process: subprocess.Popen[str]) -> list[int]:
    """The processes that a launcher has started, in order of their ranks."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rsplit(")", 1)[1].split()[1])
            variables = (path / "environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        rank = next((v for v in variables if v.startswith(b"RANK=")), None)
        if parent == process.pid and rank:
            found.append((int(rank[5:]), int(path.name)))
    return [number for _, number in sorted(found)]


def steps_in(run: Path) -> int:
    """Steps that the last checkpoint holds."""
    try:
        return int(torch.load(run / "checkpoints" / "last.pt")["step"])
    except (OSError, RuntimeError, EOFError):
        return 0


def wait_for_step(step: int, run: Path, process: subprocess.Popen[str]) -> None:
    while steps_in(run) < step:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)


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
def whole(tmp_path_factory) -> Path:
    """A run of two ranks that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    process = start(folder, "fastuiat", "train", *RUN, "--processes", "2", "--out", "run")
    said, complained = process.communicate()
    assert process.returncode == 0, complained
    assert said.count("run folder: run") == 1  # one rank speaks
    return folder / "run"


@pytest.mark.parametrize("victim", ["rank 0", "launcher"])
def test_a_killed_process_and_the_same_bits(tmp_path, whole, victim):
    run = tmp_path / "run"
    process = start(tmp_path, "fastuiat", "train", *RUN, "--processes", "2", "--out", "run")
    wait_for_step(4, run, process)
    ranks = ranks_below(process)
    assert len(ranks) == 2
    killed = process.pid if victim == "launcher" else ranks[int(victim[-1])]
    os.kill(killed, signal.SIGKILL)
    process.communicate()
    assert process.returncode not in (0, 2)
    until = time.monotonic() + 60
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):  # all of them end
        assert time.monotonic() < until
        time.sleep(0.1)
    assert 4 <= steps_in(run) < 30
    process = start(tmp_path, "fastuiat", "train", "--resume", "run", "--processes", "2")
    _, complained = process.communicate()
    assert process.returncode == 0, complained
    assert same(state_of(run), state_of(whole))


def test_restarted_by_torchrun_until_it_ends(tmp_path, whole):
    run = tmp_path / "run"
    process = start(
        tmp_path, "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "3",
        "--standalone", "-m", "fastuiat", "train", *RUN, "--out", "run", "--resume-or-start",
    )  # fmt: skip
    for step in (3, 12):
        wait_for_step(step, run, process)
        os.kill(ranks_below(process)[1], signal.SIGKILL)
        time.sleep(1)
    _, complained = process.communicate()
    assert process.returncode == 0, complained
    assert same(state_of(run), state_of(whole))


def test_a_requested_stop_is_one_checkpoint_of_all(tmp_path, whole):
    run = tmp_path / "run"
    process = start(tmp_path, "fastuiat", "train", *RUN, "--processes", "2", "--out", "run")
    wait_for_step(2, run, process)
    process.send_signal(signal.SIGTERM)
    _, complained = process.communicate(timeout=60)
    assert process.returncode == 143
    lines = complained.strip().splitlines()
    assert lines == ["fastuiat: stopped by SIGTERM, checkpoint saved"]
    assert steps_in(run) < 30
    process = start(tmp_path, "fastuiat", "train", "--resume", "run", "--processes", "1")
    said, complained = process.communicate()
    assert process.returncode == 0, complained
    assert "the run began with 2 ranks and goes on with 1" in said
    assert steps_in(run) == 30


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


def test_a_rank_with_other_bits_ends_the_run(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    process = start(
        tmp_path, "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "broken.py",
        "train", *RUN[:-2], "--out", "run",
    )  # fmt: skip
    _, complained = process.communicate()
    assert process.returncode != 0
    assert "fastuiat: rank 1 has another model at step 4 than rank 0" in complained
    assert not (tmp_path / "run" / "checkpoints" / "last.pt").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--batch-size", "63", "--processes", "2"], "--batch-size 63 does not divide by 2 ranks"),
        (["--processes", "0"], "--processes needs a number from 1"),
        (["--processes", "many"], "--processes needs a number from 1"),
        (["--accumulate", "5"], "--batch-size 64 does not divide into --accumulate 5 parts"),
        (["--accumulate", "2", "--batchnorm", "sync"], "leave one of them out"),
        (["--rank-timeout", "-1"], "--rank-timeout needs minutes above 0"),
        (["--resume", "run", "--resume-or-start"], "--resume-or-start goes with --out"),
    ],
)
def test_one_line_of_what_cannot_be(tmp_path, words, said):
    process = start(tmp_path, "fastuiat", "train", *RUN, "--out", "run", *words)
    _, complained = process.communicate()
    assert process.returncode == 2, complained
    assert said in complained and len(complained.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
