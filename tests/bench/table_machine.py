"""A machine on which the steps of a table's rows take the seconds that they are told to."""

from __future__ import annotations

from unittest import mock

import torch

from fastuiat.bench import epoch_steps, epochs
from fastuiat.bench.epoch_steps import Steps
from fastuiat.bench.epochs import measure
from fastuiat.bench.feed import Feed, Source
from fastuiat.bench.setting import Setting
from fastuiat.bench.suites.table2 import Table2
from fastuiat.bench.timing import Plan, WallClock
from fastuiat.bench.workload import Case
from fastuiat.data import Batch

TABLE2 = Table2.table
CPU = torch.device("cpu")
SETTING = Setting(device=CPU, precision="fp32", compiled=False)
CASE = Case(arch="wrn-10-1", batch_size=4)
WAIT = 0.25


class FakeMachine(Steps):
    """Steps that take the seconds they are told to, on a clock that only they move."""

    def __init__(self, seconds, *, build_s: float = 0.0, fails=None) -> None:
        self.time, self.build_s, self.fails = 0.0, build_s, fails or (lambda name, built: None)
        self.seconds, self.calls, self.built, self.log = seconds, {}, [], []
        self.clock = WallClock(now=lambda: self.time)
        super().__init__(SETTING, Feed(self, CPU, now=lambda: self.time))

    # What a loader is asked for.
    num_samples = 50_000

    def epoch(self, epoch: int, start_step: int = 0):
        zeros = torch.zeros(4, dtype=torch.int64)
        while True:
            self.time += WAIT
            yield Batch(torch.zeros(4, 3, 32, 32), zeros, zeros, epoch, 0)

    def close(self) -> None:
        self.log.append("closed")

    # What measuring asks it for.
    def ours(self, part):
        self.time += self.build_s
        self.built.append(part.name)
        resident = self.built[self.built.index("|") + 1 :] if "|" in self.built else self.built
        if error := self.fails(part.name, resident):
            raise error
        self.calls[part.name] = 0

        def take(batch: Batch) -> None:
            assert batch.epoch == part.case.epoch
            call = self.calls[part.name]
            self.calls[part.name] = call + 1
            self.log.append(part.name)
            self.time += self.seconds(part.name, call) - WAIT

        return take

    naive = ours

    def forget(self) -> None:
        self.built.append("|")


SECONDS = {
    "natural": 2.0,
    "trades": 20.0,
    "uiat": 16.0,
    "uiat-oneoff/before": 15.0,
    "uiat-oneoff/at": 17.0,
    "uiat-oneoff/after": 12.0,
}


def on_fake(machine, names=(), plan=None, table=TABLE2, case=CASE):
    """Without counting operations, and without the memory's call, which would move the clock."""
    with (
        mock.patch.object(epochs, "peak_memory", lambda device: lambda call: 7),
        mock.patch.object(epoch_steps, "operations", lambda part: 27_000),
    ):
        return measure(
            table,
            table.chosen(names),
            case,
            SETTING,
            source=Source(),
            plan=plan or Plan(warmup=1, rounds=3),
            steps=machine,
            clock=machine.clock,
        )
