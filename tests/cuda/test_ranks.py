"""Replayed regions beside a process group: the steps of ranks, and an end that does not hang."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from ranks_on_one_card import train

from fastuiat.distributed import ALONE

SCRIPT = Path(__file__).parent / "ranks_on_one_card.py"


def run(backend, world, folder):
    """What each rank ends with."""
    outs = [folder / f"{backend}-{rank}.pt" for rank in range(world)]
    store = folder / f"{backend}-store"
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), backend, str(rank), str(world), str(store), str(out)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, out in enumerate(outs)
    ]
    for process in processes:
        _, said = process.communicate(timeout=200)
        assert process.returncode == 0, said[-2000:]
    return [torch.load(out, map_location="cpu") for out in outs]


def flat(state):
    return torch.cat([t.double().cpu().flatten() for t in state.values() if t.is_floating_point()])


def test_nccl_beside_replays_changes_no_bit_and_ends(tmp_path):
    (beside,) = run("nccl", 1, tmp_path)
    alone = train(ALONE)
    assert torch.equal(flat(beside["net"]), flat(alone.net.state_dict()))
    assert torch.equal(flat(beside["method"]), flat(alone.method.state_dict()))


def test_two_ranks_of_one_card_are_two_parts(tmp_path):
    """By gloo, which exchanges a card's tensors too: NCCL refuses two ranks on one card."""
    first, second = run("gloo", 2, tmp_path)
    for key in ("net", "method"):
        assert torch.equal(flat(first[key]), flat(second[key])), key
    parts = train(ALONE, accumulate=2)
    ours, theirs = flat(first["net"]), flat(parts.net.state_dict())
    assert (ours - theirs).norm() < 1e-3 * theirs.norm()
