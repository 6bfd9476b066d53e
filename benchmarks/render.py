"""Fill the pages with what benchmarks/results/ holds.

    python benchmarks/render.py           # write the blocks <!-- measured: NAME --> … <!-- end -->
    python benchmarks/render.py --check   # change nothing; exit 1 where one differs
    python benchmarks/render.py --add DIR # first take in a report of `fastuiat bench gpu`

A number in a block comes from a record and from nowhere else. The newest record of each case,
provider, configuration and device counts; ratios are those that the bench made round by round.
The accuracies of `fastuiat reproduce fashion-mnist-small` are its document, and differences between
two of its rows are made seed by seed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fastuiat.bench import predicted_table, suites, table
from fastuiat.bench.columns import Record
from fastuiat.bench.compare_tables import software
from fastuiat.bench.comparison import arrange, device_of, tell_apart
from fastuiat.bench.gpu import recorded
from fastuiat.bench.reading import read_records
from fastuiat.config import UserError
from fastuiat.files import json_in
from fastuiat.reproduce.recorded import baseline_of, curves_of, gain, table_of
from fastuiat.reproduce.table import cell

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("benchmarks", "benchmarks/*", "docs", "kernels")
PAGES = (
    "README.md",
    *(p.relative_to(ROOT).as_posix() for f in FOLDERS for p in sorted(ROOT.glob(f"{f}/*.md"))),
)
"""Every page that may hold a block."""
BLOCK = re.compile(r"(<!-- measured: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
NOT_YET = "Not measured yet."

EVIDENCE = "fashion-mnist-small"


def evidence(results: Path) -> str:
    """Accuracies of every row, its gain over its baseline, and the time of an epoch."""
    file = results / f"{EVIDENCE}.json"
    if not file.exists():
        return f"{NOT_YET}\n"
    document = json_in(file)
    rows = {r["row"]: r for r in document["rows"]}
    seeds = max(len(entry["seeds"]) for entry in rows.values())
    heads = ["eps", "method", "natural", "PGD-20", "AutoAttack"]
    heads += ["PGD-20 against", "AutoAttack against", "s/epoch"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, entry in rows.items():
        eps, method = name.split("/")
        values = [cell(entry["ours"].get(c), 1) for c in document["columns"]]
        other = baseline_of(name)
        gains = [""] * 2
        if other != name and other in rows:
            its = other.split("/")[1]
            both = entry["seeds"], rows[other]["seeds"]
            gains = [f"{its} {gain(*both, c)}" for c in ("pgd", "autoattack")]
        fewer = len(entry["seeds"]) < seeds
        label = f"{method} (of {len(entry['seeds'])} seeds)" if fewer else method
        radius = f"{eps.removeprefix('eps-')}/255"
        lines.append(f"| {' | '.join([radius, label, *values, *gains, cell(entry['time'], 1)])} |")
    images = ", ".join(f"{c} {count}" for c, count in rows[next(iter(rows))]["n"].items())
    jobs = ", ".join(sorted({str(one["jobs"]) for one in document["made"]}))
    said = (
        f"Accuracies in percent, mean ± standard deviation over {seeds} seeds (first test images: "
        f"{images}); a difference is bold where it is above twice its spread. The time is of "
        f"training alone, {jobs} runs at a time on all cores, and of HAT without its helper."
    )
    origins = [provenance(one["device"], [one]) for one in document["made"]]
    return "\n".join([*lines, "", f"{said} n counts trainings.", *origins, ""])


def render(name: str, results: Path) -> str:
    """The Markdown of a block: a table for each device, and what it was measured on."""
    if name in BLOCKS:
        return BLOCKS[name](results)
    file = results / f"{name}.jsonl"
    if not file.exists():
        return f"{NOT_YET}\n"
    columns: dict[str, list[Record]] = {}
    for record in read_records(file):
        columns.setdefault(device_of(record), []).append(record)
    rows = arrange(columns)
    tell_apart(rows)
    found: dict[str, list[Record]] = {device: [] for device in columns}
    for row in rows:
        for device, record in row.cells.items():
            if not row.is_phase:
                found[device].append(record | {"differs": row.differs})
    return "\n".join(one_device(name, device, own) for device, own in found.items())


def validation(results: Path, name: str = "validation") -> str:
    """How each reading did on the validation part."""
    file = results / f"{EVIDENCE}-{name}.json"
    if not file.exists():
        return f"{NOT_YET}\n"
    document = json_in(file)
    heads = ["method", "BatchNorm for p", "λ", "β", "T or T'", "peak lr", "epochs"]
    heads += ["natural", "PGD-10"]
    lines = ["| " + " | ".join([*heads, "PGD-10 by epoch"]) + " |", "|" + "---|" * (len(heads) + 1)]
    for run in document["runs"]:
        named = [run["method"], run["inverse_bn"], run["lam"], run["beta"]]
        named += [run.get("T"), run["max_lr"]]
        cells = [table.NONE if v is None else str(v) for v in [*named, run["epochs"]]]
        shares = [run["val_natural"][-1], run["val_robust"][-1]]
        cells += [f"{100 * share:.1f}" for share in shares]
        cells.append(" ".join(f"{100 * share:.0f}" for share in run["val_robust"]))
        lines.append("| " + " | ".join(cells) + " |")
    record = document | {"n": 1}
    return "\n".join([*lines, "", provenance(document["device"], [record]), ""])


def scaling_predicted(results: Path) -> str:
    """Steps by cards that are not here, each of them predicted from a recorded one."""
    files = [results / name for name in predicted_table.FILES]
    records = [record for file in files if file.exists() for record in read_records(file)]
    return predicted_table.page(records) or f"{NOT_YET}\n"


def campaign(results: Path) -> str:
    """What `python -m tests.campaign` tried, summed by commit and kind of trial, newest first."""
    file = results / "campaign.jsonl"
    if not file.exists():
        return f"{NOT_YET}\n"
    sums: dict[tuple[str, str], dict[str, Counter[str]]] = {}
    ran: dict[str, list[dict[str, Any]]] = {}
    for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
        commit = line["commit"][:10] + (" and changes" if line["dirty"] else "")
        ran.setdefault(commit, []).append(line)
        for part, counts in line["parts"].items():
            own = sums.setdefault((commit, part), defaultdict(Counter))
            own["all"].update(tried=counts["tried"], held=counts["held"])
            for name in ("faults", "counts"):
                own[name].update(counts[name])
    heads = ["commit", "kind", "tried", "held", "of them", "faults"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for commit in sorted(ran, key=lambda name: ran[name][-1]["time"], reverse=True):
        for part in sorted(part for other, part in sums if other == commit):
            own = sums[commit, part]
            faults = ", ".join(f"{n} {fault}" for fault, n in own["faults"].items()) or "none"
            shown = (n for n in ("kills", "refused", "accepted", "messages") if own["counts"][n])
            of_them = ", ".join(f"{own['counts'][n]:,} {n}" for n in shown) or table.NONE
            tried = [f"{own['all'][name]:,}" for name in ("tried", "held")]
            lines.append("| " + " | ".join([commit, part, *tried, of_them, faults]) + " |")
    said = []
    for commit, several in ran.items():
        seeds = ", ".join(str(one["seed"]) for one in several)
        minutes = sum(one["minutes"] for one in several)
        said.append(f"{commit}: seeds {seeds}; {minutes:g} minutes; {several[-1]['time'][:10]}.")
    return "\n".join([*lines, "", *said, ""])


BLOCKS: dict[str, Callable[[Path], str]] = {
    EVIDENCE: evidence,
    f"{EVIDENCE}-validation": validation,
    f"{EVIDENCE}-epochs": lambda results: validation(results, "epochs"),
    "gpu": recorded.table_of,
    "campaign": campaign,
    "scaling-predicted": scaling_predicted,
    "cifar10-small": lambda results: table_of(results / "cifar10-small.jsonl", "cifar10-small"),
    "cifar10-small-curves": lambda results: curves_of(
        results / "cifar10-small.jsonl", "cifar10-small"
    ),
}
"""Those that are made of no bench's records."""


def one_device(name: str, device: str, records: Sequence[Record]) -> str:
    suite = suites.of(name)
    cells = {head: [value(r) for r in records] for head, value in suite.columns().items()}
    kept = {head: column for head, column in cells.items() if set(column) != {table.NONE}}
    lines = ["| " + " | ".join(kept) + " |", "|" + "---|" * len(kept)]
    lines += ["| " + " | ".join(line) + " |" for line in zip(*kept.values(), strict=True)]
    said = ["~: an epoch extrapolated from the median of n samples."]
    said = [*said * any(r["extrapolated"] for r in records), *suite.remarks(records)]
    said += [f"{r['case']} {r['provider']}: {r['error']}." for r in records if r["error"]]
    return "\n".join([*lines, "", *said, provenance(device, records), ""])


def provenance(device: str, records: Sequence[Record]) -> str:
    """Hardware, versions, n and date: what every number is quoted with."""

    def each(values: Any) -> str:
        return ", ".join(sorted({str(v) for v in values if v is not None}))

    first = records[0]
    gpu, cpu = first.get("gpu") or {}, first.get("cpu") or {}
    names = ("torch", "triton", "cuda", "fastuiat")
    versions = ", ".join(f"{n} {v}" for n in names if (v := each(software(r)[n] for r in records)))
    commits = each(
        f"{r['commit'][:10]}{' with changes' if r.get('dirty') else ''}"
        for r in records
        if r.get("commit")
    )
    counts = [r["n"] for r in records if r["n"]] or [0]
    dates = sorted(r["time"][:10] for r in records)
    hardware = [f"driver {gpu['driver']}"] if gpu.get("driver") else []
    hardware += [", ".join(cpu.get("features") or []) or "no vector features named"] * (not gpu)
    said = [
        f"{device} ({'; '.join(hardware)})",
        versions + (f" at {commits}" if commits else ""),
        f"n = {table.span(str(min(counts)), str(max(counts)))}",
        table.span(dates[0], dates[-1]),
    ]
    return f"Measured on {'; '.join(said)}."


def filled(text: str, results: Path, where: str) -> tuple[str, list[str]]:
    """The page with its blocks filled, and the names of those that were not so."""
    differing: list[str] = []
    if text.count("<!-- measured:") != len(BLOCK.findall(text)):
        raise UserError(f"{where}: a block lacks its <!-- end -->, or its name is no name")

    def fill(match: re.Match[str]) -> str:
        opening, name, old, closing = match.groups()
        if name not in suites.names() and name not in BLOCKS:
            known = ", ".join([*suites.names(), *BLOCKS])
            raise UserError(f"{where}: unknown block '{name}': choose from {known}")
        new = render(name, results)
        if new != old:
            differing.append(name)
        return f"{opening}{new}{closing}"

    return BLOCK.sub(fill, text), differing


def main(argv: Sequence[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description="Fill the pages from the records.")
    parser.add_argument("--check", action="store_true", help="exit 1 on a difference")
    parser.add_argument("--add", type=Path, metavar="DIR", help="take a GPU's report in first")
    options = parser.parse_args(argv)
    check, results, status = options.check, root / "benchmarks" / "results", 0
    for page in PAGES:
        path = root / page
        try:
            if options.add and page == PAGES[0]:
                recorded.add(options.add, results)
            text = path.read_text(encoding="utf-8")
            new, differing = filled(text, results, page)
        except UserError as error:
            print(f"render: {error}", file=sys.stderr)
            return 2
        if differing and check:
            print(
                f"render: {page} does not say what the records hold: {', '.join(differing)} "
                "(python benchmarks/render.py writes them)",
                file=sys.stderr,
            )
            status = 1
        elif new != text:
            path.write_text(new, encoding="utf-8")
            print(f"{page}: {', '.join(differing)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
