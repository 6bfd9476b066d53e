"""Tables: units that can be read, and columns that line up."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fastuiat.bench import table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (1234.5, "1,234 s"),
        (61.23, "61.2 s"),
        (1.0, "1 s"),
        (0.0123, "12.3 ms"),
        (0.9991, "999 ms"),
        (0.99996, "1 s"),
        (999.7, "1,000 s"),
        (4.5e-6, "4.5 µs"),
        (0.0, "0 µs"),
    ],
)
def test_seconds(value, text):
    assert table.seconds(value) == text


def test_sizes():
    assert [table.size(v) for v in (None, 0, 612_000, 629_400_000, 2.5e9)] == [
        "–",
        "0 MB",
        "0.612 MB",
        "629 MB",
        "2.50 GB",
    ]


def test_columns_line_up():
    lines = table.aligned([("name", "s"), ("long name", "1"), ("x", "1000")])
    assert lines == ["name          s", "long name     1", "x          1000"]


@pytest.mark.parametrize(("width", "boxed"), [(200, True), (48, True), (47, False), (40, False)])
def test_a_narrow_terminal_gets_whole_cells(monkeypatch, capsys, width, boxed):
    out = io.StringIO()

    def console(**options):
        return Console(file=out, force_terminal=True, width=width, **options)

    monkeypatch.setattr(table, "Console", console)
    cells = ("a provider", "12.3 ms", "12.1 ms – 12.9 ms", "5")
    table.show("title", ("provider", "median", "20–80%", "n"), [cells], ["a note [in brackets]"])
    text = out.getvalue() + capsys.readouterr().out
    assert all(cell in text for cell in cells) and "a note [in brackets]" in text
    assert ("━" in text) is boxed
