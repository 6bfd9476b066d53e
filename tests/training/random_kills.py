"""Kill training ranks and their launchers at random moments and compare what comes of it.

`python tests/training/random_kills.py --kills 20 --seed 1`: runs of two ranks are killed, gone on
with, killed again, and at their end compared with one that nobody touched, bit for bit. Minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from test_parts import free_port
from test_ranks import RUN, gone, ranks_below, same, start, steps_in

WORDS = ("-m", "fastuiat", "train", *RUN, "--weight-averaging", "0.9", "--out", "run")
PER_RUN = 4
"""Kills of one run before it may end."""


def launched(kind: str, folder: Path) -> list[subprocess.Popen[str]]:
    """The launchers of a run that begins or goes on."""
    words = (*WORDS, "--resume-or-start")
    torchrun = ("torch.distributed.run", "--max-restarts", "3")
    if kind == "processes":
        return [start(folder, *words[1:], "--processes", "2")]
    if kind == "torchrun":
        return [start(folder, *torchrun, "--nproc-per-node", "2", "--standalone", *words)]
    meet = (
        "--nnodes",
        "2",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        f"localhost:{free_port()}",
    )
    return [start(folder, torchrun[0], *meet, *words) for _ in range(2)]


def whole_state(run: Path) -> object:
    """What the checkpoint holds but the length of the log, and what the log holds but times."""
    state = torch.load(run / "checkpoints" / "last.pt")
    del state["metrics_offset"]
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in log:
        del line["clock"]
    return [state, log]


def wait_for_a_moment(
    draw: random.Random, run: Path, launchers: list[subprocess.Popen[str]]
) -> str:
    """While the ranks start, or some time behind a step that they have taken."""
    if draw.random() < 0.25:
        time.sleep(draw.uniform(0, 8))
        return "while starting"
    begun = steps_in(run)
    while steps_in(run) <= begun and all(launcher.poll() is None for launcher in launchers):
        time.sleep(0.05)
    time.sleep(draw.uniform(0, 1.5))
    return f"behind step {steps_in(run)}"


def kill_one(draw: random.Random, launchers: list[subprocess.Popen[str]]) -> str | None:
    """Who was killed; None where nobody is left."""
    victims = {f"launcher {i}": launcher.pid for i, launcher in enumerate(launchers)}
    for i, launcher in enumerate(launchers):
        below = ranks_below(launcher)
        victims |= {f"rank {j if len(launchers) == 1 else i}": p for j, p in enumerate(below)}
    if any(launcher.poll() is not None for launcher in launchers):
        return None
    name = draw.choice(sorted(victims))
    try:
        os.kill(victims[name], signal.SIGKILL)
    except ProcessLookupError:
        return None
    return name


def one_run(draw: random.Random, folder: Path, kills: int) -> Counter[str]:
    """A run that is killed so often, and then left alone; who was killed."""
    killed: Counter[str] = Counter()
    while True:
        kind = draw.choice(("processes", "torchrun", "two launchers"))
        launchers = launched(kind, folder)
        restarts = 3 if kind == "torchrun" else 1
        while restarts and killed.total() < kills:
            moment = wait_for_a_moment(draw, folder / "run", launchers)
            victim = kill_one(draw, launchers)
            if victim is None:
                break
            killed[f"{victim} of {kind}"] += 1
            print(f"  killed {victim} of {kind} {moment}", flush=True)
            restarts = 0 if victim.startswith("launcher") else restarts - 1
        below = [rank for launcher in launchers for rank in ranks_below(launcher)]
        complaints = [launcher.communicate()[1] for launcher in launchers]
        gone(below)
        if all(launcher.returncode == 0 for launcher in launchers):
            return killed
        for line in (x for text in complaints for x in text.splitlines()):
            if line.startswith("fastuiat: "):
                print(f"    {line}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1000))
    options = parser.parse_args()
    draw, killed, differing = random.Random(options.seed), Counter[str](), 0
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = start(folder, *WORDS[1:], "--processes", "2")
        process.communicate()
        assert process.returncode == 0
        whole = whole_state(folder / "run")
        number = 0
        while killed.total() < options.kills:
            number += 1
            own = folder / str(number)
            own.mkdir()
            killed += one_run(draw, own, min(PER_RUN, options.kills - killed.total()))
            equal = same(whole_state(own / "run"), whole)
            differing += not equal
            print(f"run {number}: {'the same bits' if equal else 'OTHER BITS'}", flush=True)
    print(f"{killed.total()} kills ({dict(killed)}), {differing} runs of other bits")
    sys.exit(differing > 0)


if __name__ == "__main__":
    main()
