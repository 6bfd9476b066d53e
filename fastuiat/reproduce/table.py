"""The table of `fastuiat reproduce`: ours as mean and spread, the paper's beside it."""

from __future__ import annotations

import statistics
from typing import Any

from fastuiat import paper

TIME = "s per epoch"
CAPTIONS = {
    "fashion-mnist-small": "Fashion-MNIST, all methods on the same images and epochs, HAT's helper "
    "on top",
    "cifar10-small": "CIFAR-10 in small: wrn-10-2, 12,800 images, 14 epochs",
    "cifar10-20": "CIFAR-10 in 20 epochs, resnet-18",
}
"""Of tables that are not the paper's."""


def mean_and_spread(values: list[float]) -> tuple[float, float | None]:
    """Mean, and the sample standard deviation where there are two values or more."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def summarise(columns: tuple[str, ...], results: list[dict[str, Any]]) -> None:
    """Set each entry's `ours`, by column, and `time` from its seeds."""

    def summary(values: list[float]) -> dict[str, Any] | None:
        if not values:
            return None
        mean, spread = mean_and_spread(values)
        return {"mean": mean, "stdev": spread, "runs": len(values)}

    for entry in results:
        measured = {c: summary([seed[c] for seed in entry["seeds"].values()]) for c in columns}
        entry["ours"] = {c: value for c, value in measured.items() if value}
        entry["time"] = summary([s for s in entry["seconds_per_epoch"].values() if s is not None])


def cell(value: dict[str, Any] | None, digits: int = 2) -> str:
    if value is None:
        return "–"
    spread = "" if value["stdev"] is None else f" ± {value['stdev']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{spread}"


def text_table(document: dict[str, Any]) -> str:
    """Markdown: the paper's values, if it has any, and ours in columns of their own, other scales
    marked †; training time last."""
    table, columns, results = (document[name] for name in ("table", "columns", "rows"))
    compared = any(entry["paper"] for entry in results)
    whose = ("paper", "ours") if compared else ("ours",)
    headings = ["row", *(f"{c}, {w}" if compared else c for c in columns for w in whose), TIME]
    lines = [headings]
    for entry in results:
        mark = " †" if entry["differs"] else ""
        printed = entry["paper"] or {}
        cells = [entry["row"] + mark]
        for column in columns:
            if compared:
                cells.append(f"{printed[column]:.2f}" if column in printed else "–")
            cells.append("failed" if entry["failed"] else cell(entry["ours"].get(column)))
        lines.append([*cells, cell(entry["time"])])
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    text = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    caption = paper.tables()[table].caption if table in paper.tables() else CAPTIONS.get(table)
    notes: dict[str, list[str]] = {}
    for entry in results:
        notes.setdefault("; ".join(entry["differs"]), []).append(entry["row"])
    notes.pop("", None)
    seeds = max((len(entry["seeds"]) for entry in results), default=0)
    ours = f"mean ± sample standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    points: dict[str, set[int]] = {c: {e["n"][c] for e in results} for c in columns}
    images = ", ".join(f"{c} {'/'.join(map(str, sorted(n)))}" for c, n in points.items())
    tail = [f"Ours: {ours}. Test images: {images}."]
    scale = "paper" if compared else "recipe"
    for note, rows in notes.items():
        which = "" if len(notes) == 1 else f" ({', '.join(rows)})"
        tail.append(f"† not at the {scale}'s scale{which}: {note}.")
    tail += [f"{entry['row']} failed: {entry['failed']}" for entry in results if entry["failed"]]
    return "\n".join([f"{table}: {caption or 'a sweep'} (%)", "", *text, "", *tail])
