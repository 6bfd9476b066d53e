"""What a comparison shows: grids of text for the terminal and the page, and the CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastuiat.bench import floors, suites, table
from fastuiat.bench.comparison import MOST_NOTES, ComparedRow, Comparison, counted, listed

Words = list[str]
PAPER_RATIOS = "the paper's are for the same net, or for its first where it does not have that one"
Grid = tuple[Words, list[Words]]
"""Headings and rows."""


def cell(row: ComparedRow, device: str) -> str:
    """The measured time, or why there is none."""
    record = row.cells.get(device)
    if record is None:
        return table.NONE
    return "failed" if record["error"] else row.suite_of_it.amount(row.seconds(device))


def names(row: ComparedRow) -> Words:
    """What a line is about."""
    return [f"{row.case} ({row.differs})" if row.differs else row.case, row.provider]


def times(comparison: Comparison, suite: str, short: Mapping[str, str]) -> Grid:
    """What was measured, its ratios between devices, and the paper's value.

    `short` are the devices' names in headings.
    """
    amount = suites.of(suite).amount
    base = comparison.reference
    others = [device for device in comparison.devices if device != base]
    rows = comparison.of(suite)
    with_paper = comparison.with_paper and any(row.paper_seconds() for row in rows)
    headings = ["case", "provider", *(short[device] for device in comparison.devices)]
    headings += [f"{short[device]} ÷ {short[base]}" for device in others]
    if with_paper:
        headings += ["paper's A100", *(f"{short[d]} ÷ paper" for d in comparison.devices)]
    lines = []
    for row in rows:
        line = [*names(row), *(cell(row, device) for device in comparison.devices)]
        line += [table.number(row.ratio(device, base), ".3g") for device in others]
        if with_paper:
            paper = row.paper_seconds()
            line.append(amount(paper))
            for device in comparison.devices:
                own = row.seconds(device)
                line.append(table.number(own / paper if own and paper else None, ".3g"))
        lines.append(line)
    return headings, lines


def inner(comparison: Comparison, suite: str, short: Mapping[str, str]) -> Grid | None:
    """Ratios between the methods of a table, each made on one device; the paper's apart."""
    rows = [row for row in comparison.of(suite) if row.ratio_names() and not row.is_phase]
    kinds = list(dict.fromkeys(name for row in rows for name in row.ratio_names()))
    if not rows:
        return None
    headings = ["case", "provider"]
    for kind in kinds:
        headings += [f"÷ {kind}: {short[device]}" for device in comparison.devices]
        headings += [f"÷ {kind}: paper's A100"] * comparison.with_paper
    lines = []
    for row in rows:
        line = names(row)
        for kind in kinds:
            ours = [row.inner_ratio(device, kind) for device in comparison.devices]
            theirs = [row.paper_ratio(kind)] * comparison.with_paper
            line += [table.number(value, ".2f") for value in (*ours, *theirs)]
        lines.append(line)
    return headings, lines


def bounds(
    comparison: Comparison,
    suite: str,
    short: Mapping[str, str],
    cards: Mapping[str, floors.Rates],
) -> Grid | None:
    """Bounds alone: no measured time stands here but as a multiple of its own device's bound."""
    rows = [r for r in comparison.of(suite) if not r.is_phase and r.work(r.first)]
    if not rows or not cards:
        return None
    amount = suites.of(suite).amount
    headings = ["case", "provider"]
    for device in comparison.devices:
        headings += [f"{short[device]}: bound", "measured ÷ bound", "share of peak"]
    headings += [f"{name}: bound" for name in cards]
    lines = []
    for row in rows:
        line = names(row)
        for device in comparison.devices:
            own, bound = row.seconds(device), row.own_bound(device)
            line.append(amount(bound))
            line.append(table.number(own / bound if own and bound else None, ".3g"))
            line.append(table.percent(row.share(device)))
        line += [amount(row.bound(rates)) for rates in cards.values()]
        lines.append(line)
    return headings, lines


def notes(comparison: Comparison, suite: str) -> Words:
    """Errors and extrapolations of a suite."""
    said = []
    rows = comparison.of(suite)
    found = [(row, d, r) for row in rows for d, r in row.cells.items()]
    failed = [one for one in found if one[2]["error"]]
    for row, device, record in failed[:MOST_NOTES]:
        said.append(f"{row.case} {row.provider} on {device}: {record['error']}")
    if len(failed) > MOST_NOTES:
        said.append(f"{len(failed) - MOST_NOTES:,} more failed: --csv says why")
    guessed = [r for _, _, r in found if r["extrapolated"]]
    if guessed:
        which = "all of these epochs are" if len(guessed) == len(found) else "some epochs are"
        said.append(f"{which} extrapolated from the median of the steps that were measured")
    return said


def reference_note(comparison: Comparison, short: Mapping[str, str]) -> Words:
    if len(comparison.devices) < 2:
        return []
    return [
        f"÷ {short[comparison.reference]}: a device's time over that one's, each a median of its "
        "own run; 2 is twice as slow"
    ]


def csv_text(comparison: Comparison, cards: Mapping[str, floors.Rates]) -> str:
    """A line for each measurement; times in seconds, bounds in columns of their own."""
    buffer = io.StringIO()
    kinds = list(dict.fromkeys(kind for row in comparison.rows for kind in row.ratio_names()))
    lines = [
        csv_line(comparison, cards, row, device, kinds)
        for row in comparison.rows
        for device in row.cells
    ]
    writer = csv.DictWriter(buffer, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return buffer.getvalue()


def csv_line(
    comparison: Comparison,
    cards: Mapping[str, floors.Rates],
    row: ComparedRow,
    device: str,
    kinds: Sequence[str],
) -> dict[str, Any]:
    """`kinds` are the names of all ratios inside a table."""
    r = row.cells[device]
    return {
        "suite": row.suite,
        "case": row.case,
        "provider": row.provider,
        "device": device,
        "seconds": row.seconds(device),
        "of": row.suite_of_it.unit,
        **{key: r.get(key) for key in ("median_s", "p20_s", "p80_s", "n", "extrapolated", "error")},
        "reference": comparison.reference,
        "ratio_to_reference": row.ratio(device, comparison.reference),
        **{f"ratio_to_{kind}": row.inner_ratio(device, kind) for kind in kinds},
        **(
            {
                "paper_s": row.paper_seconds(),
                **{f"paper_ratio_to_{kind}": row.paper_ratio(kind) for kind in kinds},
            }
            if comparison.with_paper
            else {}
        ),
        "share_of_peak": row.share(device),
        **(
            {
                "bound_own_device_s": row.own_bound(device),
                **{f"bound_{n.replace(' ', '_')}_s": row.bound(c) for n, c in cards.items()},
            }
            if cards
            else {}
        ),
        "config": json.dumps(row.config, sort_keys=True),
        "config_hash": row.config_hash,
        **{f"{k}_version": v for k, v in software(r).items()},
        "commit": r.get("commit"),
        "dirty": r.get("dirty"),
        "time": r["time"],
    }


def software(record: dict[str, Any]) -> dict[str, Any]:
    versions = record.get("versions") or {}
    return {name: versions.get(name) for name in ("fastuiat", "torch", "triton", "cuda")}


def machines(comparison: Comparison) -> Grid:
    """What each device is, what ran on it, and when."""
    short = comparison.letters()
    headings = ["", "device", "n", "date", "driver", "torch", "triton", "CUDA", "fastuiat", "CPU"]
    rows = []
    for device in comparison.devices:
        records = comparison.records(device)
        cpu = records[0].get("cpu") or {}
        gpu = records[0].get("gpu") or {}
        code = {str(r.get("commit") or "")[:8] + "*" * bool(r.get("dirty")) for r in records}
        own = [
            joined(software(r)[name] for r in records)
            for name in ("torch", "triton", "cuda", "fastuiat")
        ]
        own[-1] = f"{own[-1]} {joined(code)}".strip()
        counts = [r["n"] for r in records if r["n"]] or [0]
        dates = sorted(r["time"][:10] for r in records)
        rows.append(
            [
                short[device] if short[device] != device else "",
                device,
                table.span(str(min(counts)), str(max(counts))),
                table.span(dates[0], dates[-1]),
                gpu.get("driver") or table.NONE,
                *own,
                counted(cpu.get("name") or table.NONE, cpu.get("cpus"), "CPU"),
            ]
        )
    return headings, rows


def joined(values: Any) -> str:
    return listed(sorted({str(v) for v in values if v}))
