"""SECURITY.md promises what the tests here hold, and names them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.forks import ROOT


def names_of_tests(path: Path) -> set[str]:
    nodes = ast.parse(path.read_text()).body
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    return {name for name in names if name.startswith("test_")}


def test_each_promise_is_held_by_a_test():
    text = (ROOT / "SECURITY.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text)
    assert len(named) > 10
    for file, test in named:
        assert test in names_of_tests(ROOT / file), f"{file} has no {test}"
    here = {path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)}
    assert len(here) > 2
    for path in here:
        file = str(path.relative_to(ROOT))
        assert names_of_tests(path) <= {test for place, test in named if place == file}
