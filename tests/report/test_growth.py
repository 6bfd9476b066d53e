"""A report of a long log or of many runs: what it costs grows with its input, its page does not."""

from __future__ import annotations

import re
import tracemalloc
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fastuiat.cli import main
from fastuiat.config import UserError
from fastuiat.report import curves, document, page
from fastuiat.report.curves import difference
from fastuiat.report.log import MARK, Log, Reader, read_metrics
from fastuiat.report.runs import SAME_RADIUS, ByRadius, Record, Run, read_run, read_runs
from fastuiat.report.sensitivity import sensitivities
from fastuiat.report.tables import (
    at_training_radius,
    evaluations_beside,
    kinds_of,
    settings_beside,
)
from tests.large import calls_in, log_lines, write_log, write_run

TWICE = 2.3
"""What twice as much may cost: once more than that is more than linear."""


def test_a_long_log_is_parsed_once_and_kept_as_columns(tmp_path, monkeypatch):
    parsed, taken = 0, Reader.take

    def counting(self, text):
        nonlocal parsed
        parsed += 1
        taken(self, text)

    monkeypatch.setattr(Reader, "take", counting)
    peaks = {}
    for count in (1000, 4000):
        write_log(tmp_path, count, each=10)
        parsed = 0
        tracemalloc.start()
        epochs, steps = read_metrics(tmp_path / "metrics.jsonl")
        peaks[count] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert parsed == count and (len(epochs), len(steps)) == (count // 10, count - count // 10)
    # The text of a line is some 400 bytes, its dictionary 2,000.
    assert peaks[4000] - peaks[1000] < 3000 * 100


def test_columns_are_the_lines(tmp_path):
    write_log(tmp_path, 60, each=4)
    lines = list(log_lines(60, each=4))
    epochs, steps = read_metrics(tmp_path / "metrics.jsonl")
    ends = [line for line in lines if line["kind"] == "epoch"]
    assert epochs["val_robust"].tolist() == [line["val_robust"] for line in ends]
    waits = [line["clock"]["data_wait_percent"] for line in ends]
    assert epochs.numbers("clock.data_wait_percent").tolist() == waits
    x, means = steps.by_epoch("robust_accuracy")
    own = [[ln["robust_accuracy"] for ln in lines[4 * e : 4 * e + 3]] for e in range(15)]
    assert x.tolist() == list(range(1, 16))
    np.testing.assert_allclose(means, np.mean(own, axis=1))


def test_a_line_without_end_is_no_line(tmp_path, monkeypatch):
    monkeypatch.setattr("fastuiat.bounds.LONGEST_LINE", 1000)
    (tmp_path / "metrics.jsonl").write_text(" " * 5000)
    with pytest.raises(UserError, match="line 1 is no line of metrics"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_thinned_curve_keeps_its_ends_and_extremes():
    draw = np.random.default_rng(0)
    x, y = np.arange(100_000.0), draw.random(100_000)
    y[[41_234, 77_777]] = 5, -5
    thin_x, thin_y = curves.thinned((x, y))
    assert len(thin_x) <= curves.MOST_POINTS and (np.diff(thin_x) > 0).all()
    assert {0, 41_234, 77_777, 99_999} <= set(thin_x.tolist())
    assert thin_y.tolist() == y[thin_x.astype(int)].tolist()
    for part in np.array_split(np.arange(100_000), 50):
        inside = thin_y[(thin_x >= part[0]) & (thin_x <= part[-1])]
        assert (inside.min(), inside.max()) == (y[part].min(), y[part].max())
    assert curves.thinned((x[:2000], y[:2000]))[0] is not thin_x


def test_a_long_run_is_a_small_figure_that_says_so(tmp_path):
    count = 4 * curves.MOST_POINTS
    columns = {"epoch": np.arange(1.0, count + 1), "step": np.arange(1.0, count + 1)}
    columns["test_robust"] = np.random.default_rng(0).random(count)
    columns[MARK] = np.ones(count)
    run = Run(tmp_path, {}, {}, Log(columns), Log(), [], label="long")
    figure = curves.learning_curves(run)
    assert figure is not None and len(page.drawn(figure, "long")) < 300_000
    made, _ = document.make_report([run], document.FromNets())
    text = made.html()
    assert f"Of {count:,} epochs at most 2,000 points are drawn a line" in text
    assert f"({count:,} in all, the last {count})" in text


def runs_of(count: int) -> list[Run]:
    """In memory; each was measured on a test set of its own, the worst case for a common table."""
    runs = []
    for i in range(count):
        records = [
            Record(
                {"attack": attack, "accuracy": 0.5, "n": 9, "dataset": "own", "split": "test"}
                | {"eps_value": level / 255, "data": {"sha256": f"{i}"}},
                Path(f"{attack}_{level}.json"),
            )
            for attack, level in (("clean", 0), ("pgd", 4), ("pgd", 8))
        ]
        settings = {"lam": float(i), "seed": 0, "beta": 1.0, "attack.eps": (i + 1) / 10_000}
        runs.append(Run(Path(f"{i}"), {}, {}, Log(), Log(), records, f"run {i}", settings))
    return runs


def beside(runs: list[Run]) -> None:
    evaluations_beside(runs, kinds_of(runs)[:20])
    settings_beside(runs)
    sensitivities(runs)
    at_training_radius(runs, kinds_of(runs))


def test_tables_of_many_runs_grow_with_the_runs():
    beside(runs_of(3))
    few, many = (calls_in(partial(beside, runs_of(n))) for n in (100, 200))
    assert many < TWICE * few


def swept(count: int) -> Run:
    """AutoAttack at three radii, with so many seeds."""
    records = [
        Record(
            {"attack": "autoattack", "accuracy": 0.5, "n": 4, "dataset": "own", "split": "test"}
            | {"eps_value": level / 255, "seed": seed, "per_sample": "0110"},
            Path(f"{seed}-{level}.json"),
        )
        for seed in range(count)
        for level in (2, 4, 8)
    ]
    return Run(Path("swept"), {}, {}, Log(), Log(), records, "swept")


def test_a_difference_grows_with_the_sweeps_and_with_their_radii():
    found = difference(swept(1), swept(1))
    assert found is not None and found.levels == [2, 4, 8]
    assert difference(swept(3), swept(2)) == found
    few, many = (calls_in(partial(difference, swept(n), swept(n))) for n in (30, 60))
    assert many < TWICE * few
    costs = []
    for n in (100, 200):
        run = swept(1)
        for level in range(10, n):
            values = run.records[0].values | {"eps_value": level / 255}
            run.records.append(Record(values, Path(f"{level}.json")))
        costs.append(calls_in(partial(difference, run, run)))
    assert costs[1] < TWICE * costs[0]


def test_a_run_of_many_records_grows_with_them(tmp_path, monkeypatch):
    monkeypatch.setattr(page.Page, "figure", lambda self, figure, **words: None)

    def reported(folder: Path) -> None:
        made, _ = document.make_report([read_run(folder)], document.FromNets())
        assert made.html()

    counts = []
    for levels in (3, 2, 50, 100):  # the first fills the caches
        folder = write_run(tmp_path / f"{levels}", lines=4, each=2, levels=levels, images=8)
        counts.append(calls_in(partial(reported, folder)))
    _, none, few, many = counts
    assert many - none < TWICE * (few - none), counts


def test_radii_are_the_same_across_a_border_of_cells():
    edge = 7 * SAME_RADIUS
    near = ByRadius([(edge - 1e-9, "below"), (edge + 1e-9, "above"), (edge + 3e-6, "far")])
    assert near.at(edge) == ["below", "above"] and near.at(edge + 3e-6) == ["far"]
    assert near.at(1.0) == []


def test_of_many_runs_a_few_are_drawn_and_the_page_says_which(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(page, "png_file", lambda figure: b"png")
    monkeypatch.setattr(document, "MOST_DRAWN", 3)
    monkeypatch.setattr(document, "MOST_KINDS", 4)
    for i in range(6):
        write_run(tmp_path / f"r{i}", lines=20, each=2, levels=2, images=8, seed=i, lam=1.0 + i)
    main(["report", *map(str, sorted(tmp_path.glob("r*"))), "--out", str(tmp_path / "page.html")])
    text = (tmp_path / "page.html").read_text()
    names = re.findall(r'id="(learning-curves-r\d|robust-spread)-figure_1', text)
    assert names == ["robust-spread", *(f"learning-curves-r{i}" for i in range(3))]
    assert "Learning curves (Figure 2) of 3 more runs" in text and f"report {tmp_path}/r3" in text
    assert "All 6 measurements (here the first 4" in text
    assert "left out: " in capsys.readouterr().out
    low, middle, high = curves.spread_over_epochs(
        read_runs(sorted(tmp_path.glob("r*"))), "test_robust"
    )
    each = [read_run(folder).epochs["test_robust"] for folder in sorted(tmp_path.glob("r*"))]
    np.testing.assert_allclose(low[1], 100 * np.min(each, axis=0))
    np.testing.assert_allclose(middle[1], 100 * np.median(each, axis=0))
    np.testing.assert_allclose(high[1], 100 * np.max(each, axis=0))
