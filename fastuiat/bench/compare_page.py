"""The page of a comparison: what was measured, as charts first and then as tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from fastuiat.bench import compare_tables as tables
from fastuiat.bench import floors, suites, table
from fastuiat.bench.comparison import ComparedRow, Comparison
from fastuiat.bench.suite import Rate
from fastuiat.report.page import INK, MUTED, PALETTE, Page, new_figure, page_style

WIDE_RANGE = 100.0
"""Bars of values further apart than this are points on a logarithmic axis instead."""
MOST_GROUPS = 8
"""Cases of a suite that have charts, some three each; drawing one takes a quarter of a second."""
MOST_BARS = 40
"""Rows of a chart."""
PAPER = "paper's A100"
Values = list[float | None]


def draw(
    names: Sequence[str],
    series: Mapping[str, Values],
    axis: str,
    text: Callable[[float], str],
    colours: Mapping[str, str],
) -> Figure:
    """Groups of horizontal bars, one for each series, with their values written beside them."""
    known = [v for values in series.values() for v in values if v]
    logarithmic = max(known) / min(known) > WIDE_RANGE
    each = 0.8 / len(series)
    figure, axes = new_figure(4.4, 0.85 + len(names) * max(0.24, 0.17 * len(series)))
    with page_style():
        for i, (label, values) in enumerate(series.items()):
            at = [n + (i - (len(series) - 1) / 2) * each for n in range(len(names))]
            drawn = [(y, v) for y, v in zip(at, values, strict=True) if v]
            ys, xs = [y for y, _ in drawn], [v for _, v in drawn]
            if logarithmic:
                axes.plot(xs, ys, "o", color=colours[label], label=label)
            else:
                axes.barh(ys, xs, 0.88 * each, color=colours[label], label=label)
            for y, value in drawn:
                axes.annotate(
                    text(value),
                    (value, y),
                    xytext=(4, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=7.5,
                    color=INK,
                )
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: text(value))
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_xlim(min(known) / 1.4, max(known) * 3)
        else:
            axes.set_xlim(0, max(known) * 1.16)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.45, -0.55)
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(axis)
        figure.legend(loc="outside upper left", ncols=1)
    return figure


@dataclass(frozen=True)
class Chart:
    """What a chart shows of each row."""

    what: str
    axis: str
    value: Callable[[ComparedRow, str], float | None]
    """Of a row on a device."""
    paper: Callable[[ComparedRow], float | None] | None = None
    text: Callable[[float], str] = "{:.3g}".format

    def series(self, rows: Sequence[ComparedRow], comparison: Comparison) -> dict[str, Values]:
        """By device, the paper last; without those that have no value at all."""
        series = {d: [self.value(row, d) for row in rows] for d in comparison.devices}
        if self.paper and comparison.with_paper:
            series[PAPER] = [self.paper(row) for row in rows]
        return {label: values for label, values in series.items() if any(values)}


def charts_of(comparison: Comparison, name: str) -> list[Chart]:
    suite = suites.of(name)
    if (rate := suite.rate) is not None:
        value = partial(rate_of, rate)
        return [Chart(rate.what, rate.axis, value, text=f"{{:{rate.form}}}".format)]

    def spent(row: ComparedRow, device: str) -> float | None:
        return scaled(row.seconds(device), suite.unit_s)

    def by_paper(row: ComparedRow) -> float | None:
        return scaled(row.paper_seconds(), suite.unit_s)

    def text(value: float) -> str:
        return suite.amount(value * suite.unit_s)

    made = [Chart("time", suite.unit, spent, by_paper, text)]
    for kind in dict.fromkeys(k for row in comparison.of(name) for k in row.ratio_names()):
        ours = partial(ComparedRow.inner_ratio, name=kind)
        theirs = partial(ComparedRow.paper_ratio, name=kind)
        made.append(Chart(f"time over that of {kind}", f"÷ {kind}", ours, theirs, "{:.2f}".format))

    def share(row: ComparedRow, device: str) -> float | None:
        return scaled(row.share(device), 0.01)

    return [*made, Chart("share of the device's peak", "% of peak", share)]


def rate_of(rate: Rate, row: ComparedRow, device: str) -> float | None:
    return scaled(row.cells.get(device, {}).get(rate.field), rate.scale)


def scaled(value: float | None, by: float) -> float | None:
    return value / by if value else None


def add_charts(page: Page, comparison: Comparison, suite: str) -> None:
    colours = {d: PALETTE[i % len(PALETTE)] for i, d in enumerate(comparison.devices)}
    colours[PAPER] = MUTED
    groups: dict[str, list[ComparedRow]] = {}
    for row in comparison.of(suite):
        if not row.is_phase:
            groups.setdefault(row.group, []).append(row)
    charts = charts_of(comparison, suite)
    for g, (group, rows) in enumerate(list(groups.items())[:MOST_GROUPS]):
        for c, chart in enumerate(charts):
            series = chart.series(rows, comparison)
            if not series:
                continue
            kept, said = bars_of(list(series.values()))
            shown = {label: [own[i] for i in kept] for label, own in series.items()}
            labels = [label_of(rows[i]) for i in kept]
            figure = draw(labels, shown, chart.axis, chart.text, colours)
            page.figure(figure, caption=f"{group}: {chart.what}{said}", name=f"{suite}-{g}-{c}")
    if len(groups) > MOST_GROUPS:
        page.text(f"Charts of the first {MOST_GROUPS} of {len(groups):,} cases; the table has all.")


def bars_of(series: Sequence[Values]) -> tuple[list[int], str]:
    """(which rows of a group have anything to draw, in their order; what of them is left out).

    Of many the least and the greatest, by the first device that has each.
    """
    rows = zip(*series, strict=True)
    known = sorted((next(filter(None, own)), i) for i, own in enumerate(rows) if any(own))
    if len(known) <= MOST_BARS:
        return sorted(i for _, i in known), ""
    half = MOST_BARS // 2
    said = f", of {len(known):,} rows the {half} least and the {half} greatest; the table has all"
    return sorted(i for _, i in [*known[:half], *known[-half:]]), said


def label_of(row: ComparedRow) -> str:
    return f"{row.label}\n{row.differs}" if row.differs else row.label


def make_page(comparison: Comparison, cards: Mapping[str, floors.Rates]) -> Page:
    """All suites of a comparison; `cards` are the devices that get a column of bounds."""
    shown = [*comparison.devices, *["the paper's A100"] * comparison.with_paper]
    dates = sorted(row.cells[d]["time"][:10] for row in comparison.rows for d in row.cells)
    page = Page(
        f"fastuiat: {' · '.join(shown)}",
        f"Measured {table.span(dates[0], dates[-1])}. Times are medians; less is faster.",
    )
    page.table(
        *tables.machines(comparison), note="* from changed source" if any_dirty(comparison) else ""
    )
    for suite in comparison.suites():
        of_it = suites.of(suite)
        page.section(of_it.title or suite, f"`fastuiat bench {suite}`: {of_it.what}.")
        add_charts(page, comparison, suite)
        add_tables(page, comparison, suite, cards)
    page.section("Rates and remarks")
    for note in [*tables.reference_note(comparison, comparison.letters()), *comparison.notes]:
        page.text(f"{note[0].upper()}{note[1:]}.")
    if cards:
        headings = (
            "rates behind the bounds",
            "bf16, TFLOP/s",
            "fp32, TFLOP/s",
            "memory, GB/s",
            "source",
        )
        note = "A GPU's fp32 is its TF32, which cuDNN's convolutions take unless told not to."
        page.table(headings, [rates_line(name, r) for name, r in cards.items()], note=note)
    return page


def any_dirty(comparison: Comparison) -> bool:
    return any(r.get("dirty") for d in comparison.devices for r in comparison.records(d))


def add_tables(
    page: Page, comparison: Comparison, suite: str, cards: Mapping[str, floors.Rates]
) -> None:
    short, said = comparison.letters(), tables.notes(comparison, suite)
    page.table(*tables.times(comparison, suite, short), note="; ".join(said))
    if ratios := tables.inner(comparison, suite, short):
        theirs = f"; {tables.PAPER_RATIOS}"
        note = "Each ratio was made inside one run" + theirs * comparison.with_paper
        page.table(*ratios, note=f"{note}.")
    if least := tables.bounds(comparison, suite, short, cards):
        page.table(
            *least,
            note="A bound is computed and not measured: the least time that the counted "
            "operations and bytes allow at the rates below. How far a measured time lies above "
            "its own device's bound shows how much the bound is worth.",
        )


def rates_line(name: str, rates: floors.Rates) -> list[str]:
    def tera(precision: str) -> str:
        value = rates.flops_per_s.get(precision)
        return f"{value / 1e12:.4g}" if value else "–"

    memory = f"{rates.bytes_per_s / 1e9:.4g}"
    return [
        name if rates.name == name else rates.name,
        tera("bf16"),
        tera("fp32"),
        memory,
        rates.source,
    ]
