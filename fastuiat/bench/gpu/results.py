"""What a stage left behind, read: records, tests, log; and the figures of it that matter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fastuiat.bench import suites
from fastuiat.bounds import MOST_TEXT, plain_bytes
from fastuiat.config import UserError
from fastuiat.files import json_in
from fastuiat.sealed import Damaged, is_beginning, unsealed

Records = list[dict[str, Any]]
LOG_TAIL = 1 << 20
MISSING = re.compile(r"No module named '([\w.]+)'")


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file, which may be being written, or none where there is none; UserError
    where one is damaged, or where it is no file that can be read."""
    try:
        lines = plain_bytes(path, MOST_TEXT).split(b"\n")
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        try:
            value = unsealed(line)
        except Damaged as error:
            raise UserError(f"{path}, line {number}: {error}") from error
        except ValueError:
            if line.strip() and not is_beginning(line):
                raise UserError(f"{path}, line {number} is damaged: not a line of JSON") from None
            continue
        if isinstance(value, dict):
            yield value


def tail(path: Path, size: int = LOG_TAIL) -> str:
    """The end of a log of any length."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - size))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def missing_package(log: str) -> str | None:
    """The package that was not there, where one of ours or a test said so."""
    found = [name.split(".")[0] for name in MISSING.findall(log)]
    return next((n for n in reversed(found) if n not in ("fastuiat", "tests")), None)


def tests_of(path: Path, folder: str) -> dict[str, Any] | None:
    """Counts and the names of the failed, without the folder; None where no test run was begun.

    A test whose end failed after it had passed has failed; a file that cannot be read is a test.
    """
    lines = list(json_lines(path))
    if not lines:
        return None
    outcomes: dict[str, str] = {}
    for line in lines:
        if "test" in line and outcomes.get(line["test"]) != "failed":
            outcomes[line["test"]] = line["outcome"]
    count = {name: list(outcomes.values()).count(name) for name in ("passed", "failed", "skipped")}
    collected = max([line["collected"] for line in lines if "collected" in line], default=0)
    unread = sum(bool(line.get("unread")) for line in lines)
    failed = [name.removeprefix(f"{folder}/") for name, o in outcomes.items() if o == "failed"]
    return {"total": collected + unread, **count, "failed_tests": failed}


def reasons(path: Path) -> list[str]:
    """Why tests failed, which a log says only at the end."""
    return [line["why"] for line in json_lines(path) if line.get("why")]


def said_of_tests(tests: dict[str, Any]) -> str:
    ended = sum(tests[name] for name in ("passed", "failed", "skipped"))
    said = [f"{tests['passed']} of {tests['total']} tests passed"]
    said += [f"{tests[n]} {n}" for n in ("failed", "skipped") if tests[n]]
    said += [f"{left} not ended"] if (left := tests["total"] - ended) > 0 else []
    return ", ".join(said)


def newest(records: Records) -> Records:
    """The last of each case, provider and configuration: a row comes again with its profile."""
    names = ("suite", "case", "row", "provider", "config")
    last = {tuple(str(r.get(name)) for name in names): r for r in records}
    return list(last.values())


def errors_of(records: Records) -> list[str]:
    """Why rows lack what they are there for: a time, a profile, a kernel's replays."""
    said = []
    for r in newest(records):
        replay = r.get("replay_error") if r["provider"] == "triton" else None
        said += [str(e) for e in (r.get("error"), r.get("profile_error"), replay) if e]
    return said


def figures(records: Records) -> str:
    """Of every suite that has records, and how many rows have none of their own."""
    said, records = [], newest(records)
    for suite in dict.fromkeys(r["suite"] for r in records):
        own = [r for r in records if r["suite"] == suite]
        try:
            said.append(suites.of(suite).figures(own))
        except (LookupError, TypeError, ValueError) as error:  # the records are kept all the same
            said.append(f"{len(own)} records, not understood ({type(error).__name__}: {error})")
    if without := sum(r["error"] is not None for r in records):
        said.append(f"{without} of {len(records)} rows failed or had no time")
    return "; ".join(filter(None, said))


def accuracies(document: Path) -> str:
    """The rows of a table of `fastuiat reproduce` that are measured."""
    try:
        found = json_in(document)
        said = [_row_of(row, found["columns"]) for row in found["rows"] if row["ours"]]
    except (OSError, ValueError, LookupError, TypeError):
        return ""
    return "; ".join(said)


def _row_of(row: dict[str, Any], columns: Sequence[str]) -> str:
    means = [f"{c} {row['ours'][c]['mean']:.1f}" for c in columns if c in row["ours"]]
    return f"{row['row']} {', '.join(means)}"
