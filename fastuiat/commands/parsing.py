"""tyro's parsing, with complaints of one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from itertools import groupby
from typing import Any

import tyro

from fastuiat.config import UserError


def parse(
    cls: Any, argv: list[str], *, prog: str, default: Any = None, description: str | None = None
) -> Any:
    """tyro's parse, its complaint folded into one line."""
    complaint = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(complaint):
            parsed = tyro.cli(
                cls,
                args=argv,
                prog=prog,
                description=description,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands),
                **options,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(first_complaint(complaint.getvalue()) + f" ({prog} --help)") from None
    refuse_none_of_several(parsed)
    return parsed


def refuse_none_of_several(parsed: Any) -> None:
    """UserError on a flag with no value behind it where by default there are several."""
    for field in dataclasses.fields(parsed):
        usual = field.default
        if isinstance(usual, tuple) and usual and getattr(parsed, field.name) == ():
            raise UserError(f"--{field.name.replace('_', '-')} needs at least one value")


def first_complaint(box: str) -> str:
    """What is wrong, out of tyro's framed report, without the help that it repeats."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    # A title, then parts between rules; the frame is left out where the stream is plain.
    _title, *rows = [row for line in plain.splitlines() if (row := line.strip("│| "))] or [""]
    parts = [list(g) for ruled, g in groupby(rows, lambda r: not r.strip("─-╰╯+")) if not ruled]
    words = " ".join(" ".join(parts[0]).split()) if parts else ""
    words = re.sub(r"(\S{50,}) (?=\S{50,})", r"\1", words)  # one word, which the frame had broken
    # "Error parsing --eps: …" names the flag; "Error parsing TrainConfig: …" names nothing.
    words = re.sub(r"^Error parsing (?:(--[\w-]+: )|[\w.]+: )", r"\1", words)
    return words.rstrip(".") or "the command could not be parsed"


def flags_in(argv: list[str]) -> set[str]:
    """The flags that were typed, without dashes at the front."""
    words = (word.split("=")[0] for word in argv if word.startswith("--"))
    return {word[2:].replace("-", "_") for word in words}


def early(argv: list[str], flag: str) -> str | None:
    """The value of a flag that must be known before the rest can be parsed; the last one wins."""
    found = None
    for i, word in enumerate(argv):
        if word == flag:
            if i + 1 == len(argv) or argv[i + 1].startswith("--"):
                raise UserError(f"{flag} needs a value")
            found = argv[i + 1]
        elif word.startswith(flag + "="):
            found = word.split("=", 1)[1]
    return found


def hyphenated(argv: list[str]) -> list[str]:
    """Flags as the help has them: the parser takes --extra_data for --extra-data too."""

    def spelled(word: str) -> str:
        flag, equals, value = word.partition("=")
        return flag.replace("_", "-") + equals + value if word.startswith("--") else word

    return [spelled(word) for word in argv]


def refuse_second(argv: list[str], flag: str) -> None:
    """UserError on a flag given twice, where somebody may expect that both count."""
    if sum(word.split("=")[0] == flag for word in argv) > 1:
        raise UserError(f"{flag} is given twice, and only the last would count: give it once")


def refuse_empty(argv: list[str]) -> None:
    """UserError on a word of nothing, as an unset variable of a shell leaves it."""
    for before, word in zip(["", *argv], argv, strict=False):
        flag, equals, value = word.partition("=")
        if word and (value or not equals or not flag.startswith("--")):
            continue
        owner = flag if word else before if before.startswith("--") else ""
        what = f"{owner} is given" if owner else "there is"
        raise UserError(f"{what} an empty word: is a variable of the shell not set?")
