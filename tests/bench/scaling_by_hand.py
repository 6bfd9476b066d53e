"""What steps exchange and cost, by other means than the bench's."""

from __future__ import annotations

import torch
from torch import nn

from fastuiat import build_model
from fastuiat.bench.record import config_hash
from fastuiat.bench.workload import Case, training_step

B, K, PIXELS = 4, 10, 3 * 32 * 32


def by_hand(arch: str, metrics: int) -> dict[str, int]:
    """What a step of UIAT exchanges: fp32 sums, and an index and a row of P for each image."""
    net = build_model(arch)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    return {
        "gradients": 4 * sum(p.numel() for p in net.parameters()),
        "statistics": 4 * sum(2 * norm.num_features for norm in norms),
        "z and metrics": 4 * (K * PIXELS + K + metrics),
        "rows of P": B * (8 + 4 * K),
        "flag": 8,
    }


def metrics_of(case: Case) -> int:
    """Of one step of one process, its loss among them."""
    out = training_step(case, torch.device("cpu"), precision="fp32", compiled=False)()
    return 1 + len(out.metrics)


def h100_record(arch: str, batch_size: int, seconds: float, precision: str = "bf16") -> dict:
    config = {"arch": arch, "method": "uiat", "batch_size": batch_size, "phase": None}
    config |= {"settings": {}, "precision": precision, "compile": True}
    return {
        "format": "fastuiat-bench-1",
        "suite": "step",
        "case": f"{arch}/b{batch_size}/uiat",
        "provider": "fastuiat",
        "device": "NVIDIA H100 80GB HBM3",
        **dict.fromkeys(("median_s", "p20_s", "p80_s"), seconds),
        "n": 5,
        "error": None,
        "config": config,
        "config_hash": config_hash(config),
        "time": "2026-01-02T00:00:00+00:00",
    }
