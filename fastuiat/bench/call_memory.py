"""How much memory a call takes: what it allocates, and what its recorded graphs hold."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

Call = Callable[[], object]
COMMON_POOL = (0, 0)
"""The name that PyTorch's allocator gives the pool of all that is not recorded."""


def peak_memory(device: torch.device) -> Callable[[Call], int | None]:
    """A meter of the most bytes that a call has allocated at once, beyond those before it."""
    return _cuda_peak if device.type == "cuda" else _cpu_peak


def _cuda_peak(call: Call) -> int | None:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def graph_memory(device: torch.device) -> Callable[[], int]:
    """A meter of the bytes that all recorded graphs hold on the device.

    Replays write into pools of their own, which stay reserved while the graph lives; no tensor
    lives there between them, so no peak of what is allocated counts them. A recording's copies of
    its arguments lie outside of these pools, and are not counted.
    """
    return functools.partial(_pool_bytes, device) if device.type == "cuda" else lambda: 0


def _pool_bytes(device: torch.device) -> int:
    index = torch.cuda.current_device() if device.index is None else device.index
    return sum(
        segment["total_size"]
        for segment in torch.cuda.memory_snapshot()
        if segment["device"] == index and tuple(segment["segment_pool_id"]) != COMMON_POOL
    )


def _cpu_peak(call: Call) -> int | None:
    """From the allocator's own events: resident size would also count what malloc keeps."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with (
        quiet_stderr(),
        torch.profiler.profile(activities=activities, profile_memory=True) as profile,
    ):
        call()
    raw: Any = profile.profiler
    events = raw.kineto_results.events() if raw else []
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = most = 0
    for _, change in sorted(changes):
        held += change
        most = max(most, held)
    return most


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """The profiler's library writes its own log straight to the file descriptor."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def resident_bytes(field: str = "VmRSS") -> int:
    """Resident memory of this process now, or at most (VmHWM) since the last reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


class ResidentPeak:
    """The most resident memory since it was made, beyond that before; one at a time."""

    def __init__(self) -> None:
        self.before: int | None = None
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from VmRSS
            self.before = resident_bytes()

    def bytes(self) -> int | None:
        """None where the system does not tell."""
        return None if self.before is None else resident_bytes("VmHWM") - self.before


def resident_peak(call: Call) -> int | None:
    """ResidentPeak over one call."""
    watch = ResidentPeak()
    call()
    return watch.bytes()
