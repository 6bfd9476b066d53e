"""Wrong words are drawn of all commands and flags that there are."""

from __future__ import annotations

from fastuiat.cli import COMMANDS
from tests.campaign import grammar


def test_a_flag_is_in_the_grammar_without_being_told() -> None:
    commands = grammar.commands()
    assert {name for name, *_ in commands} == set(COMMANDS)
    known = {name for command in commands for flag in grammar.flags(command) for name in flag.names}
    spelt = {"--eps", "--no-nesterov", "--resume-or-start", "--processes", "--config", "--budget"}
    assert spelt <= known
    (device,) = (f for f in grammar.flags(("eval",)) if f.names == ("--device",))
    assert device.choices == ["auto", "cpu", "cuda"]
