"""The tables: evaluations, settings, environment, timing."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastuiat.config import radius_text
from fastuiat.report.page import Cell, Marked
from fastuiat.report.runs import ByRadius, Measurements, Record, Run, is_number, text_of

Rows = tuple[list[str], list[list[Cell]]]
"""Headings and rows."""


def radius_cell(record: Record) -> str:
    return "–" if record.values["attack"] == "clean" else radius_text(record.eps)


def at_training_radius(runs: Sequence[Run], records: Sequence[Record]) -> list[Record]:
    """The clean records, and those at a radius that a run was trained for."""
    trained = ByRadius((eps, eps) for eps in {run.eps for run in runs})
    return [
        record for record in records if record.values["attack"] == "clean" or trained.at(record.eps)
    ]


def evaluations_of(records: Sequence[Record]) -> Rows:
    """One run's records with their sampling errors and times."""
    rows: list[list[Cell]] = []
    for record in records:
        seconds = record.values.get("seconds")
        took = f"{seconds:,.1f}" if isinstance(seconds, int | float) else None
        rows.append(
            [
                record.attack,
                radius_cell(record),
                f"{record.n:,}",
                f"{record.percent:.2f}",
                f"{record.standard_error:.2f}",
                took,
                record.values.get("seed"),
            ]
        )
    return ["attack", "ε", "images", "accuracy, %", "± 1 s.e.", "seconds", "seed"], rows


def kinds_of(runs: Sequence[Run]) -> list[Record]:
    """One record for each attack, radius and set of images that any of the runs was measured by."""
    kinds = Measurements()
    for record in (record for run in runs for record in run.records):
        if kinds.like(record) is None:
            kinds.add(record)
    return sorted(kinds.records, key=Record.order)


def evaluations_beside(runs: Sequence[Run], kinds: Sequence[Record]) -> Rows:
    """Several runs: a row per kind of record, a column per run, the best marked."""
    rows: list[list[Cell]] = []
    for kind in kinds:
        found = [run.measured.like(kind) for run in runs]
        best = max(r.percent for r in found if r)
        cells: list[Cell] = []
        for own in found:
            text = None if own is None else f"{own.percent:.2f}"
            cells.append(Marked(text) if text and own and own.percent == best else text)
        rows.append([kind.attack, radius_cell(kind), f"{kind.n:,}", *cells])
    return ["attack", "ε", "images", *(run.label for run in runs)], rows


def autoattack_parts(record: Record) -> Rows | None:
    """What was left after each of AutoAttack's parts, or None of a record without them."""
    parts, seconds = record.values.get("parts"), record.values.get("part_seconds")
    if not isinstance(parts, dict) or not isinstance(seconds, dict):
        return None
    rows: list[list[Cell]] = [
        [name, f"{100 * share:.2f}", f"{seconds[name]:,.1f}" if name in seconds else None]
        for name, share in parts.items()
    ]
    return ["after", "accuracy, %", "seconds"], rows


def settings_beside(runs: Sequence[Run]) -> tuple[Rows, Rows]:
    """(the settings that differ, a column per run; those that all runs share)."""
    written = [{n: text_of(n, v) for n, v in run.settings.items()} for run in runs]
    return beside(runs, written, "setting")


def environments_beside(runs: Sequence[Run]) -> tuple[Rows, Rows]:
    """The same for versions and machines."""
    written = [{n: environment_text(v) for n, v in run.environment.items()} for run in runs]
    return beside(runs, written, "environment")


def beside(
    runs: Sequence[Run], written: Sequence[dict[str, str | None]], heading: str
) -> tuple[Rows, Rows]:
    """(rows of the names whose texts differ between runs, marked; rows of the others)."""
    differing: list[list[Cell]] = []
    shared: list[list[Cell]] = []
    for name in dict.fromkeys(name for texts in written for name in texts):
        texts = [of_run.get(name) for of_run in written]
        if len(set(texts)) > 1:
            differing.append([name, *(Marked(text or "–") for text in texts)])
        else:
            shared.append([name, texts[0]])
    return ([heading, *(run.label for run in runs)], differing), ([heading, "value"], shared)


def environment_text(value: Any) -> str | None:
    if isinstance(value, list):
        return shlex.join(str(word) for word in value)
    return None if value is None else str(value)


def epoch_seconds(run: Run) -> np.ndarray:
    """Seconds of training by epoch, from its images and their rate; validation not counted."""
    batch, rates = run.settings.get("batch_size"), run.epochs["clock.images_per_second"]
    if not is_number(batch) or not batch:
        return np.empty(0)
    steps, known = np.diff(run.epochs["step"], prepend=0), rates > 0
    return steps[known] * batch / rates[known]


def timing_beside(runs: Sequence[Run]) -> Rows:
    """A row per run: medians over its epochs."""
    rows: list[list[Cell]] = []
    for run in runs:
        seconds = epoch_seconds(run)
        medians = [
            (seconds, "{:,.1f}"),
            (run.epochs.numbers("clock.images_per_second"), "{:,.0f}"),
            (run.epochs.numbers("clock.data_wait_percent"), "{:.1f}"),
            (run.epochs.numbers("clock.validation_seconds"), "{:,.1f}"),
        ]
        cells = [form.format(np.median(v)) if len(v) else None for v, form in medians]
        memory = run.steps.numbers("clock.peak_memory_mib")
        done = int(max(run.epochs["epoch"], default=0))
        rows.append(
            [
                run.label,
                str(run.settings.get("device") or "–"),
                f"{done} of {run.settings.get('epochs', '?')}",
                *cells,
                f"{memory.max():,.0f}" if len(memory) else None,
            ]
        )
    return [
        "run",
        "device",
        "epochs",
        "s/epoch",
        "images/s",
        "data wait, %",
        "validation, s",
        "peak memory, MiB",
    ], rows
