"""What the command line of fastuiat takes, as its own parsers and help have it."""

from __future__ import annotations

import contextlib
import functools
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import tyro

from fastuiat import methods
from fastuiat.bench import suites
from fastuiat.bench.cli import OTHERS
from fastuiat.cli import COMMANDS, function_of


@dataclass(frozen=True)
class Flag:
    """One flag by its names (a switch has two), with what stands behind it in the help."""

    names: tuple[str, ...]
    metavar: str

    @property
    def choices(self) -> list[str]:
        """The words that it may take, where the help lists them."""
        found = re.match(r"\[?{([^{}]*)}", self.metavar)
        return found[1].split(",") if found else []


def commands() -> list[tuple[str, ...]]:
    """All commands and their suites; one that is only known by its name is among them."""
    below = {
        "bench": [(), *((name,) for name in (*suites.names(), *OTHERS))],
        "data": [("prepare",)],
        "train": [("--method", name) for name in methods.names()],
    }
    return [(name, *more) for name in COMMANDS for more in below.get(name, [()])]


class Asked(BaseException):
    """What a command would have parsed."""

    def __init__(self, cls: Any, how: dict[str, Any]) -> None:
        self.cls, self.how = cls, how


def ask(cls: Any, **how: Any) -> None:
    raise Asked(cls, how)


@functools.cache
def help_of(command: tuple[str, ...]) -> str:
    """The help of a command, no line of it broken; of one without a parser what it prints."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        try:
            with mock.patch.object(tyro, "cli", ask):
                words = ["--help"] if command == ("recipes",) else list(command[1:])
                function_of(command[0])(words)
        except Asked as asked:
            tyro.cli(asked.cls, **asked.how | {"args": ["--help"]})
    return printed.getvalue()


@functools.cache
def flags(command: tuple[str, ...]) -> tuple[Flag, ...]:
    """Those that the help of a command lists or names; of what is no command none."""
    if command[0] not in COMMANDS:
        return ()
    text = help_of(command)
    listed = list(flags_listed(text))
    known = {name for flag in listed for name in flag.names}
    named = sorted(set(re.findall(r"(?<![\w-])--[a-z][\w-]*", text)) - known)
    own = tuple(listed) + tuple(Flag((name,), metavar_behind(name, text)) for name in named)
    if "flags of train" in text:
        own += flags(("train", "--method", "uiat"))
    return own


def flags_listed(text: str) -> Iterator[Flag]:
    """Of tyro's boxes: a line for each flag, its help two spaces or a line behind it."""
    for line in text.splitlines():
        found = re.match(r"[│ ] ((?:--[\w-]+, )*--[\w-]+)(?: (\S.*?))?(?:  |\s*│?$)", line)
        if found:
            yield Flag(tuple(found[1].split(", ")), found[2] or "")


def metavar_behind(name: str, text: str) -> str:
    found = re.search(re.escape(name) + r" ([A-Z]+)\b", text)
    return found[1] if found else ""
