"""The probability memory: half precision only where it is needed, and small enough."""

from __future__ import annotations

import pytest
import torch

from fastuiat.memory import ProbabilityMemory

LIMIT = 250e6


@pytest.mark.parametrize(
    "samples, classes, dtype",
    [
        (50_000, 10, torch.float32),
        (50_000, 100, torch.float32),
        (1_050_000, 10, torch.float32),
        (1_050_000, 100, torch.float16),
        (625_000, 100, torch.float32),  # exactly the limit
    ],
)
def test_size(samples, classes, dtype):
    memory = ProbabilityMemory(samples, classes)
    assert memory.probs.dtype == dtype
    assert sum(b.numel() * b.element_size() for b in memory.buffers()) <= LIMIT + samples


def test_half_precision_keeps_probabilities():
    memory = ProbabilityMemory(1_050_000, 100)
    p = torch.softmax(4 * torch.randn(8, 100, generator=torch.Generator().manual_seed(0)), dim=1)
    index = torch.tensor([0, 5, 49_999, 50_000, 700_000, 1_000_000, 1_049_998, 1_049_999])
    assert torch.equal(memory.update(index, p, gamma=0.0), p)
    stored, seen = memory.recall(index)
    assert seen.all() and stored.dtype == torch.float32
    assert torch.allclose(stored, p, rtol=2**-10, atol=1e-7)
    mixed = memory.update(index, p.flip(1), gamma=0.9)
    assert torch.allclose(mixed, 0.9 * p + 0.1 * p.flip(1), rtol=2**-9, atol=1e-6)
    assert not memory.recall(torch.tensor([1]))[1].any()
