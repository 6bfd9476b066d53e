"""Run by test_ranks.py, BACKEND RANK WORLD STORE OUT: replayed steps beside a process group."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist

from fastuiat.bench.workload import Case, make_loader, make_net, visited_method
from fastuiat.convolutions import full_fp32
from fastuiat.distributed import Ranks
from fastuiat.training.parts import cut
from fastuiat.training.step import TrainingStep

CASE = Case(method="uiat", arch="wrn-10-1", batch_size=32, epochs=4)
CUDA = torch.device("cuda", 0)
STEPS = 6


def train(ranks: Ranks, **more) -> TrainingStep:
    """Every rank is given the whole batch here, and takes its own rows of it."""
    step = TrainingStep(
        make_net(CASE, CUDA),
        visited_method(CASE, CUDA),
        total_steps=STEPS,
        precision="fp32",
        compile=False,
        ranks=ranks,
        **more,
    )
    with full_fp32():
        for i in range(STEPS):
            batch = list(make_loader(CASE, CUDA).epoch(CASE.epochs))[i % 2]
            step(batch if ranks.world == 1 else cut(batch, ranks.world)[ranks.rank])
    graphs = [graph for graph in step.view.regions._graphs.values() if graph.fit]
    assert graphs and all(graph.is_replayed for graph in graphs)
    return step


if __name__ == "__main__":
    backend, rank, world, store, out = sys.argv[1:]
    torch.cuda.set_device(CUDA)
    dist.init_process_group(
        backend, init_method=f"file://{store}", rank=int(rank), world_size=int(world)
    )
    ranks = Ranks(int(rank), int(world))
    step = train(ranks)
    total = torch.cat([p.detach().flatten() for p in step.net.parameters()])
    dist.all_reduce(total)  # beside what was recorded, and behind it
    torch.save({"net": step.net.state_dict(), "method": step.method.state_dict()}, out)
    dist.destroy_process_group()
