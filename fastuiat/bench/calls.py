"""What a call takes: timed alone and, on a GPU, as one of many in a CUDA graph (graphs.py)."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fastuiat.bench.call_memory import peak_memory
from fastuiat.bench.graphs import Graphs, Inputs, Pool, cuda_graphs, make_pool, replayed, tensors_of
from fastuiat.bench.timing import Call, Clock, Measurement, Plan, Provider, clock_for, interleaved
from fastuiat.machine import cache_bytes

Function = Callable[..., Any]
POOL_BYTES = 1 << 30
REPLAYS = " replayed"
"""Behind a provider's name: the same, by replays."""


def input_pool(make: Callable[[], Inputs], moved: int, device: torch.device) -> list[Inputs]:
    """Copies to go around, so that together they leave nothing of the last call in the cache.

    `moved` is what a call reads and writes.
    """
    first = make()
    held = sum(t.numel() * t.element_size() for t in tensors_of(first))
    wanted = math.ceil(2 * cache_bytes(device) / moved)
    copies = max(1, min(wanted, POOL_BYTES // held))
    return [first, *(make() for _ in range(copies - 1))]


@dataclass
class Ways:
    """Providers of one operation. With `graphs`, each is there twice: call by call, and by replays.

    `functions` make what takes the inputs as keywords; `moved` are the bytes of a call.
    """

    functions: Mapping[str, Callable[[], Function]]
    inputs: Callable[[], Inputs]
    moved: int
    device: torch.device
    graphs: Graphs | None
    calls: dict[str, int] = field(default_factory=dict)
    """In a replay of each that could be recorded."""

    def providers(self) -> list[Provider]:
        if self.graphs is None:
            inputs = input_pool(self.inputs, self.moved, self.device)
            made = self.functions.items()
            return [Provider(n, functools.partial(around, f, inputs)) for n, f in made]
        pool = make_pool(self.inputs(), self.moved, self.graphs)
        before = self.graphs.wash if pool.washed else None
        return [
            provider
            for name, function in self.functions.items()
            for provider in (
                Provider(name, functools.partial(around, function, pool.inputs)),
                Provider(
                    name + REPLAYS,
                    functools.partial(self.replayed, name, function, pool),
                    before=before,
                ),
            )
        ]

    def replayed(self, name: str, function: Callable[[], Function], pool: Pool) -> Call:
        assert self.graphs is not None
        call, self.calls[name] = replayed(function(), pool, self.graphs)
        return call


def around(function: Callable[[], Function], pool: Sequence[dict[str, Any]]) -> Call:
    inputs, call = itertools.cycle(pool), function()
    return lambda: call(**next(inputs))


@dataclass(frozen=True)
class Timed:
    """What a provider took, call by call and, where it could be recorded, by replays."""

    called: Measurement
    replayed: Measurement | None
    """Of one call."""
    graph_calls: int | None

    @classmethod
    def of(cls, called: Measurement, replays: Measurement | None, calls: int | None) -> Timed:
        if replays is None or calls is None:
            return cls(called, replays, None)
        one = dataclasses.replace(
            replays,
            samples=[seconds / calls for seconds in replays.samples],
            repeats=replays.repeats * calls,
        )
        return cls(called, one, calls if one.samples else None)

    @property
    def by_replays(self) -> bool:
        return self.graph_calls is not None

    @property
    def best(self) -> Measurement:
        """By replays if it may be; memory is that of a call."""
        if self.replayed is None or not self.by_replays:
            return self.called
        return dataclasses.replace(
            self.replayed, name=self.called.name, peak_bytes=self.called.peak_bytes
        )

    def ratio_to(self, other: Timed) -> float | None:
        """Of two that were timed alike: by replays if both were."""
        if self.by_replays and other.by_replays:
            return self.best.ratio_to(other.best).median
        if self.called.samples and other.called.samples:
            return self.called.ratio_to(other.called).median
        return None

    def fields(self) -> dict[str, Any]:
        failed = self.replayed.error if self.replayed and not self.by_replays else None
        return {
            "timed": "replays" if self.by_replays else "calls",
            "graph_calls": self.graph_calls,
            "replay_error": failed,
            "call_s": self.called.spread.median if self.called.samples else None,
            "compile_s": self.called.compile_s if self.called.samples else None,
        }


def time_ways(
    functions: Mapping[str, Callable[[], Function]],
    inputs: Callable[[], Inputs],
    moved: int,
    device: torch.device,
    *,
    plan: Plan,
    clock: Clock | None = None,
    graphs: Graphs | None = None,
    done: Callable[[str], object] = lambda event: None,
) -> dict[str, Timed]:
    """Each by its name, interleaved."""
    if graphs is None and device.type == "cuda":
        graphs = cuda_graphs(device)
    ways = Ways(functions, inputs, moved, device, graphs)
    with torch.no_grad():
        every = interleaved(
            ways.providers(),
            clock=clock or clock_for(device),
            plan=plan,
            peak=peak_memory(device),
            done=done,
        )
    torch.compiler.reset()
    by_name = {m.name: m for m in every}
    return {
        name: Timed.of(m, by_name.get(name + REPLAYS), ways.calls.get(name))
        for name, m in by_name.items()
        if not name.endswith(REPLAYS)
    }
