"""Many calls as one CUDA graph: a launch from Python takes longer than a small kernel itself.

A replay goes around copies of the inputs that together exceed the last cache, so that no call
finds its own there. Where copies would have to be too many for that, the cache is washed before
each replay, outside of what is timed, and a replay calls once with each copy.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastuiat.bench.timing import Call
from fastuiat.fast.recording import Record, Recorder
from fastuiat.machine import cache_bytes

Inputs = dict[str, Any]

MIN_CALLS = 128
"""In a graph, so that what its own launch takes is spread over many; fewer where it is long."""
LONG_S = 0.1
"""A graph that takes so long needs no more calls."""
MAX_COPIES = 1024
"""A call of a loss in eager mode is 40 launches, and each is a node that has to be recorded."""
ROOM = 4
"""Copies of the inputs may take this part of the free memory."""


@dataclass(frozen=True)
class Graphs:
    """What a device offers for it."""

    record: Callable[[], Record]
    """Makes a recorder with memory of its own."""
    warm: Callable[[Call], float]
    """Calls it some times, as is needed before it can be recorded; seconds of one call."""
    wash: Call
    """Leaves nothing in the cache of what was there."""
    cache_bytes: int
    room_bytes: int
    """For copies of inputs."""


@dataclass(frozen=True)
class Pool:
    """Copies of an operation's inputs, for calls to go around."""

    inputs: Sequence[Inputs]
    washed: bool
    """They would stay in the cache: it is washed before each replay."""

    def calls(self, call_s: float) -> int:
        """Calls in a graph, the copies gone around as a whole, where one takes `call_s` at most."""
        copies = len(self.inputs)
        if self.washed:
            return copies
        enough = min(MIN_CALLS, LONG_S / call_s if call_s else MIN_CALLS)
        return copies * max(1, math.ceil(enough / copies))


def tensors_of(inputs: Inputs) -> list[torch.Tensor]:
    return [v for v in inputs.values() if isinstance(v, torch.Tensor)]


def make_pool(first: Inputs, moved: int, graphs: Graphs) -> Pool:
    """So many copies that those parts of them that calls touch are twice the cache, if they may.

    `moved` is what a call reads and writes: of a large memory it is a few rows.
    """
    held = sum(t.numel() * t.element_size() for t in tensors_of(first))
    wanted = math.ceil(2 * graphs.cache_bytes / min(held, moved))
    copies = max(1, min(wanted, MAX_COPIES, graphs.room_bytes // held))
    inputs = [first, *(copied(first) for _ in range(copies - 1))]
    return Pool(inputs, washed=copies < wanted)


def copied(inputs: Inputs) -> Inputs:
    """With tensors of its own, of the same layout."""
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


def replayed(function: Callable[..., object], pool: Pool, graphs: Graphs) -> tuple[Call, int]:
    """A call that replays many calls of the function, and how many.

    Raises what keeps the function from being recorded.
    """
    inputs = itertools.cycle(pool.inputs)
    calls = pool.calls(graphs.warm(lambda: function(**next(inputs))))

    def work() -> None:
        # While a result is kept, its memory is no other call's: else it might stay in the cache.
        kept: deque[object] = deque(maxlen=len(pool.inputs))
        for i in range(calls):
            kept.append(function(**pool.inputs[i % len(pool.inputs)]))

    _, replay = graphs.record()(work)
    return replay, calls


def cuda_graphs(device: torch.device) -> Graphs:
    cache = cache_bytes(device)
    with torch.cuda.device(device):
        free, _ = torch.cuda.mem_get_info()
    # To be read, not written: what is written would have to go back to memory in the next replay.
    other = torch.zeros(2 * cache // 4, device=device)
    return Graphs(
        record=Recorder,
        warm=warm_up,
        wash=other.amax,
        cache_bytes=cache,
        room_bytes=free // ROOM,
    )


def warm_up(call: Call) -> float:
    """On a side stream, as PyTorch asks for before a recording; seconds of the second of three.

    Raises where a call waits for the device: that would spoil a recording beyond repair.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
        stream.synchronize()
        began = time.perf_counter()
        call()
        stream.synchronize()
        seconds = time.perf_counter() - began
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch says that it does not see every wait
            torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    torch.cuda.current_stream().wait_stream(stream)
    return seconds
