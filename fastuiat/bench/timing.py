"""Interleaved timing of several providers of the same work, in one process.

A round calls every provider once, so that whatever disturbs the machine meets all of them; each
round begins with another one. Parts of one row may take turns: then a round calls one of them, the
first round all. Ratios are made inside a round and only then summarised. The first call, which
compiles, and the warm-up stay outside the rounds.
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
    before: Call | None = None
    """Done before every call of a sample, outside of its time."""
    turn: str | None = None
    """Providers of one name here are parts of a row: they share what is slow to build, and take
    turns where the plan says so."""


@dataclass
class Measurement:
    """What one provider took. Without `error`, one sample for each of its rounds."""

    name: str
    samples: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    """The round of each sample."""
    build_s: float = 0.0
    first_s: float = 0.0
    """Seconds of the first call, in which torch.compile compiles."""
    warm_s: float = 0.0
    """Seconds of the last call before the rounds."""
    peak_bytes: int | None = None
    """The most that one more call holds beyond what was there before it, `graph_bytes` included."""
    graph_bytes: int = 0
    """What its recorded graphs hold between calls."""
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
        """This provider's time over the other's, in the rounds of both: 2 is twice as slow."""
        theirs = dict(zip(other.rounds, other.samples, strict=True))
        pairs = zip(self.rounds, self.samples, strict=True)
        return spread([own / theirs[turn] for turn, own in pairs if turn in theirs])


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
    """The moment of the clock to be done by, as far as what came before tells. A provider is left
    out, and its row says so, only where its building, should it take as long as that of those
    before it on the average, and one round of all that there are would end later. No round is begun
    that would end later if it took as long as before (and as long again for the memory). One round
    is always done."""
    turns: bool = False
    """After the first round, which calls all, providers of one `turn` have one call a round."""
    min_sample_s: float = 0.0
    """Repeat a call inside a sample until it lasts so long, and divide."""


QUEUED_S = 0.25
"""A sample of training steps on CUDA: waited for one by one, they would each begin with an idle GPU
and a host that does not run ahead, as it does in training."""


OUT_OF_MEMORY = "out of memory"
NO_TIME = "no time left to measure it: give --budget more seconds, or ask for less"
STOPPED = "stopped before it was measured"


class Interruption:
    """Ctrl-C while something is measured: what was measured is written down before it counts."""

    pending = False

    @classmethod
    def heed(cls) -> None:
        """KeyboardInterrupt where there was one since the last time: call it when all is kept."""
        pending, cls.pending = cls.pending, False
        if pending:
            raise KeyboardInterrupt


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
    graphs: Callable[[], int] = lambda: 0,
    done: Callable[[str], object] = lambda event: None,
) -> list[Measurement]:
    """Measure the providers in rounds; one that raises gets an error, the others go on.

    `peak` measures the memory of one more call, after the rounds; `graphs` tells what all recorded
    graphs hold at the moment. `done` is told of progress. Ctrl-C ends it early, and is an
    Interruption to be heeded once the results are written down.
    """
    run = _Run(providers, clock, plan, with_peak=peak is not None)
    try:
        for provider in providers:
            if run.is_too_late_for(provider):
                run.results[provider.name].error = NO_TIME
                continue
            done(f"{provider.name}: building and warming up")
            held = graphs()
            run.prepare(provider)
            run.results[provider.name].graph_bytes = max(0, graphs() - held)
        run.all_rounds(done)
        if peak is not None:
            run.read_memory(peak)
    except KeyboardInterrupt:
        Interruption.pending = True
        for result in run.results.values():
            if not result.samples and not result.error:
                result.error = STOPPED
    run.calls.clear()
    release()
    return list(run.results.values())


class _Run:
    """What is under way while providers are interleaved."""

    def __init__(
        self, providers: Sequence[Provider], clock: Clock, plan: Plan, with_peak: bool
    ) -> None:
        self.clock, self.plan, self.with_peak = clock, plan, with_peak
        self.providers = {p.name: p for p in providers}
        self.results = {p.name: Measurement(p.name) for p in providers}
        self.calls: dict[str, Call] = {}
        """Of all that still take part."""
        self.sample_s: dict[str, float] = {}
        """What a sample takes of the budget: the last one, before it what the warm-up tells."""
        self.ready_s: dict[bool, list[float]] = {False: [], True: []}
        """Seconds until each was ready; apart, those that shared what was there already."""

    def is_too_late_for(self, provider: Provider) -> bool:
        if self.plan.until is None:
            return False
        fellow = self._fellow(provider)
        known = self.ready_s[fellow is not None]
        ready = sum(known) / len(known) if known else 0.0
        if fellow and not known:
            ready = (1 + self.plan.warmup) * self.results[fellow].warm_s
        usual = sum(self.sample_s.values()) / len(self.calls) if self.calls else 0.0
        a_round = sum(self.sample_s.values()) + usual
        return self.clock.now() + ready + a_round > self.plan.until

    def _fellow(self, provider: Provider) -> str | None:
        """A provider that takes turns with it and stands ready."""
        turn = provider.turn
        fellows = [n for n in self.calls if turn is not None and self.providers[n].turn == turn]
        return fellows[-1] if fellows else None

    def prepare(self, provider: Provider) -> None:
        """Build it and warm it up."""
        shares, began = self._fellow(provider) is not None, self.clock.now()
        result = self.results[provider.name]
        self._attempt(result, partial(_warm, provider, result, self.clock, self.plan))
        self.ready_s[shares].append(self.clock.now() - began)
        if provider.name in self.calls:
            result.repeats = _repeats(result, self.plan)
            self.sample_s[provider.name] = result.repeats * result.warm_s

    def all_rounds(self, done: Callable[[str], object]) -> None:
        began = self.clock.now()
        for turn in range(max(self.plan.rounds, self.plan.max_rounds or 0)):
            names = self._called_in(turn)
            if not names or (turn and self._is_enough(turn, names, began)):
                break
            done(f"round {turn + 1}")
            for name in _rotated(names, turn):
                asked = self.clock.now()
                sample = partial(_sample, self.calls[name], self.providers[name], turn)
                self._attempt(self.results[name], partial(sample, self.results[name], self.clock))
                if name in self.calls:
                    self.sample_s[name] = self.clock.now() - asked

    def _called_in(self, turn: int) -> list[str]:
        """Whom a round calls: of those that take turns, the next one."""
        if not self.plan.turns or turn == 0:
            return list(self.calls)
        names = []
        for name in self.calls:
            group = self.providers[name].turn
            fellows = [n for n in self.calls if group and self.providers[n].turn == group]
            if not fellows or fellows[(turn - 1) % len(fellows)] == name:
                names.append(name)
        return names

    def _is_enough(self, turn: int, names: list[str], began: float) -> bool:
        """Whether to begin no further round, which would call `names`."""
        plan, now = self.plan, self.clock.now()
        if plan.budget_s is not None and now - began >= plan.budget_s:
            return True
        ahead = sum(self.sample_s[n] for n in names)
        if self.with_peak:
            ahead += sum(self.sample_s.values())
        if plan.until is not None and now + ahead > plan.until:
            return True
        spreads = [self.results[n].spread for n in self.calls]
        return turn >= plan.rounds and all(s.width <= plan.width for s in spreads)

    def read_memory(self, peak: Callable[[Call], int | None]) -> None:
        for name, call in self.calls.items():
            if self.plan.until is not None and self.clock.now() >= self.plan.until:
                break
            with contextlib.suppress(Exception):  # a time without its memory is still a time
                most = peak(call)
                if most is not None:
                    self.results[name].peak_bytes = most + self.results[name].graph_bytes

    def _attempt(self, result: Measurement, work: Callable[[], Call]) -> None:
        """Run one piece of a provider's work; where it raises, the provider is out."""
        try:
            self.calls[result.name] = work()
        except Exception as error:
            result.error = describe(error)
            result.samples.clear()
            result.rounds.clear()
            self.calls.pop(result.name, None)
            self.sample_s.pop(result.name, None)
        if result.error:
            release()


def _rotated(names: list[str], turn: int) -> list[str]:
    first = turn % len(names)
    return names[first:] + names[:first]


def _warm(provider: Provider, result: Measurement, clock: Clock, plan: Plan) -> Call:
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


def _sample(call: Call, provider: Provider, turn: int, result: Measurement, clock: Clock) -> Call:
    def work() -> None:
        for _ in range(result.repeats):
            call()

    if provider.before is None:
        seconds = clock.seconds(call if result.repeats == 1 else work)
    else:
        seconds = 0.0
        for _ in range(result.repeats):
            provider.before()
            seconds += clock.seconds(call)
    result.samples.append(seconds / result.repeats)
    result.rounds.append(turn)
    return call


def release() -> None:
    """Hand back what ended providers held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
