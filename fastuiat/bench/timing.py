"""Interleaved timing of several providers of the same work, in one process.

A round calls every provider once, so that whatever disturbs the machine meets all of them; each
round begins with another one. Ratios are made inside a round and only then summarised. The first
call, which compiles, and the warm-up stay outside the rounds.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch

Call = Callable[[], object]


class Clock(Protocol):
    """What measures a call. `now` is for budgets, `seconds` for results."""

    def now(self) -> float: ...

    def seconds(self, call: Call) -> float: ...


class WallClock:
    """Host time: right where the call returns when its work is done, as on the CPU."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now

    def seconds(self, call: Call) -> float:
        began = self.now()
        call()
        return self.now() - began


class DeviceClock:
    """CUDA events around the call, read after both have passed on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> float:
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def seconds(self, call: Call) -> float:
        with torch.cuda.device(self.device):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize()
            return begin.elapsed_time(end) / 1e3


def clock_for(device: torch.device) -> Clock:
    return DeviceClock(device) if device.type == "cuda" else WallClock()


@dataclass(frozen=True)
class Spread:
    """Median and 20/80 percentiles of n values, linearly interpolated between order statistics."""

    median: float
    p20: float
    p80: float
    n: int

    @property
    def width(self) -> float:
        """(p80 − p20) / median: 0.03 is a spread of 3%."""
        return (self.p80 - self.p20) / self.median if self.median else 0.0


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of the ordered values lie."""
    at = share * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (at - low) * (ordered[high] - ordered[low])


def spread(values: Sequence[float]) -> Spread:
    ordered = sorted(values)
    p20, median, p80 = (percentile(ordered, share) for share in (0.2, 0.5, 0.8))
    return Spread(median, p20, p80, len(ordered))


@dataclass
class Provider:
    """One way to do the work. `build` makes the call to be timed; either may fail on its own.

    Whatever the call keeps alive is freed when its Measurement is made.
    """

    name: str
    build: Callable[[], Call]


@dataclass
class Measurement:
    """What one provider took. Without `error`, `samples` holds one value for each round."""

    name: str
    samples: list[float] = field(default_factory=list)
    build_s: float = 0.0
    first_s: float = 0.0
    """Seconds of the first call, in which torch.compile compiles."""
    warm_s: float = 0.0
    """Seconds of the last call before the rounds."""
    peak_bytes: int | None = None
    error: str | None = None
    repeats: int = 1
    """Calls in one sample."""

    @property
    def spread(self) -> Spread:
        return spread(self.samples)

    @property
    def compile_s(self) -> float:
        """Seconds of the first call beyond a usual one."""
        return max(0.0, self.first_s - self.spread.median) if self.samples else 0.0

    def ratio_to(self, other: Measurement) -> Spread:
        """This provider's time over the other's, round by round: 2 is twice as slow."""
        return spread([a / b for a, b in zip(self.samples, other.samples, strict=True)])


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long to measure: `rounds`, fewer where `budget_s` is used up, more to calm the spread."""

    warmup: int = 1
    """Calls after the first one and before the clock counts."""
    rounds: int = 5
    max_rounds: int | None = None
    """Go on to so many rounds while a spread is wider than `width`."""
    width: float = 0.03
    budget_s: float | None = None
    """Begin no round later than this after the first began; warm-up does not count."""
    until: float | None = None
    """The moment of the clock to be done by, as far as what came before tells. No provider is begun
    to be built that would leave no time for some rounds if it took as long as those before it on
    the average (its row says so); no round is begun that would end later if it took as long as the
    last one (and as long again for the memory). One round is always done."""
    min_sample_s: float = 0.0
    """Repeat a call inside a sample until it lasts so long, and divide."""


QUEUED_S = 0.25
"""A sample of training steps on CUDA: waited for one by one, they would each begin with an idle GPU
and a host that does not run ahead, as it does in training."""


OUT_OF_MEMORY = "out of memory"
RESERVED_ROUNDS = 5
"""For which building leaves time, if as many are planned."""
NO_TIME = "no time left to measure it: give --budget more seconds, or ask for less"


def describe(error: BaseException) -> str:
    """One line for a failed row."""
    # On the CPU PyTorch's allocator raises a plain RuntimeError.
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
        return OUT_OF_MEMORY
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".rstrip(": ")[:300]


def interleaved(
    providers: Sequence[Provider],
    *,
    clock: Clock,
    plan: Plan,
    peak: Callable[[Call], int | None] | None = None,
    done: Callable[[str], object] = lambda event: None,
) -> list[Measurement]:
    """Measure the providers in rounds; one that raises gets an error, the others go on.

    `peak` measures the memory of one more call, after the rounds. `done` hears of progress.
    """
    results = {p.name: Measurement(p.name) for p in providers}
    calls: dict[str, Call] = {}
    taken: list[float] = []
    for provider in providers:
        asked = clock.now()
        rounds = min(plan.rounds, RESERVED_ROUNDS) * sum(results[n].warm_s for n in calls)
        usual = sum(taken) / len(taken) if taken else 0.0
        if plan.until is not None and asked + usual + rounds >= plan.until:
            results[provider.name].error = NO_TIME
            continue
        done(f"{provider.name}: building and warming up")
        _attempt(calls, results[provider.name], partial(_warm, provider, results, clock, plan))
        taken.append(clock.now() - asked)
    for name in calls:
        results[name].repeats = _repeats(results[name], plan)
    ended = [clock.now()]
    for turn in range(max(plan.rounds, plan.max_rounds or 0)):
        if not calls or _is_enough(plan, [results[n] for n in calls], ended, peak is not None):
            break
        done(f"round {turn + 1}")
        for name in _rotated(list(calls), turn):
            sample = partial(_sample, calls[name], results[name], clock)
            _attempt(calls, results[name], sample)
        ended.append(clock.now())
    for name in list(calls):
        if peak is not None and (plan.until is None or clock.now() < plan.until):
            with contextlib.suppress(Exception):  # a time without its memory is still a time
                results[name].peak_bytes = peak(calls[name])
    calls.clear()
    release()
    return [results[p.name] for p in providers]


def _is_enough(
    plan: Plan, measured: list[Measurement], ended: list[float], with_peak: bool
) -> bool:
    """Whether to begin no further round; `ended` is when the rounds began and each has ended."""
    turn, now = len(ended) - 1, ended[-1]
    if not turn:
        return False
    if plan.budget_s is not None and now - ended[0] >= plan.budget_s:
        return True
    last = now - ended[-2]
    if plan.until is not None and now + last * (2 if with_peak else 1) > plan.until:
        return True
    return turn >= plan.rounds and all(m.spread.width <= plan.width for m in measured)


def _rotated(names: list[str], turn: int) -> list[str]:
    first = turn % len(names) if names else 0
    return names[first:] + names[:first]


def _attempt(calls: dict[str, Call], result: Measurement, work: Callable[[], Call]) -> None:
    """Run one piece of a provider's work; where it raises, the provider is out."""
    try:
        calls[result.name] = work()
    except Exception as error:
        result.error = describe(error)
        result.samples.clear()
        calls.pop(result.name, None)
    if result.error:
        release()


def _warm(provider: Provider, results: dict[str, Measurement], clock: Clock, plan: Plan) -> Call:
    result = results[provider.name]
    made: list[Call] = []
    result.build_s = clock.seconds(lambda: made.append(provider.build()))
    result.warm_s = result.first_s = clock.seconds(made[0])
    for _ in range(plan.warmup):
        result.warm_s = clock.seconds(made[0])
    return made[0]


def _repeats(result: Measurement, plan: Plan) -> int:
    """Calls per sample, from the last warm-up call."""
    last = result.warm_s if plan.warmup else 0.0
    return max(1, math.ceil(plan.min_sample_s / last)) if plan.min_sample_s and last else 1


def _sample(call: Call, result: Measurement, clock: Clock) -> Call:
    def work() -> None:
        for _ in range(result.repeats):
            call()

    seconds = clock.seconds(call if result.repeats == 1 else work)
    result.samples.append(seconds / result.repeats)
    return call


def release() -> None:
    """Hand back what ended providers held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
