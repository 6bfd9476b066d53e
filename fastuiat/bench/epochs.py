"""Seconds of an epoch by method: what `fastuiat bench table2` and `table5` measure.

A sample is one step as training takes it (on CUDA several, timing.QUEUED_S): the next batch from
the loader, then the optimiser's step. All methods of a net are interleaved, so a ratio is made
inside each round.

Records. Every row of a table is one record: case `ARCH/bBATCH/METHOD`, provider `fastuiat` or
`naive`, a step's `median_s p20_s p80_s n samples_s`, and `epoch_s` = median_s · `steps_per_epoch`
for 50,000 images, the incomplete last batch dropped; `extrapolated` where n is less than an epoch.
A method whose work changes in the course of a run has one more record for each phase, written
behind its row's: case `ARCH/bBATCH/METHOD/PHASE`, with `phase_share`, its part of all epochs. Its
row's samples are the weighted sums of one sample of each phase, so all else follows as for any row;
where phases take turns, such a sample spans as many rounds as there are phases, and n is less than
that of other rows. `ratios` holds, by the name of what it refers to, the `median`, `p20` and `p80`
of this row's time over that row's (of a phase's over the same round's, where there are phases) and,
as `paper`, the same of the paper's values; `paper` holds its net and, where net and batch are the
paper's, its `epoch_s`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastuiat.bench.call_memory import graph_memory, peak_memory
from fastuiat.bench.epoch_steps import Part, Steps, parts_of
from fastuiat.bench.epoch_table import EpochTable, TableRow
from fastuiat.bench.feed import Feed, Source, steps_per_epoch
from fastuiat.bench.record import make_record
from fastuiat.bench.setting import Setting, costs
from fastuiat.bench.timing import (
    OUT_OF_MEMORY,
    QUEUED_S,
    Clock,
    Measurement,
    Plan,
    clock_for,
    interleaved,
    release,
    spread,
)
from fastuiat.bench.workload import Case, pass_flops


def measure(
    table: EpochTable,
    rows: Sequence[TableRow],
    case: Case,
    setting: Setting,
    *,
    source: Source,
    plan: Plan,
    steps: Steps | None = None,
    clock: Clock | None = None,
    done: Callable[[str], object] = lambda event: None,
) -> list[dict[str, Any]]:
    """Records of one net. Nothing is kept when it returns.

    Whoever runs out of memory beside the others is measured once more, where there is time left,
    beside none but the rows that its ratios refer to.
    """
    clock = clock or clock_for(setting.device)
    steps = steps or Steps(
        setting, Feed(source.make(case.batch_size, setting.device), setting.device)
    )
    case = dataclasses.replace(case, num_samples=steps.feed.loader.num_samples)
    parts = parts_of(table, rows, case)

    def run(chosen: Sequence[Part]) -> dict[str, Measurement]:
        measured = interleaved(
            steps.providers(chosen),
            clock=clock,
            plan=plan,
            peak=peak_memory(setting.device),
            graphs=graph_memory(setting.device),
            done=done,
        )
        steps.forget()
        # What was compiled is keyed by code, and its eight entries would soon be used up.
        torch.compiler.reset()
        release()
        return {m.name: m for m in measured}

    try:
        first = run(parts)
        results = Results(table, case, setting, source, plan, steps, first)
        records = {row.name: results.records(row) for row in rows}
        for row in rows:
            again = [p for p in parts if p.row in {row, *table.references_of(row, rows)}]
            crowded = any(m.error == OUT_OF_MEMORY for m in results.of(row))
            if crowded and len(again) < len(parts):
                second = dataclasses.replace(results, measured=run(again)).records(row)
                if not second[0]["error"]:
                    records[row.name] = second
        return [record for row in rows for record in records[row.name]]
    finally:
        steps.feed.close()


@dataclass(frozen=True)
class Results:
    """What was measured together, and the records that it makes."""

    table: EpochTable
    case: Case
    setting: Setting
    source: Source
    plan: Plan
    steps: Steps
    measured: dict[str, Measurement]

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.case.batch_size)

    @functools.cached_property
    def forward(self) -> int:
        return pass_flops(self.case)

    def parts(self, row: TableRow) -> list[Part]:
        return parts_of(self.table, [row], self.case)

    def of(self, row: TableRow) -> list[Measurement]:
        """The row's own, or those of its phases. They share a trainer, and so what it holds."""
        own = [self.measured[p.name] for p in self.parts(row) if p.name in self.measured]
        held = sum(m.graph_bytes for m in own)
        return [
            dataclasses.replace(
                m,
                peak_bytes=None if m.peak_bytes is None else m.peak_bytes - m.graph_bytes + held,
                graph_bytes=held,
            )
            for m in own
        ]

    def whole(self, row: TableRow) -> Measurement:
        """The row itself: where it has phases, their mean, one sample of each at a time."""
        measured, parts = self.of(row), self.parts(row)
        if parts[0].case.phase is None:
            return measured[0]
        shares = [part.case.phase.share for part in parts if part.case.phase]
        failed = next((m for m in measured if m.error), None)
        error = failed.error if failed else None
        if failed and any(m.error != error for m in measured):
            error = f"{failed.name}: {error}"
        samples = [] if failed else mixed(shares, [m.samples for m in measured])
        return Measurement(
            row.provider,
            samples=samples,
            peak_bytes=max((m.peak_bytes for m in measured if m.peak_bytes), default=None),
            graph_bytes=measured[0].graph_bytes,
            error=error,
            repeats=min(m.repeats for m in measured),
        )

    def records(self, row: TableRow) -> list[dict[str, Any]]:
        """Its own, then those of its phases, where it has any."""
        parts, measured = self.parts(row), self.of(row)
        counted = self.steps.flops
        flops = [None if m.error else counted[p.name] for p, m in zip(parts, measured, strict=True)]
        waits = [self.waited(m) for m in measured]
        if parts[0].case.phase is None:
            return [self.record(parts[0].case, row, measured[0], flops[0], waits[0])]
        shares = [part.case.phase.share for part in parts if part.case.phase]
        own = [
            self.record(p.case, row, m, f, w, phase_share=share)
            for p, m, f, w, share in zip(parts, measured, flops, waits, shares, strict=True)
        ]
        mean = self.record(
            dataclasses.replace(parts[0].case, phase=None),
            row,
            self.whole(row),
            weighted(shares, flops),
            weighted(shares, waits),
            over=list(zip(shares, measured, strict=True)),
            phases={
                p.case.phase.name: a for p, a in zip(parts, shares, strict=True) if p.case.phase
            },
        )
        if not mean["error"]:
            mean["compile_s"] = sum(m.compile_s for m in measured)
        return [mean, *own]

    def waited(self, m: Measurement) -> float | None:
        """Seconds that a step waited for its batch, a mean over the timed ones."""
        if not m.samples:
            return None
        first = 1 + self.plan.warmup
        waits = self.steps.waits[m.name][first : first + len(m.samples) * m.repeats]
        return sum(waits) / len(waits)

    def record(
        self,
        case: Case,
        row: TableRow,
        m: Measurement,
        flops: float | None,
        wait_s: float | None,
        over: Sequence[tuple[float, Measurement]] = (),
        **more: Any,
    ) -> dict[str, Any]:
        """`over`: the phases of a row that has some, and their weights."""
        from fastuiat.bench.floors import peak_flops

        naive = row.provider == "naive"
        precision = "fp32" if naive else self.setting.precision
        config = case.to_json() | {
            "precision": precision,
            "compile": self.setting.compiled and not naive,
            "data": self.source.name,
            "loader": self.steps.feed.kind,
        }
        cost = costs(m, case, flops, self.forward)
        peak = peak_flops(self.setting.device, precision)
        rate = cost["tflops_per_s"]
        return make_record(
            suite=self.table.name,
            case=case.name,
            measured=dataclasses.replace(m, name=row.provider),
            device=self.setting.device,
            config=config | more,
            extrapolated=m.error is None and len(m.samples) * m.repeats < self.steps_per_epoch,
            row=row.name,
            epoch_s=m.spread.median * self.steps_per_epoch if m.samples else None,
            epoch_images=self.steps_per_epoch * case.batch_size,
            steps_per_epoch=self.steps_per_epoch,
            data_wait_s=wait_s,
            data_wait_share=None if wait_s is None else wait_s * len(m.samples) / sum(m.samples),
            **cost,
            peak_flops_per_s=peak,
            peak_share=rate * 1e12 / peak if rate and peak else None,
            ratios={
                name: self.ratio(name, row, over or [(1.0, m)]) for name in self.table.references
            },
            paper=self.paper(row),
            note=self.setting.notes(case)[row.provider],
            **more,
        )

    def ratio(
        self, name: str, row: TableRow, over: Sequence[tuple[float, Measurement]]
    ) -> dict[str, float | None]:
        """This time over that of the row that `name` refers to, by rounds, and the paper's.

        A row with phases is over nothing but what was called in the same rounds as they.
        """
        reference = self.table.reference(name, row)
        beside = [m for m in self.of(reference) if len(self.parts(reference)) == 1]
        theirs = {r: s for m in beside for r, s in zip(m.rounds, m.samples, strict=True)}
        by_round = [
            [s / theirs[r] for r, s in zip(m.rounds, m.samples, strict=True) if r in theirs]
            for _, m in over
        ]
        values = mixed([share for share, _ in over], by_round)
        ours = spread(values) if values else None
        return {
            "median": ours.median if ours else None,
            "p20": ours.p20 if ours else None,
            "p80": ours.p80 if ours else None,
            "paper": self.table.paper_ratio(name, row, self.case.arch),
        }

    def paper(self, row: TableRow) -> dict[str, Any]:
        """What the paper has beside this row: its net, and its time where the case is the same."""
        arch, batch_size = self.case.arch, self.case.batch_size
        return {
            "arch": self.table.paper.net_beside(arch),
            "epoch_s": self.table.paper_epoch_s(row.method, arch, batch_size),
        }


def mixed(shares: Sequence[float], samples: Sequence[Sequence[float]]) -> list[float]:
    """The weighted sums of one sample of each phase, while every phase has one left."""
    return [
        sum(a * s for a, s in zip(shares, one, strict=True)) for one in zip(*samples, strict=False)
    ]


def weighted(shares: Sequence[float], values: Sequence[float | None]) -> float | None:
    """The mean over phases; None where one of them has no value."""
    known = [v for v in values if v is not None]
    return (
        sum(a * v for a, v in zip(shares, known, strict=True))
        if len(known) == len(values)
        else None
    )


def plan_for(
    device: torch.device,
    *,
    steps: int | None,
    steps_per_epoch: int,
    now: float,
    deadline: float | None,
    nets: int,
) -> Plan:
    """How long the next of so many nets may take: an equal part of the time until the deadline.

    Rows that it has no room for are rows without a time (Plan.until). Rounds go on, at least one,
    until it would be exceeded: exactly `steps` where given, else from five on until every row's
    spread is under 3% or there are as many as an epoch has steps; then phases take turns. On CUDA a
    round has several steps of a row.
    """
    share = None if deadline is None else (deadline - now) / nets
    limits: dict[str, Any] = {"warmup": 1}
    if device.type == "cuda":
        limits = {"warmup": 3, "min_sample_s": QUEUED_S}
    if share is not None:
        limits["until"] = now + share
    if steps is not None:
        return Plan(rounds=steps, **limits)
    return Plan(rounds=5, max_rounds=steps_per_epoch, width=0.03, turns=True, **limits)
