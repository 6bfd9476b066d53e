"""What ranks exchange in a step: seconds inside the exchanges, and bytes by what they are of.

A bench hands these ranks to the step in place of the trainer's: nothing of it is in a training.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastuiat.bench.workload import Case, Probe, make_net, make_step, meta_batch
from fastuiat.distributed import Ranks

Call = Literal["summed", "gathered", "flag"]
"""A sum over the ranks; rows of all of them; the word by which their hosts agree to go on."""
FLAG_BYTES = 8
CPU, META = torch.device("cpu"), torch.device("meta")
WORLD = 2
"""Ranks that are imagined where bytes are counted: what is exchanged is the same for any number."""


class Meter:
    """Calls, bytes and seconds of exchanges since `begin`.

    Seconds from when this rank comes to an exchange to when it goes on, the wait for those that
    come later among them. On CUDA those between two events of its stream, to be read when the
    device has been waited for; the flag is of the hosts there, and no device waits for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.begin()

    def begin(self) -> None:
        self.calls: dict[str, int] = {}
        self.bytes: dict[str, int] = {}
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []

    def count(self, call: Call, size: int) -> None:
        """One exchange of `size` bytes."""
        self.calls[call] = self.calls.get(call, 0) + 1
        self.bytes[call] = self.bytes.get(call, 0) + size

    @contextlib.contextmanager
    def during(self, call: Call, size: int) -> Iterator[None]:
        """The same, timed."""
        self.count(call, size)
        if not self.on_cuda:
            began = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - began
        elif call == "flag":
            yield
        else:
            before, behind = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            before.record()
            yield
            behind.record()
            self._events.append((before, behind))

    @property
    def seconds(self) -> float:
        """Inside all of them."""
        return self._seconds + sum(a.elapsed_time(b) for a, b in self._events) / 1e3


def bytes_of(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


@dataclass(frozen=True)
class MeteredRanks(Ranks):
    """The ranks of a training, with a meter around what a step exchanges."""

    meter: Meter = field(default_factory=lambda: Meter(CPU))

    def add_up(self, values: Tensor) -> None:
        with self.meter.during("summed", bytes_of(values)):
            super().add_up(values)

    def gathered(self, rows: Tensor) -> Tensor:
        with self.meter.during("gathered", self.world * bytes_of(rows)):
            return super().gathered(rows)

    def loudest(self, asked: int) -> int:
        with self.meter.during("flag", FLAG_BYTES):
            return super().loudest(asked)


@dataclass(frozen=True)
class ImaginedRanks(Ranks):
    """Ranks of which the others do not exist: what would be exchanged is counted."""

    meter: Meter = field(default_factory=lambda: Meter(META))

    def add_up(self, values: Tensor) -> None:
        self.meter.count("summed", bytes_of(values))

    def gathered(self, rows: Tensor) -> Tensor:
        self.meter.count("gathered", self.world * bytes_of(rows))
        return torch.cat([rows] * self.world)


@dataclass(frozen=True)
class Exchanged:
    """Bytes of a step by what they are of, and calls by their kind."""

    bytes: dict[str, int]
    calls: dict[str, int]

    @property
    def summed(self) -> int:
        """Bytes that each rank hands to sums over the ranks."""
        return sum(self.bytes[name] for name in ("gradients", "statistics", "z and metrics"))

    @property
    def gathered(self) -> int:
        """Bytes of the rows of all ranks together."""
        return self.bytes["rows of P"]


def gradients_of(net: nn.Module) -> int:
    """Bytes of the gradients that the net's parameters hold."""
    return bytes_of(*(p.grad for p in net.parameters() if p.grad is not None))


def statistics_of(net: nn.Module) -> int:
    """Bytes of BatchNorm's running statistics."""
    return bytes_of(*(b for b in net.buffers() if b.is_floating_point()))


def exchanged(meter: Meter, net: nn.Module, steps: int = 1) -> Exchanged:
    """What `steps` steps of the net have exchanged, for one."""
    bytes_, calls = (
        {call: n // steps for call, n in own.items()} for own in (meter.bytes, meter.calls)
    )
    own = {"gradients": gradients_of(net), "statistics": statistics_of(net)}
    rest = bytes_.get("summed", 0) - sum(own.values())
    kinds = own | {"z and metrics": rest, "rows of P": bytes_.get("gathered", 0)}
    return Exchanged(kinds | {"flag": bytes_.get("flag", 0)}, calls)


def counted(case: Case) -> Exchanged:
    """What a step of the case exchanges, without one: the same on any device, by any ranks.

    What its method does to z and P does not depend on the net, so that it is asked of the least
    net; gradients and statistics are those of the case's own.
    """
    small = dataclasses.replace(case, batch_size=WORLD)
    ranks, probe = ImaginedRanks(0, WORLD), Probe(case.num_classes).to(META)
    step = make_step(small, META, precision="fp32", compiled=False, ranks=ranks, net=probe)
    step(meta_batch(small, ranks))
    found, net = exchanged(ranks.meter, probe), make_net(case, META)
    trained = [p for p in net.parameters() if p.requires_grad]
    own = {"gradients": bytes_of(*trained), "statistics": statistics_of(net)}
    rows = found.gathered // WORLD * case.batch_size
    bytes_ = found.bytes | own | {"rows of P": rows, "flag": FLAG_BYTES}
    return Exchanged(bytes_, found.calls | {"flag": 1})
