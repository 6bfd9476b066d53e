"""The AutoAttack bench: both ways do the same work and find the same."""

from __future__ import annotations

import json
import operator

import pytest
import torch

from fastuiat.bench.suites import autoattack as suite
from fastuiat.cli import main
from fastuiat.config import UserError

WORDS = ["bench", "autoattack", "--n", "3", "--batch-size", "2", "--package-batch-sizes", "2", "3"]


@pytest.mark.slow
def test_rows_are_compared_point_by_point(tmp_path, capsys):
    path = tmp_path / "autoattack.jsonl"
    main([*WORDS, "--share", "0.001", "--eps", "0.02", "--json", str(path)])
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert [r["provider"] for r in records] == ["package b2", "package b3", "fastuiat"]
    for r in records:
        assert (r["suite"], r["case"], r["error"]) == ("autoattack", "wrn-10-1/n3/b2", None)
        assert r["robust"] == records[0]["robust"] and r["same_verdicts"] == 3
        assert r["speedup"] == pytest.approx(records[0]["median_s"] / r["median_s"])
    assert "0.1% of each attack's iterations" in capsys.readouterr().out


@pytest.mark.slow
def test_what_happens_in_a_process_is_said():
    net, x, y = suite.fresh("wrn-10-1", 2)
    case = suite.AutoAttackCase(
        name="", net=net, x=x, y=y, eps=0.01, batch_size=2, package_batch_sizes=(2,), share=0.001,
        compile=False, device=torch.device("cpu"),
    )  # fmt: skip
    ways = suite.Evaluations(case)
    try:
        fails = ways.start("fails", operator.methodcaller("adjust", None))
        with pytest.raises(RuntimeError, match="AttributeError: 'NoneType'"):
            fails()
        dies = ways.start("dies", suite.by_fastuiat)
        ways._processes[-1].kill()
        with pytest.raises(RuntimeError, match="its process ended, exit code -9"):
            dies()
    finally:
        ways.end()
    assert not any(process.is_alive() for process in ways._processes)


def test_nonsense_is_refused(capsys):
    for words, message in ((["--share", "2"], "--share"), (["--n", "0"], "--n")):
        with pytest.raises((SystemExit, UserError)) as error:
            main([*WORDS, *words])
        assert message in str(error.value) + capsys.readouterr().err
