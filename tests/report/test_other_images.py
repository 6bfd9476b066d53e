"""Accuracies on different test sets of one name do not stand in one row."""

from __future__ import annotations

from pathlib import Path

from fastuiat.report.log import Log
from fastuiat.report.runs import Record, Run
from fastuiat.report.tables import evaluations_beside, kinds_of
from fastuiat.report.words import other_test_sets


def run(label: str, sha256: str | None, accuracy: float) -> Run:
    values = {"attack": "clean", "accuracy": accuracy, "n": 9, "dataset": "own", "split": "test"}
    if sha256:
        values["data"] = {"sha256": sha256}
    record = Record(values, Path("eval/clean_n9.json"))
    return Run(Path(label), {}, {}, Log(), Log(), [record], label=label)


def test_other_test_sets_have_rows_of_their_own():
    runs = [run("a", "1", 0.5), run("b", "2", 0.6)]
    _, rows = evaluations_beside(runs, kinds_of(runs))
    assert [[bool(cell) for cell in row[3:]] for row in rows] == [[True, False], [False, True]]
    assert other_test_sets(runs) == ["b"]


def test_the_same_and_unknown_ones_stand_beside_each_other():
    """A record of the time before fingerprints says no more than the data set's name."""
    for other in ("1", None):
        runs = [run("a", "1", 0.5), run("b", other, 0.6)]
        _, rows = evaluations_beside(runs, kinds_of(runs))
        assert len(rows) == 1 and all(rows[0][3:])
        assert other_test_sets(runs) == []
