"""What a device can do at most."""

from __future__ import annotations

import functools

import torch

from fastuiat.bench.timing import Plan, Provider, WallClock, interleaved

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIZE = 1024


@functools.cache
def _cpu_flops(precision: str) -> float:
    a = torch.ones(SIZE, SIZE, dtype=DTYPES[precision])
    (m,) = interleaved(
        [Provider("product", lambda: lambda: a @ a)], clock=WallClock(), plan=Plan(rounds=5)
    )
    return 2 * SIZE**3 / min(m.samples)


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The most flop/s of dense matrix products: measured on the CPU, None elsewhere."""
    return _cpu_flops(precision) if device.type == "cpu" else None
