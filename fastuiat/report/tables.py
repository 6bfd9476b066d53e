"""The tables: evaluations, settings, environment, timing."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Sequence
from typing import Any

from fastuiat.config import radius_text
from fastuiat.report.page import Cell, Marked
from fastuiat.report.runs import Record, Run, same_radius, text_of

Rows = tuple[list[str], list[list[Cell]]]
"""Headings and rows."""


def radius_cell(record: Record) -> str:
    return "–" if record.values["attack"] == "clean" else radius_text(record.eps)


def at_training_radius(runs: Sequence[Run], records: Sequence[Record]) -> list[Record]:
    """The clean records, and those at a radius that a run was trained for."""
    return [
        record
        for record in records
        if record.values["attack"] == "clean"
        or any(same_radius(record.eps, run.eps) for run in runs)
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
    kinds: list[Record] = []
    for record in (record for run in runs for record in run.records):
        if not any(alike(record, kind) for kind in kinds):
            kinds.append(record)
    return sorted(kinds, key=Record.order)


def evaluations_beside(runs: Sequence[Run], kinds: Sequence[Record]) -> Rows:
    """Several runs: a row per kind of record, a column per run, the best marked."""
    rows: list[list[Cell]] = []
    for kind in kinds:
        found = [next((r for r in run.records if alike(r, kind)), None) for run in runs]
        best = max(r.percent for r in found if r)
        cells: list[Cell] = []
        for own in found:
            text = None if own is None else f"{own.percent:.2f}"
            cells.append(Marked(text) if text and own and own.percent == best else text)
        rows.append([kind.attack, radius_cell(kind), f"{kind.n:,}", *cells])
    return ["attack", "ε", "images", *(run.label for run in runs)], rows


def alike(a: Record, b: Record) -> bool:
    return a.attack == b.attack and a.on_the_same_images(b) and same_radius(a.eps, b.eps)


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


def numbers(lines: Sequence[dict[str, Any]], name: str) -> list[float]:
    """A clock field of all lines that have it."""
    found = [(line.get("clock") or {}).get(name) for line in lines]
    return [float(value) for value in found if isinstance(value, int | float)]


def epoch_seconds(run: Run) -> list[float]:
    """Seconds of training by epoch, from its images and their rate; validation not counted."""
    batch = run.settings.get("batch_size")
    seconds, before = [], 0
    for line in run.epochs:
        rate = (line.get("clock") or {}).get("images_per_second")
        if rate and batch:
            seconds.append((line["step"] - before) * batch / rate)
        before = line["step"]
    return seconds


def timing_beside(runs: Sequence[Run]) -> Rows:
    """A row per run: medians over its epochs."""
    rows: list[list[Cell]] = []
    for run in runs:
        seconds = epoch_seconds(run)
        medians = [
            (seconds, "{:,.1f}"),
            (numbers(run.epochs, "images_per_second"), "{:,.0f}"),
            (numbers(run.epochs, "data_wait_percent"), "{:.1f}"),
            (numbers(run.epochs, "validation_seconds"), "{:,.1f}"),
        ]
        cells = [form.format(statistics.median(v)) if v else None for v, form in medians]
        memory = numbers(run.steps, "peak_memory_mib")
        done = max((line["epoch"] for line in run.epochs), default=0)
        rows.append(
            [
                run.label,
                str(run.settings.get("device") or "–"),
                f"{done} of {run.settings.get('epochs', '?')}",
                *cells,
                f"{max(memory):,.0f}" if memory else None,
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
