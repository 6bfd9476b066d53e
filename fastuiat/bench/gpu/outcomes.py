"""A plugin of pytest that writes each test's outcome down as it ends; and what it wrote, read.

    python -m pytest -p fastuiat.bench.gpu.outcomes --outcomes FILE …

JUnit XML is written at the end, which a test that hangs never reaches.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fastuiat import sealed

MOST = 300
"""Characters of a reason."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--outcomes", type=Path, help="append a JSON line for each test to this file")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--outcomes")
    if path is not None and not hasattr(config, "workerinput"):  # xdist's workers report to one
        config.pluginmanager.register(Outcomes(path))


class Outcomes:
    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **line: Any) -> None:
        with open(self.path, "ab") as file:
            file.write(sealed.line(line))

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.write(collected=len(session.items))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        self.write(collected=len(ids))

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.write(test=report.nodeid, outcome="failed", why=why(report), unread=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            said = why(report) if report.failed else None
            self.write(test=report.nodeid, outcome=report.outcome, why=said)


def why(report: pytest.CollectReport | pytest.TestReport) -> str:
    """The last line of a failure."""
    lines = report.longreprtext.strip().splitlines() or [""]
    return lines[-1][:MOST]
