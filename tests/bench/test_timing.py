"""Timing against a clock and steps whose times are known to the last digit."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastuiat.bench.call_memory import graph_memory, peak_memory
from fastuiat.bench.record import RecordFile
from fastuiat.bench.timing import (
    NO_TIME,
    STOPPED,
    Interruption,
    Plan,
    Provider,
    WallClock,
    interleaved,
    spread,
)

CPU = torch.device("cpu")


class FakeMachine:
    """Time passes only where a step says so; every call is noted."""

    def __init__(self) -> None:
        self.time = 0.0
        self.calls: list[str] = []
        self.clock = WallClock(now=lambda: self.time)

    def provider(self, name: str, seconds, *, build_s: float = 0.0, fails_at: int | None = None):
        """`seconds(i)` is what the i-th call takes."""
        done = 0

        def call() -> None:
            nonlocal done
            if done == fails_at:
                raise RuntimeError("worn out\nand a second line")
            self.calls.append(name)
            self.time += seconds(done)
            done += 1

        def build():
            self.time += build_s
            return call

        return Provider(name, build)


def test_the_steps_time_is_found_exactly():
    machine = FakeMachine()
    slow = machine.provider("slow", lambda i: 40.0 if i == 0 else 4.0, build_s=7.0)
    quick = machine.provider("quick", lambda i: 2.0)
    a, b = interleaved([slow, quick], clock=machine.clock, plan=Plan(warmup=2, rounds=5))
    assert a.samples == [4.0] * 5 and b.samples == [2.0] * 5
    assert (a.build_s, a.first_s, a.compile_s) == (7.0, 40.0, 36.0)
    assert b.compile_s == 0.0
    assert a.ratio_to(b).median == 2.0 and b.ratio_to(a).median == 0.5
    assert a.error is None and a.spread.n == 5


def test_rounds_are_interleaved_and_each_begins_with_another_provider():
    machine = FakeMachine()
    providers = [machine.provider(name, lambda i: 1.0) for name in "abc"]
    interleaved(providers, clock=machine.clock, plan=Plan(warmup=1, rounds=4))
    assert "".join(machine.calls) == "aabbcc" + "abc" + "bca" + "cab" + "abc"


def test_ratios_are_made_inside_a_round():
    """A machine that slows down by itself moves both times and not their ratio."""
    machine = FakeMachine()
    a = machine.provider("a", lambda i: 3.0 * 2**i)
    b = machine.provider("b", lambda i: 1.0 * 2**i)
    first, second = interleaved([a, b], clock=machine.clock, plan=Plan(rounds=5))
    ratio = first.ratio_to(second)
    assert (ratio.p20, ratio.median, ratio.p80) == (3.0, 3.0, 3.0)
    assert first.spread.width > 1


def test_percentiles_by_hand():
    s = spread([5.0, 1.0, 4.0, 2.0, 3.0, 11.0])
    assert (s.median, s.p20, s.p80, s.n) == (3.5, 2.0, 5.0, 6)
    assert s.width == pytest.approx(3 / 3.5)
    lone = spread([7.0])
    assert (lone.median, lone.p20, lone.p80, lone.width) == (7.0, 7.0, 7.0, 0.0)


@pytest.mark.parametrize("fails_at", [0, 1, 3])
def test_a_provider_that_fails_leaves_the_others_whole(fails_at):
    machine = FakeMachine()
    good = machine.provider("good", lambda i: 2.0)
    bad = machine.provider("bad", lambda i: 1.0, fails_at=fails_at)
    a, b = interleaved([bad, good], clock=machine.clock, plan=Plan(rounds=4))
    assert a.error == "RuntimeError: worn out" and a.samples == []
    assert b.error is None and b.samples == [2.0] * 4


def test_a_provider_that_cannot_be_built_is_a_row_with_its_error():
    machine = FakeMachine()

    def build():
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    a, b = interleaved(
        [Provider("large", build), machine.provider("small", lambda i: 1.0)],
        clock=machine.clock,
        plan=Plan(rounds=2),
    )
    assert a.error == "out of memory" and b.samples == [1.0, 1.0]


def test_budget_ends_the_rounds_but_never_the_first():
    machine = FakeMachine()
    step = machine.provider("step", lambda i: 10.0)
    (m,) = interleaved([step], clock=machine.clock, plan=Plan(warmup=1, rounds=50, budget_s=25))
    assert len(m.samples) == 3  # begun 0, 10 and 20 seconds after the first
    step = machine.provider("step", lambda i: 10.0)
    (m,) = interleaved([step], clock=machine.clock, plan=Plan(warmup=0, rounds=50, budget_s=1))
    assert len(m.samples) == 1


@pytest.mark.parametrize(("peak", "rounds"), [(None, 4), (lambda call: call(), 3)])
def test_the_end_is_kept_with_room_for_the_memorys_call(peak, rounds):
    """Built in 20 s; a round of 10 s ends by 65 s, or so that one more call does."""
    machine = FakeMachine()
    step = machine.provider("step", lambda i: 10.0)
    plan = Plan(warmup=1, rounds=50, until=65.0)
    (m,) = interleaved([step], clock=machine.clock, plan=plan, peak=peak)
    assert len(m.samples) == rounds and machine.time == 60.0


def test_after_the_end_one_round_is_done_and_no_memory_read():
    machine = FakeMachine()
    step = machine.provider("step", lambda i: 10.0)
    plan = Plan(warmup=0, rounds=5, until=5.0)
    (m,) = interleaved([step], clock=machine.clock, plan=plan, peak=lambda call: 1)
    assert len(m.samples) == 1 and m.peak_bytes is None and m.error is None


def test_what_is_left_out_would_not_fit_even_one_round():
    """All rows are shortened before one is left out."""
    machine = FakeMachine()
    providers = [machine.provider(name, lambda i: 10.0, build_s=20.0) for name in "abcd"]
    # Each takes 40 s to be ready. At 80 s a third one would be ready at 120 s, and one round of
    # three ends at 150 s; a fourth one would be ready at 160 s.
    measured = interleaved(providers, clock=machine.clock, plan=Plan(rounds=5, until=150.0))
    assert [m.samples for m in measured] == [[10.0]] * 3 + [[]]
    assert measured[3].error == NO_TIME and machine.time == 150.0
    machine.time = 0.0
    measured = interleaved(providers, clock=machine.clock, plan=Plan(rounds=5, until=149.0))
    assert [m.error for m in measured] == [None, None, NO_TIME, NO_TIME]
    assert [len(m.samples) for m in measured[:2]] == [3, 3]


def test_long_samples_count_in_what_a_round_takes():
    """Each is ready after 2 s, and its sample lasts 10 s by repetition."""
    machine = FakeMachine()
    providers = [machine.provider(name, lambda i: 1.0) for name in "abc"]
    plan = Plan(rounds=5, until=30.0, min_sample_s=10.0)
    # At 4 s: ready at 6 s, and a round of three at 36 s.
    measured = interleaved(providers, clock=machine.clock, plan=plan)
    assert [m.error for m in measured] == [None, None, NO_TIME] and machine.time == 24.0


def in_turns(machine, names="xyz", **times):
    return [
        dataclasses.replace(machine.provider(name, lambda i: 2.0, **times), turn="row")
        for name in names
    ]


def test_parts_of_a_row_take_turns_after_the_first_round():
    machine = FakeMachine()
    providers = [machine.provider("a", lambda i: 1.0), *in_turns(machine)]
    plan = Plan(warmup=0, rounds=6, turns=True)
    a, x, y, z = interleaved(providers, clock=machine.clock, plan=plan)
    assert "".join(machine.calls) == "axyz" + "axyz" + "xa" + "ay" + "za" + "ax" + "ya"
    assert (a.rounds, x.rounds) == ([0, 1, 2, 3, 4, 5], [0, 1, 4])
    assert (y.rounds, z.rounds) == ([0, 2, 5], [0, 3])
    machine = FakeMachine()
    providers = [machine.provider("a", lambda i: 1.0), *in_turns(machine)]
    measured = interleaved(providers, clock=machine.clock, plan=Plan(warmup=0, rounds=6))
    assert [m.rounds for m in measured] == [[0, 1, 2, 3, 4, 5]] * 4


def test_a_ratio_is_made_in_the_rounds_that_both_were_in():
    """A machine that slows down from call to call of a: the ratio does not see it."""
    machine = FakeMachine()
    a = machine.provider("a", lambda i: 2.0**i)
    # y is called in rounds 0, 2 and 4, when a takes 2, 8 and 32 s.
    x, y = (
        dataclasses.replace(machine.provider(name, times), turn="row")
        for name, times in (("x", lambda i: 1.0), ("y", lambda i: 6.0 * 4 ** max(0, i - 1)))
    )
    plan = Plan(warmup=0, rounds=5, turns=True)
    first, _, y = interleaved([a, x, y], clock=machine.clock, plan=plan)
    assert y.rounds == [0, 2, 4] and y.samples == [6.0, 24.0, 96.0]
    assert y.ratio_to(first).median == y.ratio_to(first).p20 == 3.0
    assert first.ratio_to(y).n == 3


def test_turns_make_room_for_more_rounds():
    machine = FakeMachine()
    plan = Plan(warmup=0, rounds=50, until=30.0, turns=True)
    measured = interleaved(in_turns(machine), clock=machine.clock, plan=plan)
    # Warm at 6 s, round one ends at 12 s, then nine of 2 s.
    assert [len(m.samples) for m in measured] == [4, 4, 4] and machine.time == 30.0


def test_parts_of_a_row_share_what_was_slow_to_build():
    """Else a row whose first part is ready might be given up for the sake of its second."""
    machine = FakeMachine()
    first = dataclasses.replace(machine.provider("x", lambda i: 1.0, build_s=50.0), turn="row")
    second = dataclasses.replace(machine.provider("y", lambda i: 1.0), turn="row")
    other = machine.provider("b", lambda i: 1.0, build_s=50.0)
    plan = Plan(warmup=0, rounds=1, until=60.0)
    measured = interleaved([first, second, other], clock=machine.clock, plan=plan)
    assert [m.error for m in measured] == [None, None, NO_TIME]
    machine.time = 0.0
    slow = [
        dataclasses.replace(machine.provider(name, lambda i: 1.0, build_s=20.0), turn="row")
        for name in "pqr"
    ]
    # The second was ready after 21 s: at 42 s the third would be at 63 s, and a round at 66 s.
    measured = interleaved(slow, clock=machine.clock, plan=dataclasses.replace(plan, until=65.0))
    assert [m.error for m in measured] == [None, None, NO_TIME]


def test_one_long_build_does_not_shut_out_quick_ones():
    machine = FakeMachine()
    long = machine.provider("long", lambda i: 1.0, build_s=60.0)
    quick = [machine.provider(name, lambda i: 1.0, build_s=2.0) for name in "abc"]
    plan = Plan(warmup=0, rounds=1, until=104.0)
    # At 64 s the average is 32 s, at 67 s it is 22: 99 s with a round of three, and 93 of four.
    measured = interleaved([*quick[:1], long, *quick[1:]], clock=machine.clock, plan=plan)
    assert [m.error for m in measured] == [None] * 4 and machine.time < 104.0


def test_rounds_go_on_until_the_spread_is_calm():
    machine = FakeMachine()
    plan = Plan(warmup=0, rounds=3, max_rounds=40, width=0.05)
    noisy = machine.provider("noisy", lambda i: 2.0 if i < 3 else 1.0)
    (m,) = interleaved([noisy], clock=machine.clock, plan=plan)
    # The first call is apart: two of 2 s, then ones, until the 80th percentile is a one: of n
    # values it lies at 0.8·(n − 1), which must not be beyond the last 1.0 at n − 3.
    assert len(m.samples) == 11 and m.spread.width == 0


def test_short_calls_are_repeated_inside_a_sample():
    machine = FakeMachine()
    (m,) = interleaved(
        [machine.provider("short", lambda i: 0.25)],
        clock=machine.clock,
        plan=Plan(warmup=1, rounds=3, min_sample_s=0.9),
    )
    assert m.samples == [0.25] * 3 and m.repeats == 4
    assert len(machine.calls) == 2 + 3 * 4


def test_what_is_done_before_a_call_is_not_timed():
    machine = FakeMachine()
    step = machine.provider("step", lambda i: 2.0)

    def wash() -> None:
        machine.calls.append("wash")
        machine.time += 100.0

    plan = Plan(warmup=1, rounds=2, min_sample_s=3.0)
    (m,) = interleaved([dataclasses.replace(step, before=wash)], clock=machine.clock, plan=plan)
    assert m.samples == [2.0, 2.0] and m.repeats == 2
    assert machine.calls == ["step"] * 2 + ["wash", "step"] * 4


def test_peak_memory_of_a_call():
    def call() -> None:
        a = torch.empty(1000, 1000)
        b = torch.empty(500, 1000)
        del a
        c = torch.empty(250, 1000)
        del b, c

    assert peak_memory(CPU)(call) == 6_000_000


def test_peak_memory_is_of_one_more_call_after_the_rounds():
    machine = FakeMachine()
    seen = []

    def peak(call):
        seen.append(len(machine.calls))
        call()
        return 123

    (m,) = interleaved(
        [machine.provider("a", lambda i: 1.0)],
        clock=machine.clock,
        plan=Plan(warmup=1, rounds=3),
        peak=peak,
    )
    assert m.peak_bytes == 123 and seen == [5] and m.samples == [1.0] * 3


def test_what_graphs_hold_is_part_of_the_peak():
    """Each provider's own: what was added while it was built and warmed up."""
    machine = FakeMachine()
    held = {"a": 0, "b": 0}
    (m, n, o) = interleaved(
        [
            machine.provider("a", lambda i: held.update(a=100) or 1.0),
            machine.provider("b", lambda i: held.update(b=40) or 1.0),
            machine.provider("c", lambda i: 1.0),
        ],
        clock=machine.clock,
        plan=Plan(rounds=1),
        peak=lambda call: 5,
        graphs=lambda: sum(held.values()),
    )
    assert (m.graph_bytes, n.graph_bytes, o.graph_bytes) == (100, 40, 0)
    assert (m.peak_bytes, n.peak_bytes, o.peak_bytes) == (105, 45, 5)


def test_graph_pools_in_a_snapshot(monkeypatch):
    """Segments as torch.cuda.memory_snapshot gives them; (0, 0) is the pool of everything else."""
    segments = [
        {"device": 0, "total_size": 1000, "allocated_size": 900, "segment_pool_id": (0, 0)},
        {"device": 0, "total_size": 200, "allocated_size": 0, "segment_pool_id": (0, 1)},
        {"device": 0, "total_size": 30, "allocated_size": 0, "segment_pool_id": (0, 2)},
        {"device": 1, "total_size": 4, "allocated_size": 0, "segment_pool_id": (0, 1)},
    ]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    assert graph_memory(torch.device("cuda", 0))() == 230
    assert graph_memory(torch.device("cuda", 1))() == 4
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert graph_memory(torch.device("cuda"))() == 230
    assert graph_memory(CPU)() == 0


def test_ctrl_c_keeps_what_was_measured(tmp_path):
    """It ends the rounds, not what has been measured; and counts once that is written down."""
    calls = {"quick": 0}

    def quick():
        calls["quick"] += 1
        if calls["quick"] == 4:  # in the second round, where the other comes first
            raise KeyboardInterrupt

    providers = [Provider("quick", lambda: quick), Provider("other", lambda: lambda: None)]
    first, other = interleaved(providers, clock=WallClock(), plan=Plan(rounds=9))
    assert (len(first.samples), len(other.samples)) == (1, 2) and not first.error
    recorder = RecordFile(tmp_path / "kept.jsonl")
    with pytest.raises(KeyboardInterrupt):
        recorder.write([{"median_s": first.spread.median}])
    recorder.close()
    assert (tmp_path / "kept.jsonl").read_text().count("\n") == 1
    Interruption.heed()  # once is enough


def test_ctrl_c_while_a_row_is_built_says_so():
    def build():
        raise KeyboardInterrupt

    providers = [Provider("stopped", build), Provider("never", lambda: lambda: None)]
    measured = interleaved(providers, clock=WallClock(), plan=Plan())
    assert [m.error for m in measured] == [STOPPED, STOPPED]
    with pytest.raises(KeyboardInterrupt):
        Interruption.heed()
