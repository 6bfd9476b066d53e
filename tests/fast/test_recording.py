"""A recorded region gives what the region gives, on memory of its own."""

from __future__ import annotations

import pytest
import torch

from fastuiat.fast import recording
from fastuiat.fast.recording import Recorded


class Tape:
    """Stands for CUDA's recorder: the work is done at each replay, into the first results."""

    def __init__(self):
        self.recorded = 0
        self.replayed = 0

    def __call__(self, work):
        self.recorded += 1
        results = [torch.full_like(r, float("nan")) for r in work()]

        def replay():
            self.replayed += 1
            for old, new in zip(results, work(), strict=True):
                old.copy_(new)

        return results, replay


@pytest.fixture
def tape(monkeypatch):
    monkeypatch.setattr(recording, "on_gpu", lambda tensors: True)
    return Tape()


def region(net, x, pair, factor, add):
    """Reads a tuple and constants as real regions do."""
    left, right = pair
    return [net * x + left * factor, (right + add).sum()]


def test_replays_are_the_region_and_outlive_later_ones(tape):
    net = torch.tensor(2.0)
    recorded = Recorded(region, tape, [])
    outs, expected = [], []
    for i in range(5):
        x, left, right = (torch.rand(3, 2) + i for _ in range(3))
        outs.append(recorded(net, x, (left, right), 0.5, 1))
        expected.append(region(net, x, (left, right), 0.5, 1))
        net.add_(1)  # in place, as an optimiser changes weights
    for out, want in zip(outs, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(out, want, strict=True))
    assert tape.recorded == 1 and tape.replayed == 4


def test_what_a_region_writes_into_is_used_where_it_is(tape):
    counts = torch.zeros(2)

    def counting(net, x, counts):
        counts.add_(x.sum())
        return [x + 1]

    recorded = Recorded(counting, tape, [counts])
    for _ in range(3):
        recorded(None, torch.ones(2), counts)
    # The tape's own recording works as well, which CUDA's does not.
    assert counts.tolist() == [8.0, 8.0]


def test_leaves_stay_leaves(tape):
    def squared(net, x):
        with torch.enable_grad():
            (grad,) = torch.autograd.grad((x * x).sum(), x)
        return [grad]

    recorded = Recorded(squared, tape, [])
    for i in range(3):
        x = torch.full((2,), float(i), requires_grad=True)
        with torch.no_grad():
            assert recorded(None, x)[0].tolist() == [2.0 * i, 2.0 * i]
    assert tape.replayed == 2


def test_a_forward_that_is_differentiated_is_not_recorded(tape):
    weight = torch.ones(2, requires_grad=True)
    recorded = Recorded(lambda net, x: [net * x], tape, [])
    for i in range(3):
        (out,) = recorded(weight, torch.full((2,), float(i)))
        (grad,) = torch.autograd.grad(out.sum(), weight)
        assert grad.tolist() == [i, i]
    assert tape.recorded == 0


def test_on_the_cpu_nothing_is_recorded():
    tape = Tape()
    recorded = Recorded(lambda net, x: [x + 1], tape, [])
    assert [recorded(None, torch.tensor(float(i)))[0].item() for i in range(3)] == [1, 2, 3]
    assert tape.recorded == 0


def test_what_cannot_be_recorded_runs_as_it_did(tape, monkeypatch, caplog):
    def fails(work):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    recorded = Recorded(lambda net, x: [x + 1], fails, [])
    with caplog.at_level("WARNING"):
        outs = [recorded(None, torch.tensor(float(i)))[0].item() for i in range(4)]
    assert outs == [1, 2, 3, 4]
    (said,) = caplog.messages
    assert "not permitted" in said and "more" not in said


def test_one_by_one_nothing_is_recorded_or_replayed(tape):
    """Meanwhile; what was recorded before is replayed afterwards, on the weights as they are."""
    net = torch.tensor(2.0)
    recorded = Recorded(lambda net, x: [net * x], tape, [])

    def call(value):
        return recorded(net, torch.tensor(value))[0].item()

    with recording.one_by_one():
        assert [call(1.0), call(2.0)] == [2, 4] and tape.recorded == 0
    assert [call(3.0), call(4.0)] == [6, 8] and (tape.recorded, tape.replayed) == (1, 2)
    with pytest.raises(KeyError), recording.one_by_one():
        net.add_(1)
        assert call(5.0) == 15 and tape.replayed == 2
        raise KeyError
    assert call(6.0) == 18 and tape.replayed == 3
