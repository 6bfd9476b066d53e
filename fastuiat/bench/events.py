"""What PyTorch's profiler saw of some calls: host operators, and what ran on the device."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, record_function

from fastuiat.bench.call_memory import quiet_stderr
from fastuiat.fast.torch_internals import kernels_named

MARK = "fastuiat profile"
"""The event that spans what is counted."""
RUNTIME = re.compile(r"cu(da)?[A-Z]|hip[A-Z]")
"""Calls of the driver, which are numbered apart from the operators."""
SYNCHRONISATION = re.compile(r"(Context|Stream|Event) (Sync|Synchronize)|Stream Wait Event")
"""Waits that some versions list among the device's work."""


@dataclass(frozen=True)
class Event:
    """An operator on the host, or a kernel or copy on the device. Times in ns of one clock."""

    name: str
    begin: int
    end: int
    thread: int = 0
    on_device: bool = False
    id: int = 0
    """Of an operator."""
    operator: int = 0
    """The id of the operator that launched it; 0 where none is known, as in a replayed graph."""
    shapes: tuple[tuple[int, ...], ...] = ()
    """Of an operator's arguments, where it was asked for; () for what is no tensor."""
    values: tuple[Any, ...] = ()
    """Its arguments that are no tensors; None for what is one."""


@dataclass(frozen=True)
class Trace:
    """Events of some steps, and the time from the begin of the first to the end of the last."""

    events: tuple[Event, ...]
    begin: int
    end: int
    steps: int

    @property
    def seconds(self) -> float:
        """Of a step."""
        return (self.end - self.begin) / self.steps / 1e9

    def on_device(self) -> list[Event]:
        """What ran on the device in this time, in order."""
        inside = [e for e in self.events if e.on_device and e.end > self.begin]
        return sorted(inside, key=lambda e: (e.begin, e.end))

    def on_host(self) -> list[Event]:
        """Operators and marks of each thread, every one behind that which it is part of."""
        hosts = (e for e in self.events if not e.on_device)
        return sorted(hosts, key=lambda e: (e.thread, e.begin, -e.end, e.id))


def collect(call: Callable[[], object], device: torch.device, *, steps: int, shapes: bool) -> Trace:
    """Profile so many calls, behind one that sets the profiler up.

    On a GPU they are queued, so that the host runs ahead as in training; on a CPU they are profiled
    one by one, and the trace is of the median one.
    """
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with (
        quiet_stderr(),
        torch.profiler.profile(activities=activities, record_shapes=shapes) as profile,
    ):
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            with record_function(MARK):
                for _ in range(steps):
                    call()
                torch.cuda.synchronize(device)
        else:
            for _ in range(steps):
                with record_function(MARK):
                    call()
    raw: Any = profile.profiler
    events = tuple(read(raw.kineto_results.events()))
    return queued(events, steps) if device.type == "cuda" else median_call(events)


def read(raw: Iterable[Any]) -> Iterator[Event]:
    """The profiler's own events as ours, without those that are neither operator nor work."""
    for e in raw:
        on_device, name = e.device_type() != DeviceType.CPU, e.name()
        if on_device:
            # The device's timeline repeats the host's marks.
            if e.is_user_annotation() or SYNCHRONISATION.match(name):
                continue
        elif e.linked_correlation_id() > 0 or RUNTIME.match(name):
            continue
        yield Event(
            name=name,
            begin=e.start_ns(),
            end=e.start_ns() + e.duration_ns(),
            thread=e.start_thread_id(),
            on_device=on_device,
            id=0 if on_device else e.correlation_id(),
            operator=e.linked_correlation_id() if on_device else 0,
            shapes=tuple(map(_shape, e.shapes())),
            values=tuple(map(_value, e.concrete_inputs())),
        )


def _shape(sizes: Any) -> tuple[int, ...]:
    """Of a tensor; lists of tensors have lists of sizes, and no operator here needs them."""
    return tuple(sizes) if all(isinstance(size, int) for size in sizes) else ()


def _value(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def queued(events: tuple[Event, ...], steps: int) -> Trace:
    """From the first call on the host to the end of the last kernel, as CUDA events would time it.

    RuntimeError where the profiler saw no kernel.
    """
    (mark,) = (e for e in events if not e.on_device and e.name == MARK)
    kernels = [e for e in events if e.on_device and e.begin >= mark.begin]
    if not kernels:
        raise RuntimeError("the profiler saw no kernel on the device")
    kept = (*kernels, *(e for e in events if not e.on_device))
    return Trace(kept, mark.begin, max(e.end for e in kernels), steps)


def median_call(events: tuple[Event, ...]) -> Trace:
    """The median one of several marked calls: whatever disturbed another is not in it."""
    marks = sorted((e for e in events if e.name == MARK), key=lambda e: e.end - e.begin)
    mark = marks[(len(marks) - 1) // 2]
    inside = tuple(
        e for e in events if e.thread == mark.thread and mark.begin <= e.begin and e.end <= mark.end
    )
    return Trace(inside, mark.begin, mark.end, 1)


@contextmanager
def named_kernels(device: torch.device) -> Iterator[None]:
    """What Inductor compiles meanwhile for a CPU tells the profiler its kernels' names.

    Their code then asks once a call whether someone listens; on a GPU the driver tells.
    """
    with kernels_named() if device.type == "cpu" else nullcontext():
        yield
