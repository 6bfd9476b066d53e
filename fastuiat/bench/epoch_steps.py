"""The steps that an epoch bench times: a trainer for each row of a table, its phases told apart."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from fastuiat.bench.epoch_table import EpochTable, TableRow
from fastuiat.bench.feed import Feed
from fastuiat.bench.passes import total_flops
from fastuiat.bench.setting import Setting
from fastuiat.bench.timing import Call, Provider
from fastuiat.bench.workload import (
    Case,
    Phase,
    floor_inventory,
    make_step,
    naive_inventory,
    naive_step,
    phases,
)
from fastuiat.data import Batch
from fastuiat.memory import ProbabilityMemory
from fastuiat.methods import Method
from fastuiat.training.step import TrainingStep


@dataclass(frozen=True)
class Part:
    """What is timed as one provider: a row, or a phase of it."""

    row: TableRow
    case: Case

    @property
    def name(self) -> str:
        phase = self.case.phase
        return f"{self.row.name}/{phase.name}" if phase else self.row.name


@dataclass
class Steps:
    """The steps of a net's rows, and what each has waited for its batches, call by call."""

    setting: Setting
    feed: Feed
    waits: dict[str, list[float]] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)
    """Operations of a step. They are counted as it is built: that takes seconds of the budget."""
    _steps: dict[TableRow, TrainingStep] = field(default_factory=dict)

    def providers(self, parts: Sequence[Part]) -> list[Provider]:
        return [
            Provider(
                part.name,
                functools.partial(self.build, part),
                turn=part.row.name if part.case.phase else None,
            )
            for part in parts
        ]

    def build(self, part: Part) -> Call:
        if part.name not in self.flops:
            self.flops[part.name] = operations(part)
        take = self.naive(part) if part.row.provider == "naive" else self.ours(part)
        waits = self.waits[part.name] = []

        def step() -> None:
            batch, waited = self.feed.next(part.case.epoch)
            waits.append(waited)
            try:
                take(batch)
            except Exception:
                self._steps.pop(part.row, None)  # a failed row leaves its room to the others
                raise

        return step

    def ours(self, part: Part) -> Callable[[Batch], object]:
        """The trainer's step. The phases of a row share one: a batch's epoch tells them."""
        if part.row not in self._steps:
            step = make_step(
                dataclasses.replace(part.case, phase=None),
                self.setting.device,
                precision=self.setting.precision,
                compiled=self.setting.compiled,
            )
            remember_all(step.method)
            self._steps[part.row] = step
        return self._steps[part.row]

    def naive(self, part: Part) -> Callable[[Batch], object]:
        step = naive_step(part.case, self.setting.device)
        return lambda batch: step(batch.x.contiguous(), batch.y, batch.index)

    def forget(self) -> None:
        self._steps.clear()


def operations(part: Part) -> int:
    """Floating-point operations of a step."""
    count = naive_inventory if part.row.provider == "naive" else floor_inventory
    return total_flops(count(part.case))


def remember_all(method: Method) -> None:
    """P as it stands late in a run: every sample has been met."""
    for module in method.modules():
        if isinstance(module, ProbabilityMemory):
            module.probs.fill_(1 / module.probs.shape[1])
            module.seen.fill_(True)
    # Loading a state is what tells targets to look at their memory again.
    method.load_state_dict(method.state_dict())


def parts_of(table: EpochTable, rows: Sequence[TableRow], case: Case) -> list[Part]:
    """The rows' phases, in building order. `case` gives all but the method."""
    whole: list[Phase | None] = [None]
    return [
        Part(row, dataclasses.replace(case, method=row.method, phase=phase))
        for row in table.in_building_order(rows)
        for phase in phases(dataclasses.replace(case, method=row.method)) or whole
    ]
