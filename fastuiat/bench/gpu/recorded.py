"""Reports that are kept, `gpu-*.json` beside the benches' records: a table of them; adding one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fastuiat import sealed
from fastuiat.bench import suites
from fastuiat.bench.gpu.report import read_state
from fastuiat.bench.gpu.results import json_lines, said_of_tests
from fastuiat.bench.gpu.summary import NOT_RUN, PASSED, name_for, source_name
from fastuiat.bench.reading import checked
from fastuiat.config import UserError
from fastuiat.files import write_json

HEADS = ("device", "versions", "commit", "date", "passed", "not passed", "not run")
MOST_NAMES = 20


def table_of(results: Path) -> str:
    """Markdown: a row for each report, then what its maker noted and the failed tests by name."""
    reports = [read_state(path, "take it away") for path in sorted(results.glob("gpu-*.json"))]
    reports.sort(key=lambda state: state["time"])
    if not reports:
        return "None yet.\n"
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    lines += ["| " + " | ".join(row_of(state)) + " |" for state in reports]
    remarks = [f"- {line}" for state in reports for line in remarks_on(state)]
    return "\n".join([*lines, "", *remarks, *([""] if remarks else [])])


def row_of(state: dict[str, Any]) -> list[str]:
    by: dict[str, list[str]] = {PASSED: [], NOT_RUN: [], "": []}
    for name, entry in state["stages"].items():
        verdict = entry["verdict"]
        by[verdict if verdict in by else ""].append(name + remark(entry))
    versions = state["versions"]
    said = [f"{n} {versions[n]}" for n in ("torch", "triton", "python") if versions.get(n)]
    commit = source_name(state) + (" with changes" if state.get("dirty") else "")
    groups = [", ".join(by[key]) or "–" for key in (PASSED, "", NOT_RUN)]
    return [state["device"], ", ".join(said), commit, state["time"][:10], *groups]


def remark(entry: dict[str, Any]) -> str:
    """How many tests, and the verdict where it is neither a pass nor a plain failure."""
    verdict, tests = entry["verdict"], entry.get("tests")
    if verdict == NOT_RUN:
        return ""
    said = [] if verdict in (PASSED, "failed") else [verdict]
    if tests:
        said.append(said_of_tests(tests))
    elif verdict != PASSED and entry.get("note"):
        said.append(entry["note"])
    return f" ({', '.join(said)})" if said else ""


def remarks_on(state: dict[str, Any]) -> list[str]:
    """Of the whole, and of each stage with failed tests."""
    what = f"{source_name(state)} on {state['device']}"
    lines = [f"{what}: {state['note']}."] if state.get("note") else []
    for name, entry in state["stages"].items():
        tests = entry.get("tests") or {}
        if not tests.get("failed"):
            continue
        known = tests.get("failed_tests") or []
        said = ", ".join(f"`{test}`" for test in known[:MOST_NAMES]) or "names not on record"
        more = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
        note = f"; {entry['note']}" if entry.get("note") else ""
        lines.append(f"{what}, failed in {name}: {said}{more}{note}.")
    return lines


def add(report: Path, results: Path) -> list[Path]:
    """Take a report's state, and its records each into the file of its suite; the files.

    What is there already stays once. UserError where the folder holds no report.
    """
    state = read_state(report / "state.json", "name a folder that bench gpu has filled")
    files: dict[Path, list[dict[str, Any]]] = {}
    for number, line in enumerate(json_lines(report / "records.jsonl"), 1):
        record = checked(line, f"{report / 'records.jsonl'}:{number}")
        if record["suite"] not in suites.names():
            raise UserError(f"{report / 'records.jsonl'}:{number} is of no suite")
        files.setdefault(results / f"{record['suite']}.jsonl", []).append(record)
    for path, records in files.items():
        known = list(map(json.dumps, json_lines(path)))
        new = [record for record in records if json.dumps(record) not in set(known)]
        with open(path, "ab") as file:
            file.writelines(map(sealed.line, new))
    kept = results / f"gpu-{name_for(state)}.json"
    write_json(kept, state)
    return [kept, *files]
