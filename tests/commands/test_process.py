"""What is set for a whole process is set by the command, by some of its words only."""

from __future__ import annotations

import ast
import contextlib
from pathlib import Path

import pytest
import torch

from fastuiat.cli import main

ROOT = Path(__file__).parents[2] / "fastuiat"


@pytest.fixture
def kept(monkeypatch, tmp_path) -> list[bool]:
    """A True for each time that the C library was told to keep what is freed."""
    calls: list[bool] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "fastuiat.fast.allocator.keep_freed_memory", lambda: calls.append(True) or True
    )
    return calls


@pytest.mark.parametrize("command", ["train", "eval", "bench", "reproduce"])
def test_what_computes_keeps_freed_memory_on_the_cpu(command, kept, monkeypatch):
    for cuda in (False, True):
        kept.clear()
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        with contextlib.suppress(SystemExit):
            main([command, "--help"])
        assert kept == ([] if cuda else [True])


def test_what_does_not_compute_leaves_the_process(kept, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    main(["recipes"])
    with pytest.raises(SystemExit):
        main(["train?"])
    assert not kept


def test_the_library_never_asks_for_it():
    """Only commands do, whatever is imported or made, and processes that a bench has for itself."""
    callers = {
        str(path.relative_to(ROOT))
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "keep_freed_memory"
    }
    assert "commands/process.py" in callers
    library = {caller for caller in callers if not caller.startswith("commands/")}
    assert library == {"bench/rank.py", "bench/suites/autoattack.py"}
