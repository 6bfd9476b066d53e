"""A report in at most 25 lines, and the names that it goes by."""

from __future__ import annotations

import re
import textwrap
from typing import Any

MOST_LINES = 25
WIDTH = 170
RUNNING, PASSED, FAILED, NOT_RUN = "running", "passed", "failed", "not run"
CUT, KILLED, MEMORY, MISSING = "cut off", "killed", "out of memory", "missing"
"""Verdicts. Only what has passed is left out by the next call."""
Entry = dict[str, Any]


def source_name(state: Entry) -> str:
    """What a person calls the sources: their commit, or where git is missing their digest."""
    return str(state.get("commit") or state.get("sources"))[:10]


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def name_for(state: Entry) -> str:
    """Of the device and the sources, for a file or a folder."""
    return f"{slug(state['device'])}-{source_name(state)}"


def versions_of(state: Entry) -> str:
    names = ("torch", "triton", "cuda", "python", "fastuiat")
    versions = state.get("versions") or {}
    return ", ".join(f"{name} {versions[name]}" for name in names if versions.get(name))


def said_of(entry: Entry) -> str:
    """The figures of a stage and whatever else is to be said of it."""
    return "; ".join(str(entry[key]) for key in ("note", "figures") if entry.get(key))


def clipped(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 2] + " …"


def lines_of(state: Entry) -> list[str]:
    """Head, a line for each stage, the failed tests by name, and what to do with it."""
    dirty = ", with changes" if state.get("dirty") else ""
    gpu = state.get("gpu") or {}
    driver = f" (driver {gpu['driver']})" if gpu.get("driver") else ""
    stages: dict[str, Entry] = state["stages"]
    wide = max(map(len, [*stages, ""]))
    head = [
        f"{state['device']}{driver}: {versions_of(state)}, at {source_name(state)}{dirty}",
        f"{state['time']}; calls: {len(state['calls'])}, "
        f"{sum(call['seconds'] for call in state['calls']):.0f} s",
    ]
    rows = []
    for name, entry in stages.items():
        seconds = f"{entry['seconds']:.0f} s" if entry.get("seconds") is not None else ""
        rows.append(f"  {name:<{wide}}  {entry['verdict']:<13}  {seconds:>6}  {said_of(entry)}")
    foot = []
    if runs := state.get("runs_left_out"):
        foot.append(f"  too large to be kept here: of train, {', '.join(runs)}")
    if (caches := state.get("caches")) and caches["left_out"]:
        parts = caches["packed"] + caches["left_out"]
        foot.append(
            f"  too large to be kept here: {caches['left_out']} of {parts} parts of the caches"
        )
    foot.append("  into benchmarks/results: python benchmarks/render.py --add FOLDER")
    room = MOST_LINES - len(head) - len(rows) - len(foot)
    names = failed_tests(stages, room)
    return [clipped(line.rstrip()) for line in [*head, *rows, *names, *foot]]


def failed_tests(stages: dict[str, Entry], room: int) -> list[str]:
    """Names, several in a line, as many as there is room for."""
    said: list[str] = []
    for stage, entry in stages.items():
        tests = (entry.get("tests") or {}).get("failed_tests") or []
        said += [f"{stage}: {test}" for test in tests[:1]] + tests[1:]
    for shown in range(len(said), -1, -1):
        more = len(said) - shown
        rest = [f"and {more} more (logs.tar.gz)"] if more else []
        # A name has no blanks that matter: only the commas between them break a line.
        words = [name.replace(" ", "\0") for name in [*said[:shown], *rest]]
        lines = textwrap.wrap(
            ", ".join(words),
            WIDTH - 2,
            initial_indent="  failed: ",
            subsequent_indent="    ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        if len(lines) <= room:
            return [line.replace("\0", " ") for line in lines]
    return []
