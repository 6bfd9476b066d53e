"""A minute's part of the campaign with a seed of its own: wrong commands and wrong files."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from fastuiat.cli import COMMANDS
from tests.campaign import files, grammar, words

PARTS = {
    "files": (files.trials, 15),
    "words": (partial(words.trials, with_ffcv=False), 30),
}
"""How many trials of each: all of them together take seconds."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both parts keep the run that they need in it."""
    return tmp_path_factory.mktemp("campaign")


@pytest.mark.parametrize("name", PARTS)
def test_wrong_input_is_refused_in_a_line(name: str, folder: Path) -> None:
    trials, count = PARTS[name]
    with closing(trials(random.Random(f"{name} of the tests"), folder)) as rows:
        tried = list(islice(rows, count))
    assert not [trial for trial in tried if trial.faults]
    counts: Counter[str] = Counter()
    for trial in tried:
        counts.update(dict(trial.counts))
    assert counts["refused"] > 0.4 * len(tried)
    assert counts["messages"] > 0.5 * counts["refused"]


def test_a_flag_is_in_the_grammar_without_being_told() -> None:
    commands = grammar.commands()
    assert {name for name, *_ in commands} == set(COMMANDS)
    known = {name for command in commands for flag in grammar.flags(command) for name in flag.names}
    spelt = {"--eps", "--no-nesterov", "--resume-or-start", "--processes", "--config", "--budget"}
    assert spelt <= known
    (device,) = (f for f in grammar.flags(("eval",)) if f.names == ("--device",))
    assert device.choices == ["auto", "cpu", "cuda"]
