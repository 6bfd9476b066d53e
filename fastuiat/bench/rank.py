"""One rank whose steps `fastuiat bench scaling` measures: `python -m fastuiat.bench.rank TASK`.

The first rank reads from its input how many steps to take, a number a line, and all take them
together; it answers with what each rank took. Between samples all of them wait and use no time of
the machine. They end where the input does.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fastuiat.bench.exchanges import Meter, MeteredRanks, exchanged
from fastuiat.bench.timing import clock_for, describe
from fastuiat.bench.workload import Case, Phase, make_loader, make_step
from fastuiat.children import end_with_parent
from fastuiat.distributed import Ranks, process_group
from fastuiat.fast.allocator import keep_freed_memory
from fastuiat.torchrun import RankFailed
from fastuiat.training.finite import sums_of, tensors_of

ANSWER = "fastuiat-rank "
"""Before each answer: what a launcher may print is none."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What the ranks of a group train."""

    case: Case
    device: str
    precision: str
    compiled: bool
    threads: int
    """Of each rank."""

    def text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Task:
        told = json.loads(text)
        case = told.pop("case")
        phase = case.pop("phase")
        return cls(case=Case(**case, phase=Phase(**phase) if phase else None), **told)


class Worker:
    """The training step of one rank, with what it exchanges metered."""

    def __init__(self, task: Task, device: torch.device, ranks: Ranks) -> None:
        self.ranks, self.meter, self.clock = ranks, Meter(device), clock_for(device)
        self.metered = MeteredRanks(
            ranks.rank, ranks.world, ranks.hosts, ranks.presence, meter=self.meter
        )
        self.step = make_step(
            task.case, device, precision=task.precision, compiled=task.compiled, ranks=self.metered
        )
        batches = list(make_loader(task.case, device, ranks).epoch(task.case.epoch))
        self.batches = itertools.cycle(batches)

    def take(self, steps: int) -> None:
        """As the trainer does: behind each step the ranks agree whether to go on."""
        for _ in range(steps):
            self.step(next(self.batches))
            self.metered.loudest(0)

    def sample(self, steps: int) -> dict[str, Any]:
        """Seconds of so many steps that all ranks begin together, and what they exchanged.

        UserError where the ranks hold other bits than each other behind them.
        """
        self.ranks.loudest(0)
        self.meter.begin()
        seconds = self.clock.seconds(lambda: self.take(steps))
        inside, what = self.meter.seconds, exchanged(self.meter, self.step.net, steps)
        sums = sums_of(tensors_of(self.step))
        self.ranks.refuse_differences({f"{part} behind a step": sums[part] for part in sums})
        return {"seconds": seconds, "inside_s": inside, "exchanged": asdict(what)}


class Answers:
    """This process's output, for nothing else: what libraries and their children say is apart."""

    def __init__(self) -> None:
        self._file = os.dup(1)
        os.dup2(2, 1)

    def give(self, content: dict[str, Any]) -> None:
        """In one piece, for all ranks write to it."""
        os.write(self._file, f"{ANSWER}{json.dumps(content)}\n".encode())


def asked() -> int:
    """Steps that are asked for; 0 where nobody asks any more."""
    return int(sys.stdin.readline() or 0)


def serve(task: Task, answers: Answers) -> None:
    device = torch.device(task.device)
    torch.set_num_threads(task.threads)
    if device.type == "cpu":
        keep_freed_memory()
    with process_group(device) as ranks:
        worker = Worker(task, device, ranks)
        while steps := ranks.loudest(asked() if ranks.is_first else 0):
            took = ranks.of_all(worker.sample(steps))
            if ranks.is_first:
                answers.give({"ranks": took})


def main() -> None:
    end_with_parent()
    answers = Answers()
    try:
        serve(Task.read(sys.argv[1]), answers)
    except Exception as error:
        answers.give({"error": describe(error), "follows": isinstance(error, RankFailed)})
        sys.exit(1)


if __name__ == "__main__":
    main()
