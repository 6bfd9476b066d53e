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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastuiat.bench import table
from fastuiat.bench.compare_tables import amount, percent, software, span
from fastuiat.bench.comparison import (
    PAPER_TABLES,
    Record,
    Row,
    arrange,
    device_of,
    paper_net,
    tell_apart,
)
from fastuiat.bench.gpu import recorded
from fastuiat.bench.record import read_records
from fastuiat.config import UserError
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
Columns = dict[str, Callable[[Row, Record], str]]
"""What stands in each column, of a row and its record on one device."""


def case(row: Row, r: Record) -> str:
    return f"{row.case} ({row.differs})" if row.differs else row.case


def provider(row: Row, r: Record) -> str:
    return row.provider


def arithmetic(row: Row, r: Record) -> str:
    return r["config"].get("precision", table.NONE)


def median(row: Row, r: Record) -> str:
    return "failed" if r["error"] else table.seconds(r["median_s"])


def quantiles(row: Row, r: Record) -> str:
    return span(table.seconds(r["p20_s"]), table.seconds(r["p80_s"])) if r["n"] else table.NONE


def count(row: Row, r: Record) -> str:
    return str(r["n"])


def of(name: str, form: str, scale: float = 1.0) -> Callable[[Row, Record], str]:
    """A number of the record, in a form."""

    def text(row: Row, r: Record) -> str:
        value = r.get(name)
        return table.number(value and value / scale, form)

    return text


def seconds_of(name: str) -> Callable[[Row, Record], str]:
    return lambda row, r: table.seconds(r.get(name))


def epoch(row: Row, r: Record) -> str:
    if r["error"]:
        return "failed"
    return ("~" if r["extrapolated"] else "") + amount(row.suite, r["epoch_s"])


def epoch_quantiles(row: Row, r: Record) -> str:
    if not r["n"]:
        return table.NONE
    low, high = (amount(row.suite, r[p] * r["steps_per_epoch"]) for p in ("p20_s", "p80_s"))
    return span(low, high)


def inner(name: str) -> Callable[[Row, Record], str]:
    """A ratio between two methods on this device."""
    return lambda row, r: table.number((r.get("ratios", {}).get(name) or {}).get("median"), ".2f")


def by_paper(name: str) -> Callable[[Row, Record], str]:
    """The paper's own ratio, from its printed table."""
    return lambda row, r: table.number(row.paper_ratio(name), ".2f")


def method(row: Row, r: Record) -> str:
    return f"{row.label} ({row.differs})" if row.differs else row.label


def net(row: Row, r: Record) -> str:
    return row.group


def peak(row: Row, r: Record) -> str:
    return percent(r.get("peak_share"))


def copy_share(row: Row, r: Record) -> str:
    return percent(r.get("copy_share"))


def timed_by(row: Row, r: Record) -> str:
    """Older records, which do not say it, were all timed by calls."""
    return r.get("timed", "calls")


def ratios(names: Mapping[str, str]) -> Columns:
    columns: Columns = {}
    for name, heading in names.items():
        columns[f"÷ {heading}"] = inner(name)
        columns[f"paper: ÷ {heading}"] = by_paper(name)
    return columns


SUITES: dict[str, Columns] = {
    "step": {
        "case": case,
        "provider": provider,
        "arithmetic": arithmetic,
        "median": median,
        "20–80%": quantiles,
        "n": count,
        "÷ fastuiat": of("ratio_median", ".2f"),
        "passes": of("passes", ".1f"),
        "TFLOP/s": of("tflops_per_s", ".3g"),
        "of peak": peak,
        "bound, computed": seconds_of("bound_s"),
    },
    "kernels": {
        "operation": case,
        "provider": provider,
        "median": median,
        "20–80%": quantiles,
        "n": count,
        "÷ eager": of("ratio_median", ".2f"),
        "GB/s": of("bytes_per_s", ".3g", 1e9),
        "of a copy's": copy_share,
        "timed by": timed_by,
        "a call from Python": seconds_of("call_s"),
    },
    "loader": {
        "case": case,
        "loader": provider,
        "images/s": of("images_per_s", ",.0f"),
        "epoch": median,
        "20–80%": quantiles,
        "n": count,
        "first epoch": seconds_of("first_epoch_s"),
        "prepare": seconds_of("prepare_s"),
    },
    "autoattack": {
        "net, points, batch": case,
        "by": provider,
        "evaluation": median,
        "20–80%": quantiles,
        "n": count,
        "times as fast": of("speedup", ".2f"),
        "first evaluation": seconds_of("first_s"),
        "hold out": of("robust", ",.0f"),
        "same verdicts": of("same_verdicts", ",.0f"),
    },
    "table2": {
        "net": net,
        "method": method,
        "min/epoch": epoch,
        "20–80%": epoch_quantiles,
        "n": count,
        **ratios({"natural": "natural", "uiat": "UIAT"}),
        "passes": of("passes", ".1f"),
    },
    "table5": {
        "net": net,
        "method": method,
        "s/epoch": epoch,
        "20–80%": epoch_quantiles,
        "n": count,
        **ratios({"rs-fgsm": "RS-FGSM", "plain": "without UIAT"}),
        "passes": of("passes", ".1f"),
    },
}


EVIDENCE = "fashion-mnist-small"


def evidence(results: Path) -> str:
    """Accuracies of every row, its gain over its baseline, and the time of an epoch."""
    file = results / f"{EVIDENCE}.json"
    if not file.exists():
        return f"{NOT_YET}\n"
    document = json.loads(file.read_text(encoding="utf-8"))
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
    parts = []
    for device in columns:
        own = [row for row in rows if device in row.cells and not row.is_phase]
        parts.append(one_device(name, device, [(row, row.cells[device]) for row in own]))
    return "\n".join(parts)


def validation(results: Path, name: str = "validation") -> str:
    """How each reading did on the validation part."""
    file = results / f"{EVIDENCE}-{name}.json"
    if not file.exists():
        return f"{NOT_YET}\n"
    document = json.loads(file.read_text(encoding="utf-8"))
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


BLOCKS: dict[str, Callable[[Path], str]] = {
    EVIDENCE: evidence,
    f"{EVIDENCE}-validation": validation,
    f"{EVIDENCE}-epochs": lambda results: validation(results, "epochs"),
    "gpu": recorded.table_of,
    "cifar10-small": lambda results: table_of(results / "cifar10-small.jsonl", "cifar10-small"),
    "cifar10-small-curves": lambda results: curves_of(
        results / "cifar10-small.jsonl", "cifar10-small"
    ),
}
"""Those that are made of no bench's records."""


def one_device(name: str, device: str, found: Sequence[tuple[Row, Record]]) -> str:
    cells = {head: [value(row, r) for row, r in found] for head, value in SUITES[name].items()}
    kept = {head: column for head, column in cells.items() if set(column) != {table.NONE}}
    lines = ["| " + " | ".join(kept) + " |", "|" + "---|" * len(kept)]
    lines += ["| " + " | ".join(line) + " |" for line in zip(*kept.values(), strict=True)]
    records = [r for _, r in found]
    return "\n".join([*lines, "", *remarks(name, found), provenance(device, records), ""])


def remarks(name: str, found: Sequence[tuple[Row, Record]]) -> list[str]:
    said = []
    if any(r["extrapolated"] for _, r in found):
        said.append("~: an epoch extrapolated from the median of n samples.")
    if name in PAPER_TABLES:
        beside = {arch: paper_net(name, arch) for row, _ in found if (arch := row.config["arch"])}
        others = [f"{net} has those of {own}" for net, own in beside.items() if own != net]
        said += [f"The paper's ratios: {other}." for other in others]
    errors = [f"{row.case} {row.provider}: {r['error']}" for row, r in found if r["error"]]
    return [*said, *(f"{error}." for error in errors)]


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
        f"n = {span(str(min(counts)), str(max(counts)))}",
        span(dates[0], dates[-1]),
    ]
    return f"Measured on {'; '.join(said)}."


def filled(text: str, results: Path, where: str) -> tuple[str, list[str]]:
    """The page with its blocks filled, and the names of those that were not so."""
    differing: list[str] = []
    if text.count("<!-- measured:") != len(BLOCK.findall(text)):
        raise UserError(f"{where}: a block lacks its <!-- end -->, or its name is no name")

    def fill(match: re.Match[str]) -> str:
        opening, name, old, closing = match.groups()
        if name not in SUITES and name not in BLOCKS:
            known = ", ".join([*SUITES, *BLOCKS])
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
