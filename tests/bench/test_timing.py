"""Timing against a clock and steps whose times are known to the last digit."""

from __future__ import annotations

import pytest
import torch

from fastuiat.bench.memory import peak_memory
from fastuiat.bench.timing import NO_TIME, Plan, Provider, WallClock, interleaved, spread

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


def test_what_cannot_be_begun_in_time_is_a_row_that_says_so():
    machine = FakeMachine()
    providers = [machine.provider(name, lambda i: 10.0, build_s=20.0) for name in "abcd"]
    plan = Plan(warmup=1, rounds=2, until=159.0)
    # Each takes 40 s to be ready. At 80 s a third one would be ready at 120 s, and two rounds of
    # those there are end at 160 s.
    a, b, c, d = interleaved(providers, clock=machine.clock, plan=plan)
    assert a.samples == b.samples == [10.0, 10.0]
    assert c.error == d.error == NO_TIME and c.samples == []
    machine.time = 0.0
    *_, c, d = interleaved(providers, clock=machine.clock, plan=Plan(warmup=1, rounds=2, until=161))
    assert c.samples == [10.0] and d.error == NO_TIME, "the third made a round longer"


def test_one_long_build_does_not_shut_out_quick_ones():
    machine = FakeMachine()
    long = machine.provider("long", lambda i: 1.0, build_s=60.0)
    quick = [machine.provider(name, lambda i: 1.0, build_s=2.0) for name in "abc"]
    plan = Plan(warmup=0, rounds=1, until=104.0)
    # At 64 s the average is 32 s, at 67 s it is 22: 101 s with the rounds, and 92.
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
