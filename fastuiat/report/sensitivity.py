"""Figures 3 and 7: accuracies of runs that differ in one setting."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from fastuiat.report.curves import NATURAL, ROBUST
from fastuiat.report.page import empty_figure, page_style
from fastuiat.report.runs import NO_SETTING, ORDER, Record, Run, is_number, text_of

MOST_TICKS = 12
"""Values of a setting that an axis names."""


@dataclass(frozen=True)
class Sensitivity:
    """Runs that differ in one setting: accuracies in percent by its value, a list over seeds."""

    setting: str
    fixed: str
    attack: Record
    natural: dict[float, list[float]]
    robust: dict[float, list[float]]

    @property
    def values(self) -> list[float]:
        return sorted(self.natural)


def measured_alike(runs: Sequence[Run]) -> Record | None:
    """A record of the strongest attack that all runs have on the same images, with clean there."""
    options = []
    for record in runs[0].records:
        if record.values["attack"] == "clean" or record.eps <= 0:
            continue
        if all(run.measured.like(record) and run.measured.like(record, clean=True) for run in runs):
            options.append(record)
    near = sorted(options, key=lambda r: abs(r.eps - runs[0].eps))
    return max(near, key=lambda r: ORDER.get(r.values["attack"], -1), default=None)


def sensitivities(runs: Sequence[Run]) -> list[Sensitivity]:
    """Every group of runs that differ in one number alone (and in the seed), as Figures 3 and 7.

    A run that leaves the number to its default (None) is in no group of it.
    """
    names = dict.fromkeys(name for run in runs for name in run.settings)
    found = []
    for name in names:
        if name in NO_SETTING or name == "seed":
            continue
        groups: dict[str, list[Run]] = defaultdict(list)
        for run in runs:
            if is_number(run.settings.get(name)):
                rest = {
                    k: v
                    for k, v in run.settings.items()
                    if k not in NO_SETTING and k not in (name, "seed")
                }
                groups[repr(sorted(rest.items()))].append(run)
        for group in groups.values():
            if len({run.settings[name] for run in group}) < 2:
                continue
            if attack := measured_alike(group):
                found.append(sensitivity(name, group, attack))
    return found


def sensitivity(name: str, runs: Sequence[Run], attack: Record) -> Sensitivity:
    natural: dict[float, list[float]] = defaultdict(list)
    robust: dict[float, list[float]] = defaultdict(list)
    seen = set()
    for run in runs:
        value, seed = run.settings[name], repr(run.settings.get("seed"))
        if (value, seed) in seen:
            continue  # the same run under two names, as where two sweeps cross
        seen.add((value, seed))
        clean, attacked = run.measured.like(attack, clean=True), run.measured.like(attack)
        assert clean and attacked
        natural[value].append(clean.percent)
        robust[value].append(attacked.percent)
    return Sensitivity(name, runs[0].title, attack, dict(natural), dict(robust))


@page_style()
def sensitivity_curves(found: Sensitivity) -> Figure:
    """Natural accuracy above, robust accuracy below, against one setting (Figures 3, 7)."""
    figure = empty_figure(4.4, 3.9)
    upper, lower = figure.subplots(2, 1, sharex=True)
    name = {"autoattack": "AutoAttack"}.get(found.attack.attack, found.attack.attack)
    for axes, results, colour, label in (
        (upper, found.natural, NATURAL, "natural, %"),
        (lower, found.robust, ROBUST, f"{name}, %"),
    ):
        means = [statistics.fmean(results[v]) for v in found.values]
        spreads = [statistics.stdev(r) if len(r := results[v]) > 1 else 0.0 for v in found.values]
        axes.errorbar(found.values, means, spreads, color=colour, marker="o", capsize=3)
        axes.set_ylabel(label)
    named = found.values[:: -(-len(found.values) // MOST_TICKS)]
    lower.set_xticks(named, [text_of(found.setting, value) or "" for value in named])
    lower.set_xlabel(found.setting)
    return figure
