"""A bench suite is one file: all that shows or checks suites follows from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastuiat.bench import suites
from fastuiat.bench.gpu import results
from fastuiat.bench.reading import read_records
from fastuiat.bench.record import config_hash
from fastuiat.cli import main
from fastuiat.config import UserError

ROOT = Path(__file__).parents[2]
SORTING = '''
"""`fastuiat bench sorting`."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch

from fastuiat.bench import columns
from fastuiat.bench.record import make_record
from fastuiat.bench.suite import Measuring, Suite, register
from fastuiat.bench.timing import Provider, WallClock, interleaved


@dataclass(frozen=True, kw_only=True)
class SortingOptions(Measuring):
    """Time how long sorting takes."""

    numbers: int = 100
    """How many."""


@register("sorting")
class Sorting(Suite):
    Options = SortingOptions
    help = "numbers in order: Python's sort"
    title = "Sorting numbers"
    what = "the time of a sort"
    unit = "a sort"
    needs = {"numbers": int}

    def columns(self):
        return {"case": columns.case, "by": columns.provider, "took": columns.median,
                "sorted": columns.number("numbers", ",.0f")}

    def measure(self, options, done):
        numbers = [random.random() for _ in range(options.numbers)]
        (m,) = interleaved(
            [Provider("sorted", lambda: lambda: sorted(numbers))],
            clock=WallClock(), plan=options.plan(), done=done,
        )
        return [make_record(
            suite=self.name, case="random", measured=m, device=torch.device("cpu"),
            config={"numbers": options.numbers}, numbers=options.numbers,
        )]
'''
USES = """
import importlib.util, json, pathlib, sys
from fastuiat.cli import main
main(["bench", "--help"])
main(["bench", "sorting", "--numbers", "1234", "--repeats", "3", "--json", "sorting.jsonl"])
record = json.loads(pathlib.Path("sorting.jsonl").read_text())
other = record | {"device": "another machine", "median_s": 2 * record["median_s"]}
pathlib.Path("other.jsonl").write_text(json.dumps(other) + "\\n")
main(["bench", "compare", "sorting.jsonl", "other.jsonl", "--no-bounds", "--csv", "out.csv"])
spec = importlib.util.spec_from_file_location("render", sys.argv[1])
render = importlib.util.module_from_spec(spec)
spec.loader.exec_module(render)
page = "<!-- measured: sorting -->\\n<!-- end -->\\n"
print(render.filled(page, pathlib.Path(), "page")[0])
from fastuiat.bench.gpu import results
print("gpu:", results.figures([record]))
"""


@pytest.mark.slow
def test_a_new_file_is_a_suite_everywhere(tmp_path):
    """The package as it is, with one file more, used as a person would."""
    package = tmp_path / "site" / "fastuiat"
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "fastuiat", package, ignore=leave)
    (package / "bench" / "suites" / "sorting.py").write_text(SORTING)
    work = tmp_path / "work"
    work.mkdir()
    path = os.pathsep.join([str(package.parent), str(ROOT / "kernels")])
    done = subprocess.run(
        [sys.executable, "-c", USES, str(ROOT / "benchmarks" / "render.py")],
        cwd=work,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said, record = done.stdout, json.loads((work / "sorting.jsonl").read_text())
    assert "  sorting     numbers in order: Python's sort\n" in said
    assert f"sorting on {record['device']}\n  case" in said
    assert record["numbers"] == 1234 and record["n"] == 3
    assert "sorting: a sort\n" in said and "another machine" in said
    page = (work / "compare.html").read_text()
    assert "Sorting numbers" in page and "the time of a sort" in page
    assert (work / "out.csv").read_text().splitlines()[1].startswith("sorting,random,sorted,")
    assert "| case | by | took | sorted |\n|---|---|---|---|\n| random | sorted | " in said
    assert "| 1,234 |\n\nMeasured on " in said
    assert "gpu: sorted " in said


def record(suite: str, device: str, seconds: float, **more) -> dict:
    config = {"n": 64, "eps": 1e-6}
    return {
        "format": "fastuiat-bench-1",
        "suite": suite,
        "case": "wrn-10-1/n64/b64",
        "provider": "fastuiat",
        "device": device,
        **dict.fromkeys(("median_s", "p20_s", "p80_s"), seconds),
        "n": 1,
        "extrapolated": False,
        "error": None,
        "config": config,
        "config_hash": config_hash(config),
        "time": "2026-01-02T00:00:00+00:00",
        **more,
    }


def write(path: Path, *records: dict) -> str:
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    return str(path)


def test_whole_evaluations_are_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    more = {"speedup": 4.0, "robust": 60, "same_verdicts": 64, "first_s": 9.0}
    pair = [record("autoattack", device, s, **more) for device, s in (("A", 30.0), ("B", 10.0))]
    main(["bench", "compare", write(tmp_path / "a.jsonl", *pair)])
    said = capsys.readouterr().out
    assert "autoattack: an evaluation\n" in said and "0.333" in said
    page = (tmp_path / "compare.html").read_text()
    assert "AutoAttack" in page and "the time of a whole evaluation" in page
    assert "wrn-10-1/n64/b64: time" in page, "its chart"


def test_records_of_a_suite_that_is_not_here_are_shown_plainly(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pair = [record("later", device, 0.5) for device in "AB"]
    main(["bench", "compare", write(tmp_path / "a.jsonl", *pair)])
    assert "later: a call\n" in capsys.readouterr().out
    assert results.figures(pair[:1]) == "fastuiat 500 ms"


def test_a_record_has_what_its_suite_needs(tmp_path):
    whole = record("table2", "A", 0.5, row="uiat", steps_per_epoch=390)
    assert read_records(Path(write(tmp_path / "a.jsonl", whole))) == [whole]
    lacks = {name: value for name, value in whole.items() if name != "steps_per_epoch"}
    with pytest.raises(UserError, match="no usable steps_per_epoch"):
        read_records(Path(write(tmp_path / "b.jsonl", lacks)))


def test_every_suite_says_what_it_is():
    lines = {name: suites.get(name) for name in suites.names()}
    assert list(lines) == [
        "step",
        "kernels",
        "layers",
        "loader",
        "table2",
        "table5",
        "autoattack",
        "scaling",
    ]
    for name, suite in lines.items():
        assert suite.name == name and suite.help and suite.title and suite.columns()
        assert suite.Options.__doc__
    with pytest.raises(UserError, match="unknown suite 'stairs': choose from step, kernels"):
        suites.get("stairs")
