"""AutoAttack on a GPU: the CPU's way through batches and states, and the compiled net."""

from __future__ import annotations

import torch
from torch import nn

from fastuiat.evaluation import run_autoattack
from fastuiat.models import build_model

CUDA = torch.device("cuda")


def few_steps(adversary):
    for attack in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
        attack.n_iter = 10
    adversary.square.n_queries = 100


def test_the_compiled_net_gives_the_same_verdicts(tmp_path):
    torch.manual_seed(0)
    net = build_model("wrn-10-1").eval()
    nn.init.normal_(net.fc.weight)
    x = torch.rand(64, 3, 32, 32)
    with torch.no_grad():
        y = net(x).argmax(dim=1)

    def run(name, compiled):
        return run_autoattack(
            net.to(CUDA), x, y, eps=1e-3, device=CUDA, compile=compiled, adjust=few_steps,
            state_path=tmp_path / name,
        )  # fmt: skip

    plain, compiled = run("plain", False), run("compiled", True)
    assert compiled.compiled, compiled.warnings
    assert plain.robust.sum() > 0 and (compiled.robust != plain.robust).sum() <= 2
