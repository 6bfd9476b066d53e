"""What a report says in words beside its figures and tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fastuiat.report.curves import MOST_POINTS, learning_lines, overfitted
from fastuiat.report.runs import MOST_SAID, Run

MOST_NAMED = 12
"""Epochs in a sentence."""


def slug(label: str) -> str:
    """A label as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-") or "run"


def listed(labels: Sequence[str]) -> str:
    """A few of them, and how many more there are."""
    said = ", ".join(labels[:MOST_SAID])
    return f"{said} and {len(labels) - MOST_SAID:,} more" if len(labels) > MOST_SAID else said


def tested(run: Run) -> bool:
    return any(len(run.epochs.numbers(f"test_{kind}")) for kind in ("natural", "robust"))


def other_test_sets(runs: Sequence[Run]) -> list[str]:
    """Who was measured on a test set of the first known one's name and not its content."""
    sums: dict[str, str] = {}
    others = []
    for run in runs:
        for record in run.records:
            if record.test_set is None:
                continue
            first = sums.setdefault(str(record.values.get("dataset")), record.test_set)
            if record.test_set != first:
                others.append(run.label)
    return list(dict.fromkeys(others))


def overfitting_note(run: Run) -> str:
    """In words, where the training noticed catastrophic overfitting."""
    epochs = [f"{epoch:.0f}" for epoch in overfitted(run)]
    if not epochs:
        return ""
    if len(epochs) > MOST_NAMED:
        epochs[MOST_NAMED:] = [f"… ({len(epochs):,} in all, the last {epochs[-1]})"]
    return f" Catastrophic overfitting in epoch {', '.join(epochs)}, dotted."


def thinning_note(run: Run) -> str:
    """In words, where a curve has more points than are drawn."""
    longest = max((len(x) for x, _ in learning_lines(run).values()), default=0)
    if longest <= MOST_POINTS:
        return ""
    return (
        f" Of {longest:,} epochs at most {MOST_POINTS:,} points are drawn a line: in each of "
        f"{MOST_POINTS // 4} equal stretches the first, the last, the lowest and the highest."
    )
