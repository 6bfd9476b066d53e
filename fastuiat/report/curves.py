"""Figures 1, 2, 4 and 5: learning curves, accuracy against strength, differences of runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fastuiat.report.log import MARK, Line, Log
from fastuiat.report.page import INK, MUTED, PALETTE, new_figure, page_style
from fastuiat.report.runs import ByRadius, Record, Run, same_radius

NATURAL, ROBUST, TRAINING = PALETTE[0], PALETTE[1], PALETTE[2]
MOST_POINTS = 2000
"""Of a curve as it is drawn: more than a figure has pixels across."""
MOST_MARKS = 200
"""Epochs of one run that a figure has a dotted line for."""


def below(axes: Axes, columns: int = 2) -> None:
    """The legend under the axes, where it hides no line."""
    axes.figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=columns,
        columnspacing=1.2,
        handlelength=1.7,
    )


def by_epoch(log: Log, name: str) -> Line:
    """(epochs, means in percent) of a share that the lines may hold."""
    epochs, means = log.by_epoch(name)
    return epochs, 100 * means


def thinned(line: Line, most: int = MOST_POINTS) -> Line:
    """No more than `most` points: of equal stretches the first, last, lowest and highest each."""
    y = line[1]
    if len(y) <= most:
        return line
    edges = np.linspace(0, len(y), most // 4 + 1).astype(int)
    kept = {0, len(y) - 1}
    for begin, end in pairwise(edges.tolist()):
        part = y[begin:end]
        kept |= {begin, end - 1, begin + int(part.argmin()), begin + int(part.argmax())}
    rows = sorted(kept)
    return line[0][rows], y[rows]


def learning_lines(run: Run) -> dict[str, Line]:
    """Every accuracy that a run has logged, by its name in the legend."""
    found = {
        "natural, test": by_epoch(run.epochs, "test_natural"),
        "robust, test": by_epoch(run.epochs, "test_robust"),
        "natural, validation": by_epoch(run.epochs, "val_natural"),
        "robust, validation": by_epoch(run.epochs, "val_robust"),
        "natural, training": by_epoch(run.steps, "natural_accuracy"),
        "robust, training": by_epoch(run.steps, "robust_accuracy"),
    }
    return {name: line for name, line in found.items() if len(line[0])}


def overfitted(run: Run) -> np.ndarray:
    """The epochs in which the training noticed catastrophic overfitting."""
    return run.epochs["epoch"][run.epochs[MARK] > 0]


DASHES = {"test": "-", "validation": "--", "training": ":"}


def mark(line: Line) -> str | None:
    """Few points are shown as points, many as a line alone."""
    return "o" if len(line[0]) <= 30 else None


@page_style()
def learning_curves(run: Run) -> Figure | None:
    """Natural and robust accuracy by epoch on the parts that a run was measured on (Figure 2)."""
    lines = learning_lines(run)
    if not lines:
        return None
    figure, axes = new_figure(4.4, 3.3)
    for name, line in lines.items():
        kind, where = name.split(", ")
        colour = NATURAL if kind == "natural" else ROBUST
        axes.plot(*thinned(line), DASHES[where], marker=mark(line), color=colour, label=name)
    noticed = overfitted(run)
    for epoch in noticed[:: -(-len(noticed) // MOST_MARKS) or 1]:
        axes.axvline(epoch, color=MUTED, linewidth=1, linestyle=":")
    axes.set(title=run.label, xlabel="epoch", ylabel="accuracy, %", ylim=(0, 100))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    below(axes, 3)
    return figure


@page_style()
def robust_overfitting(runs: Sequence[Run]) -> tuple[Figure, str] | None:
    """(robust accuracy by epoch of all runs in one picture, where it was measured)."""
    measured = {
        "test": [by_epoch(run.epochs, "test_robust") for run in runs],
        "validation": [by_epoch(run.epochs, "val_robust") for run in runs],
    }
    where = next((w for w, lines in measured.items() if all(len(line[0]) for line in lines)), None)
    if where is None:
        return None
    lines = measured[where]
    figure, axes = new_figure(4.4, 3.3)
    for run, line, look in zip(runs, lines, looks(), strict=False):
        axes.plot(*thinned(line), marker=mark(line), label=run.label, **look)
    axes.set(title="robust accuracy of all runs", xlabel="epoch", ylabel="accuracy, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    below(axes)
    return figure, where


def spread_over_epochs(runs: Sequence[Run], name: str) -> list[Line]:
    """By epoch, the lowest, the median and the highest of a share over all runs, in percent."""
    lines = [by_epoch(run.epochs, name) for run in runs]
    x, y = (np.concatenate([line[i] for line in lines]) for i in (0, 1))
    rows = np.lexsort((y, x))
    epochs, first, counts = np.unique(x[rows], return_index=True, return_counts=True)
    last = first + counts - 1
    middle = (y[rows][first + (counts - 1) // 2] + y[rows][first + counts // 2]) / 2
    return [(epochs, y[rows][first]), (epochs, middle), (epochs, y[rows][last])]


@page_style()
def robust_spread(runs: Sequence[Run]) -> tuple[Figure, str] | None:
    """(robust accuracy by epoch over more runs than curves can be told apart, where measured)."""
    for where, name in (("test", "test_robust"), ("validation", "val_robust")):
        measured = [run for run in runs if len(run.epochs.numbers(name))]
        if len(measured) < 2:
            continue
        low, middle, high = map(thinned, spread_over_epochs(measured, name))
        figure, axes = new_figure(4.4, 3.3)
        axes.plot(*high, "--", color=ROBUST, label="highest")
        axes.plot(*middle, "-", color=ROBUST, label="median")
        axes.plot(*low, ":", color=ROBUST, label="lowest")
        title = f"robust accuracy of {len(measured)} runs"
        axes.set(title=title, xlabel="epoch", ylabel="accuracy, %")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        below(axes, 3)
        return figure, where
    return None


def looks() -> Iterable[dict[str, Any]]:
    """Colour and dash of one curve after another; every colour comes round with another dash."""
    dashes = [d for d in ("-", "--", ":", "-.") for _ in PALETTE]
    return cycle(
        [{"color": c, "linestyle": d} for c, d in zip(cycle(PALETTE), dashes, strict=False)]
    )


@dataclass(frozen=True)
class Sweep:
    """One attack at several radii on the same images and weights, radii rising."""

    records: list[Record]

    @property
    def levels(self) -> list[float]:
        """The radii in 255ths."""
        return [255 * record.eps for record in self.records]

    @property
    def percent(self) -> list[float]:
        return [record.percent for record in self.records]


def sweeps(run: Run, attack: str) -> list[Sweep]:
    """A run's sweeps of an attack of the usual strength, that of the most radii first.

    The clean accuracy of the same images stands in for a missing radius of 0.
    """
    groups: dict[Any, list[Record]] = defaultdict(list)
    clean: dict[Any, Record] = {}
    for record in run.records:
        key = (record.points, record.sha256)
        if record.attack == attack:
            group = (*key, record.values.get("seed"))
            groups[group].append(record)
        elif record.attack == "clean":
            clean[key] = record
    found = []
    for key, records in groups.items():
        zero = clean.get(key[:2])
        if zero and not any(same_radius(r.eps, 0) for r in records):
            records = [*records, zero]
        found.append(Sweep(sorted(records, key=lambda r: r.eps)))
    return sorted(found, key=lambda sweep: (-len(sweep.records), -sweep.records[0].n))


def unlike(found: Sequence[Sweep]) -> list[Sweep]:
    """The first of those at the same radii on the same images, whatever their seeds."""
    kinds: dict[Any, Sweep] = {}
    for sweep in found:
        first = sweep.records[0]
        kinds.setdefault((first.points, first.test_set, *sweep.levels), sweep)
    return list(kinds.values())


def strength_sweep(run: Run) -> Sweep | None:
    """The PGD sweep that Figures 1 and 4 are drawn from, or None: it needs both directions."""
    for sweep in sweeps(run, "pgd"):
        levels = sweep.levels
        known = all(record.has_outcomes for record in sweep.records)
        if known and len(levels) >= 3 and min(levels) < 0 < max(levels):
            return sweep
    return None


def halves(losses: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the half with the lower natural loss, and of the other; equal losses as they come."""
    ranked = np.argsort(np.asarray(losses), kind="stable")
    return ranked[: len(ranked) // 2], ranked[len(ranked) // 2 :]


@page_style()
def strength_curves(run: Run, sweep: Sweep, losses: Sequence[float]) -> Figure:
    """Accuracy against strength for the halves by natural loss (Figures 1, 4); losses (n,)."""
    figure, axes = new_figure(4.4, 3.3)
    levels = sweep.levels
    correct = np.array([record.correct for record in sweep.records])
    curves = [100 * correct[:, rows].mean(axis=1) for rows in halves(losses)]
    axes.axvline(0, color=TRAINING, linewidth=1.2)
    axes.plot(levels, sweep.percent, "--", color=MUTED, linewidth=1.2, label="all")
    for curve, colour, name in zip(
        curves, (NATURAL, ROBUST), ("lower loss", "higher loss"), strict=True
    ):
        axes.plot(levels, curve, marker="o", color=colour, label=f"half with the {name}")
    at = [i for i, record in enumerate(sweep.records) if same_radius(record.eps, run.eps)]
    for i in at:
        low, high = sorted(float(curve[i]) for curve in curves)
        axes.plot([levels[i]] * 2, [low, high], color=INK, linewidth=1.2)
        axes.annotate(
            f"gap {high - low:.1f}",
            (levels[i], high),
            xytext=(5, 4),
            textcoords="offset points",
            color=INK,
        )
    axes.set(title=run.label, xlabel="ε · 255   (below 0: inverse)", ylabel="accuracy, %")
    axes.set_ylim(-2, 102)
    below(axes, 3)
    return figure


@dataclass(frozen=True)
class Difference:
    """By radius in 255ths, accuracy of one run minus another's, and its standard error."""

    levels: list[float]
    points: list[float]
    errors: list[float]


def difference(first: Run, other: Run, attack: str = "autoattack") -> Difference | None:
    """Of two runs over the radii that both were measured at, on the same images; else None.

    The error is that of paired samples: which ones each run gets right is known.
    """
    best: Difference | None = None
    theirs = [(b, ByRadius((s.eps, s) for s in b.records)) for b in unlike(sweeps(other, attack))]
    for a in unlike(sweeps(first, attack)):
        for b, at_radius in theirs:
            if not a.records[0].on_the_same_images(b.records[0]):
                continue
            pairs = [(r, s) for r in a.records for s in at_radius.at(r.eps)]
            if len(pairs) < 2 or (best and len(best.levels) >= len(pairs)):
                continue
            errors = []
            for r, s in pairs:
                right, wrong = r.correct, s.correct
                if right is None or wrong is None:
                    errors.append(float(np.hypot(r.standard_error, s.standard_error)))
                else:
                    gain = np.array(right, dtype=float) - np.array(wrong, dtype=float)
                    errors.append(float(100 * gain.std() / np.sqrt(len(gain))))
            best = Difference(
                [255 * r.eps for r, _ in pairs], [r.percent - s.percent for r, s in pairs], errors
            )
    return best


@page_style()
def difference_curves(runs: Sequence[Run]) -> Figure | None:
    """AutoAttack accuracy of the first run minus that of each other, over the radius (Figure 5)."""
    first, *others = runs
    found = [(other, difference(first, other)) for other in others]
    if not any(d for _, d in found):
        return None
    figure, axes = new_figure(4.4, 3.3)
    axes.axhline(0, color=MUTED, linewidth=1.2)
    axes.axvline(255 * first.eps, color=MUTED, linewidth=1, linestyle=":")
    for (other, d), look in zip(found, looks(), strict=False):
        if d is None:
            continue
        low = np.array(d.points) - 1.96 * np.array(d.errors)
        high = np.array(d.points) + 1.96 * np.array(d.errors)
        axes.fill_between(d.levels, low, high, color=look["color"], alpha=0.15, linewidth=0)
        axes.plot(d.levels, d.points, marker="o", label=f"{first.label} − {other.label}", **look)
    axes.set(xlabel="ε · 255", ylabel="AutoAttack difference, points")
    below(axes, 1)
    return figure
