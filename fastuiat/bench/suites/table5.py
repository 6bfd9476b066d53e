"""`fastuiat bench table5`: seconds of an epoch of single-step methods, beside Table 5."""

from __future__ import annotations

from typing import ClassVar

from fastuiat.bench.epoch_table import EpochTable, TableRow
from fastuiat.bench.suite import register
from fastuiat.bench.table_suite import TableOptions, TableSuite


class Table5Options(TableOptions):
    """Seconds of an epoch of single-step methods, with and without UIAT, beside Table 5."""


@register("table5")
class Table5(TableSuite):
    Options = Table5Options
    rank = 5
    help = "seconds of an epoch of single-step methods with and without UIAT, beside the paper's"
    title = "Single-step training"
    what = "seconds of an epoch of 50,000 images"
    table = EpochTable(
        name="table5",
        title="Table 5, s/epoch",
        rows=tuple(
            TableRow(name + added, name + added)
            for name in ("n-fgsm", "rs-fgsm", "gradalign")
            for added in ("", "+uiat")
        ),
        archs=("prn-18",),
        batch_size=128,
        epochs=30,
        paper_table="table5_time",
        references={
            "rs-fgsm": lambda name: "rs-fgsm",
            "plain": lambda name: name.removesuffix("+uiat"),
        },
    )
    ratio_names: ClassVar = {"rs-fgsm": "RS-FGSM", "plain": "without UIAT"}
