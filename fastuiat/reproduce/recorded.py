"""A record of runs as a table in Markdown: mean and spread, what is gained, and what is shown."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastuiat import paper
from fastuiat.bench.compare_tables import software
from fastuiat.bench.table import span
from fastuiat.reproduce.ledger import Ledger
from fastuiat.reproduce.table import cell, mean_and_spread

Line = dict[str, Any]
Accuracies = Mapping[Any, Mapping[str, float]]
"""By seed and column, in percent."""
NONE = "–"
HEADINGS = {"natural": "natural", "pgd": "PGD-20", "autoattack": "AutoAttack"}


def baseline_of(row: str) -> str:
    """The row that a row is set beside: its own method without UIAT, else SAT, alike trained."""
    scale, _, method = row.rpartition("/")
    plain = method.removesuffix("+uiat") if "+" in method else "sat"
    return f"{scale}/{plain}" if scale else plain


def gain(mine: Accuracies, other: Accuracies, column: str) -> str:
    """Mean ± spread of what a row has more than another, seed by seed.

    Bold where it is shown: above twice the spread, of two seeds or more.
    """
    both = [
        s for s in sorted(mine.keys() & other.keys()) if column in mine[s] and column in other[s]
    ]
    gains = [mine[seed][column] - other[seed][column] for seed in both]
    if not gains:
        return NONE
    mean, spread = mean_and_spread(gains)
    if spread is None:
        return f"{mean:+.1f}"
    text = f"{mean:+.1f} ± {spread:.1f}"
    return f"**{text}**" if abs(mean) > 2 * spread else text


def table_of(path: Path, table: str) -> str:
    """Every row on the record, beside SAT (or its method without UIAT) and the paper's Table 1."""
    lines = Ledger(path, table).lines
    rows: dict[str, dict[int, dict[str, float]]] = {}
    methods: dict[str, str] = {}
    places: dict[tuple[str, int], tuple[str, str]] = {}
    for (row, seed), line in lines.items():
        rows.setdefault(row, {})[seed] = line["accuracies"]
        methods[row] = line["settings"]["method"]
        places[row, seed] = line["made"]["device"], line["made"]["precision"]
    if not rows:
        return "Not measured yet.\n"
    fullest = max(lines.values(), key=lambda line: len(line["accuracies"]))
    columns = [c for c in HEADINGS if c in fullest["accuracies"]]
    heads = ["row", "seeds", *(HEADINGS[c] for c in columns), "beside"]
    heads += [f"{HEADINGS[c]}, gain" for c in columns]
    heads += [f"paper: {HEADINGS[c]}" for c in columns]
    text = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row, runs in rows.items():
        cells = [row, str(len(runs))]
        for column in columns:
            cells.append(
                measured([run[column] for run in runs.values() if column in run], len(runs))
            )
        other = baseline_of(row)
        beside = rows.get(other, {}) if other != row else {}
        elsewhere = any(places[row, s] != places[other, s] for s in runs if s in beside)
        cells.append(other + " †" * elsewhere if beside else NONE)
        cells += [gain(runs, beside, column) for column in columns]
        text.append("| " + " | ".join([*cells, *papers(methods[row], columns)]) + " |")
    points = ", ".join(f"{c} {n}" for c, n in fullest["n"].items())
    said = (
        f"Accuracies in percent, mean ± sample standard deviation over seeds; first test images: "
        f"{points}. A gain is made seed by seed, and bold where it is above twice its spread; "
        "† where both were not trained on one kind of machine in one precision."
    )
    return "\n".join([*text, "", said, *made_on(list(lines.values())), ""])


def measured(values: list[float], runs: int) -> str:
    """Mean and spread; of how many seeds, where it is not of all of them."""
    if not values:
        return NONE
    mean, spread = mean_and_spread(values)
    seeds = "" if len(values) == runs else f" ({len(values)} seed{'s' * (len(values) > 1)})"
    return cell({"mean": mean, "stdev": spread}, 1) + seeds


def papers(method: str, columns: list[str]) -> list[str]:
    """The paper's values of the method on CIFAR-10 with resnet-18, at its own scale."""
    printed = paper.tables()["table1"].by_column(f"cifar10/{method}")
    return [f"{printed[c]:.2f}" if printed else NONE for c in columns]


def made_on(lines: list[Line]) -> list[str]:
    """Each machine, precision and source once: hardware, versions, number of runs, dates."""
    groups: dict[str, list[str]] = {}
    for line in lines:
        made = line["made"]
        versions = ", ".join(f"{name} {v}" for name, v in software(made).items() if v)
        features = ", ".join((made.get("cpu") or {}).get("features") or [])
        commit = (made.get("commit") or "")[:10]
        where = f"{made['device']} ({features})" if not made.get("gpu") else made["device"]
        changed = " with changes" if made.get("dirty") else ""
        key = f"{where}, {made['precision']}; {versions} at {commit}{changed}"
        groups.setdefault(key, []).append(made["time"][:10])
    return [
        f"Made on {key}; {len(times)} runs; {span(min(times), max(times))}."
        for key, times in groups.items()
    ]


def curves_of(path: Path, table: str) -> str:
    """Validation accuracies by epoch, a row a line, means over the seeds.

    PGD-10 in steps of the training attack's size, of single-step methods of a quarter of eps.
    """
    lines = Ledger(path, table).lines
    rows: dict[str, list[list[dict[str, float]]]] = {}
    for (row, _), line in lines.items():
        rows.setdefault(row, []).append(line["curve"])
    if not rows:
        return "Not measured yet.\n"
    epochs = max(len(curve) for curves in rows.values() for curve in curves)
    heads = ["row", "accuracy", *map(str, range(1, epochs + 1))]
    text = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    kinds = {"val_natural": "natural", "val_robust": "PGD-10", "target_accuracy": "of p, training"}
    for row, curves in rows.items():
        for kind, name in kinds.items():
            if kind in curves[0][0]:
                epochs_of = zip(*curves, strict=True)
                means = [statistics.fmean(end[kind] for end in ends) for ends in epochs_of]
                text.append(f"| {row} | {name} | {' | '.join(f'{100 * m:.0f}' for m in means)} |")
    return "\n".join([*text, ""])
