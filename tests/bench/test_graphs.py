"""Kernels timed by replays of many calls: exact on a machine that records what it is asked for."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastuiat.bench import calls, graphs, suites
from fastuiat.bench.graphs import Graphs, Pool, make_pool, replayed
from fastuiat.bench.suites import kernels as suite
from fastuiat.bench.timing import NO_TIME, OUT_OF_MEMORY, Plan, WallClock
from fastuiat_kernels.spec import Pointer

CPU = torch.device("cpu")
LAUNCH_S = 64e-6
"""Of a replay."""


class FakeGPU:
    """Time passes where Python calls an operation, and where a recording of some is replayed."""

    def __init__(self, cache_bytes: int = 1000, room_bytes: int = 1 << 40) -> None:
        self.time = 0.0
        self.recording: list[float] | None = None
        self.log: list[str] = []
        self.seen: list[int] = []
        """Where the inputs of recorded calls lie."""
        self.clock = WallClock(now=lambda: self.time)
        self.graphs = Graphs(lambda: self.record, self.warm, self.wash, cache_bytes, room_bytes)

    def operation(self, from_python: float, on_device: float, fails: Exception | None = None):
        def run(x, **others):
            if self.recording is None:
                self.time += from_python
            elif fails is not None:
                raise fails
            else:
                self.recording.append(on_device)
                self.seen.append(x.data_ptr())
            return torch.empty(3)

        return run

    def record(self, work):
        self.recording = nodes = []
        try:
            results = work()
        finally:
            self.recording = None

        def replay() -> None:
            self.log.append("replay")
            self.time += LAUNCH_S + sum(nodes)

        return results, replay

    def warm(self, call) -> float:
        return self.clock.seconds(call)

    def wash(self) -> None:
        self.log.append("wash")
        self.time += 1.0


def case_of(machine, operation):
    """An operation on 256 bytes, of which it reads and writes 512."""
    case = suite.cases(("sign_step",), ("small",), every_dtype=False)[0]
    variant = dataclasses.replace(
        case.variant,
        reference=operation,
        inputs=lambda size, dtype, device: {"x": torch.zeros(64), "alpha": 2.0},
        pointers=lambda inputs: {"x": Pointer(512, 16)},
    )
    return dataclasses.replace(case, variant=variant)


PLAN = Plan(rounds=3, min_sample_s=1e-3)


def measured(machine, eager, inductor, monkeypatch, plan=PLAN):
    monkeypatch.setattr(suite, "compiled", lambda reference: inductor)
    monkeypatch.setattr(calls, "peak_memory", lambda device: lambda call: 7)
    return suite.measure(
        case_of(machine, eager),
        CPU,
        plan=plan,
        bandwidth=1e9,
        clock=machine.clock,
        graphs=machine.graphs,
    )


def test_a_sample_is_a_replay_over_its_calls(monkeypatch, capsys):
    machine = FakeGPU(cache_bytes=5 * 256)
    eager, inductor = machine.operation(60e-6, 10e-6), machine.operation(80e-6, 2.5e-6)
    slow, quick = measured(machine, eager, inductor, monkeypatch)
    # Ten copies; gone around 13 times there are as many calls as are wanted.
    assert slow["graph_calls"] == quick["graph_calls"] == 130
    for r, python, device in ((slow, 60e-6, 10e-6), (quick, 80e-6, 2.5e-6)):
        assert r["timed"] == "replays" and r["error"] is None and r["replay_error"] is None
        assert r["samples_s"] == pytest.approx([device + LAUNCH_S / 130] * 3)
        assert r["call_s"] == pytest.approx(python)
        assert r["bytes_per_s"] == pytest.approx(512 / r["median_s"])
        assert r["copy_share"] == pytest.approx(512 / r["median_s"] / 1e9)
        assert r["peak_bytes"] == 7 and r["compile_s"] == pytest.approx(0, abs=1e-9)
    assert (slow["repeats"], quick["repeats"]) == (130, 3 * 130), "each sample lasts a millisecond"
    assert slow["ratio_median"] == 1
    assert quick["ratio_median"] == pytest.approx(quick["median_s"] / slow["median_s"])
    assert len(set(machine.seen)) == 10 and machine.seen[:10] == machine.seen[10:20]
    assert "wash" not in machine.log
    suites.get("kernels").show([slow, quick])
    said = capsys.readouterr().out
    assert "a call from Python" in said and "80 µs" in said and "replays" in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("operation not permitted\nwhen stream is capturing"), "RuntimeError: opera"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), OUT_OF_MEMORY),
    ],
)
def test_what_cannot_be_recorded_is_timed_by_calls_and_says_so(monkeypatch, capsys, error, said):
    machine = FakeGPU(cache_bytes=5 * 256)
    eager = machine.operation(60e-6, 10e-6, fails=error)
    slow, quick = measured(machine, eager, machine.operation(90e-6, 2e-6), monkeypatch)
    assert (slow["timed"], quick["timed"]) == ("calls", "replays")
    assert slow["median_s"] == slow["call_s"] == pytest.approx(60e-6) and slow["error"] is None
    assert slow["replay_error"].startswith(said) and slow["graph_calls"] is None
    assert quick["median_s"] < 3e-6
    assert quick["ratio_median"] == pytest.approx(1.5), "call by call, as eager was"
    suites.get("kernels").show([slow, quick])
    assert f"eager: timed by calls, for its replay failed: {said}" in capsys.readouterr().out


def test_a_replay_that_time_leaves_no_room_for(monkeypatch):
    machine = FakeGPU()
    plan = Plan(rounds=3, min_sample_s=1e-3, until=1e-4)
    eager, inductor = (machine.operation(60e-6, 10e-6) for _ in range(2))
    slow, quick = measured(machine, eager, inductor, monkeypatch, plan)
    assert slow["timed"] == "calls" and slow["replay_error"] == NO_TIME and slow["n"] == 1
    assert quick["error"] == NO_TIME and quick["call_s"] is None and quick["ratio_median"] is None


def test_inputs_too_small_to_exceed_the_cache_find_it_washed(monkeypatch):
    machine = FakeGPU(cache_bytes=1 << 20, room_bytes=300 * 256)
    operation = machine.operation(60e-6, 10e-6)
    slow, _ = measured(machine, operation, operation, monkeypatch)
    assert slow["graph_calls"] == 300
    assert slow["samples_s"] == pytest.approx([10e-6 + LAUNCH_S / 300] * 3), "washing is not timed"
    log = "".join(word[0] for word in machine.log)
    assert log == "rr" + "rr" + "wr" * 6, "two warm-ups of each, then three rounds"


def test_copies_are_twice_the_cache_in_what_calls_touch(monkeypatch):
    first = {"x": torch.zeros(4, 8, 3).permute(2, 0, 1), "memory": torch.zeros(1000), "eps": 0.5}
    held, machine = 4 * (96 + 1000), FakeGPU(cache_bytes=10_000)
    pool = make_pool(first, 500, machine.graphs)  # a few rows of the memory are read
    assert len(pool.inputs) == 40 and not pool.washed
    assert len({t.data_ptr() for i in pool.inputs for t in (i["x"], i["memory"])}) == 80
    assert all(i["x"].stride() == first["x"].stride() and i["eps"] == 0.5 for i in pool.inputs)
    # What it writes is not an input: 20,000 bytes are wanted of those that there are.
    assert len(make_pool(first, 10 * held, machine.graphs).inputs) == 5
    monkeypatch.setattr(graphs, "MAX_COPIES", 3)
    pool = make_pool(first, 500, machine.graphs)
    assert len(pool.inputs) == 3 and pool.washed
    large = make_pool(first, 500, FakeGPU(cache_bytes=100).graphs)
    assert len(large.inputs) == 1 and not large.washed


def test_calls_in_a_graph():
    assert Pool([{}] * 16, washed=False).calls(50e-6) == 128
    assert Pool([{}] * 22, washed=False).calls(50e-6) == 132, "each copy as often as the others"
    assert Pool([{}] * 500, washed=False).calls(50e-6) == 500
    assert Pool([{}] * 1, washed=False).calls(5e-3) == 20, "100 ms are enough"
    assert Pool([{}] * 3, washed=False).calls(1.0) == 3
    assert Pool([{}] * 3, washed=True).calls(50e-6) == 3, "a second time, they would be known"
    assert Pool([{}] * 2, washed=False).calls(0.0) == 128


def test_results_of_a_go_around_are_alive_together():
    """Else the memory of one would be the next one's, and be written in the cache."""
    alive, most = set(), []

    class Result:
        def __init__(self) -> None:
            alive.add(id(self))
            most.append(len(alive))

        def __del__(self) -> None:
            alive.discard(id(self))

    machine = FakeGPU()
    _, calls = replayed(lambda: Result(), Pool([{}] * 50, washed=False), machine.graphs)
    assert calls == 150 and max(most) == 51 and not alive
