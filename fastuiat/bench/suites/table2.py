"""`fastuiat bench table2`: minutes of an epoch by method and net, beside the paper's Table 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fastuiat.bench.epoch_table import EpochTable, TableRow
from fastuiat.bench.suite import Record, Size, register
from fastuiat.bench.table_suite import TableOptions, TableSuite, is_phase


class Table2Options(TableOptions):
    """Minutes of an epoch by method and net, beside the paper's Table 2."""


@register("table2")
class Table2(TableSuite):
    Options = Table2Options
    rank = 4
    help = "minutes of an epoch by method and net, beside the paper's"
    title = "Training time by method and net"
    what = "minutes of an epoch of 50,000 images"
    table = EpochTable(
        name="table2",
        title="Table 2, min/epoch",
        rows=(
            TableRow("natural", "natural"),
            TableRow("trades-published", "trades", "naive"),
            TableRow("trades", "trades"),
            TableRow("hat", "hat"),
            TableRow("iat", "iat"),
            TableRow("uiat", "uiat"),
            TableRow("uiat-oneoff", "uiat-oneoff"),
        ),
        archs=("resnet-18", "wrn-28-10", "wrn-34-10"),
        batch_size=128,
        epochs=100,
        paper_table="table2",
        references={"natural": lambda name: "natural", "uiat": lambda name: "uiat"},
    )
    ratio_names: ClassVar = {"natural": "natural", "uiat": "UIAT"}
    tour_share = 1.0

    def tour_line(self, size: Size, records: Sequence[Record]) -> str:
        return f"an epoch of {size.arch}: {epochs_line(records)}"


def epochs_line(records: Sequence[Record]) -> str:
    """natural, UIAT and one-off in minutes, and what UIAT costs beside natural training."""
    rows = {r["row"]: r for r in records if not is_phase(r) and r["n"]}
    said = []
    for name in ("natural", "uiat", "uiat-oneoff"):
        if name in rows:
            r = rows[name]
            by_paper = r["paper"]["epoch_s"]
            beside = f" (the paper's A100: {by_paper / 60:.3g})" if by_paper else ""
            mark = "~" if r["extrapolated"] else ""
            said.append(f"{name} {mark}{r['epoch_s'] / 60:.3g}{beside}")
    if not said:
        return "not measured"
    line = f"{', '.join(said)} min"
    ratio = rows["uiat"]["ratios"]["natural"] if "uiat" in rows else None
    if ratio and ratio["median"]:
        net = rows["uiat"]["paper"]["arch"]
        line += f"; uiat is {ratio['median']:.2f} times natural (the paper's {net}: "
        line += f"{ratio['paper']:.2f})"
    return line
