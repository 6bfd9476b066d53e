"""Reading ahead changes neither the batches nor their end."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from fastuiat.data import Batch, one_ahead
from fastuiat.data.batch import on_device


class FakeTensor:
    def __init__(self) -> None:
        self.streams: list[object] = []
        self.device = torch.device("cuda")

    def record_stream(self, stream) -> None:
        self.streams.append(stream)


@pytest.fixture
def cuda(monkeypatch):
    """Stands for CUDA's streams, which need no GPU to be put in order."""
    log: list[str] = []
    current = SimpleNamespace(wait_event=lambda event: log.append(f"wait {event}"))

    class Side:
        made = 0

        def __init__(self, device) -> None: ...

        def record_event(self) -> int:
            Side.made += 1
            return Side.made - 1

    monkeypatch.setattr(torch.cuda, "Stream", Side)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current)
    return log, current


def batches(count, log):
    try:
        for step in range(count):
            log.append(f"make {step}")
            yield Batch(FakeTensor(), FakeTensor(), FakeTensor(), 1, step)
    finally:
        log.append("closed")


def test_the_next_batch_is_begun_before_one_is_handed_out(cuda):
    log, current = cuda
    for batch in one_ahead(batches(3, log), torch.device("cuda")):
        log.append(f"step {batch.step}")
        assert batch.x.streams == batch.y.streams == batch.index.streams == [current]
    assert log == [
        *("make 0", "make 1", "wait 0", "step 0", "make 2", "wait 1", "step 1"),
        *("closed", "wait 2", "step 2"),
    ]


def test_leaving_early_closes_the_loader(cuda):
    log, _ = cuda
    ahead = one_ahead(batches(9, log), torch.device("cuda"))
    next(ahead)
    ahead.close()
    assert log[-1] == "closed"


def test_on_the_cpu_batches_pass_through():
    log: list[str] = []
    ahead = one_ahead(batches(3, log), torch.device("cpu"))
    assert [batch.step for batch, _ in zip(ahead, range(2), strict=False)] == [0, 1]
    ahead.close()
    assert log == ["make 0", "make 1", "make 2", "closed"]


def test_on_device_hands_back_what_is_there():
    tensor = torch.zeros(2)
    assert on_device(tensor, torch.device("cpu")) is tensor
