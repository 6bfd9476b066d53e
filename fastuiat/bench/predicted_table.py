"""Predictions as tables: apart from all that was measured, with what they are made of."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fastuiat.bench import table
from fastuiat.bench.columns import Column, Record
from fastuiat.bench.exchanges import Exchanged, counted
from fastuiat.bench.predicted import GPU, IN_A_MACHINE, SingleCard, links, predict, single_card
from fastuiat.bench.workload import Case

HEADINGS = (
    f"cards, {GPU}", "images a card", "predicted: compute", "predicted: exchange",
    "predicted: step", "predicted: images/s", "predicted: efficiency",
)  # fmt: skip
FILES = ("step.jsonl", "table2.jsonl")
"""Of a folder of records, those that have steps of one card."""
ON_THE_PAGE = (
    (Case(arch="resnet-18"), False),
    (Case(arch="wrn-28-10"), False),
    (Case(arch="wrn-28-10", batch_size=512), False),
    (Case(arch="wrn-28-10"), True),
)
"""Cases of docs/scale.md, and whether each card has the batch to itself."""


def named(case: Case, weak: bool) -> str:
    return f"{case.name}/weak" if weak else case.name


def machines(cards: int) -> str:
    """8, and then 2 × 8 for two machines."""
    count = cards // IN_A_MACHINE
    return f"{count} × {IN_A_MACHINE}" if count > 1 else str(IN_A_MACHINE)


def rows_of(ladder: Sequence[dict[str, Any]]) -> list[list[str]]:
    return [
        [
            machines(row["cards"]),
            table.number(row["batch_each"], "g"),
            table.seconds(row.get("compute_s")),
            table.seconds(row.get("exchange_s")),
            table.seconds(row["step_s"]),
            table.number(row.get("images_per_s"), ",.0f"),
            table.percent(row.get("efficiency")),
        ]
        for row in ladder
    ]


def step_column(cards: int) -> Column:
    """A record's predicted step by so many cards."""

    def text(r: Record) -> str:
        known = (r.get("predicted") or {}).get("ladder", [])
        return table.seconds(next((row["step_s"] for row in known if row["cards"] == cards), None))

    return text


def assumptions(source: str) -> list[str]:
    """What a prediction is made of, in sentences."""
    inside, between = links()["inside"], links()["between"]
    return [
        f"Predicted, not measured, from one card's step ({source}), {inside.rate / 1e9:g} GB/s a "
        f"card inside a machine ({inside.source}) and {between.rate / 1e9:g} GB/s between machines "
        f"({between.source}).",
        "Compute is taken as proportional to the batch below those that were measured, the "
        "optimiser's traffic apart: optimistic, for a smaller batch fills a card less.",
    ]


@dataclass(frozen=True)
class Prediction:
    """Of a case: from which measured step, what is exchanged, and the steps of more and more cards.

    `weak`: each card has the case's batch.
    """

    case: Case
    weak: bool
    source: str
    bytes: dict[str, int]
    ladder: list[dict[str, Any]]

    @classmethod
    def of(cls, case: Case, single: SingleCard, *, weak: bool) -> Prediction:
        what = counted(case)
        ladder = predict(case, single, what, weak=weak)
        return cls(case, weak, single.source, what.bytes, ladder)

    def fields(self) -> dict[str, Any]:
        """What a record keeps of it."""
        return {"from": self.source, "bytes": self.bytes, "ladder": self.ladder}

    @classmethod
    def told(cls, record: Record) -> Prediction | None:
        """What a record keeps."""
        config, told = record["config"], record.get("predicted")
        if not told:
            return None
        case = Case(arch=config["arch"], method=config["method"], batch_size=config["batch_size"])
        return cls(case, config["weak"], told["from"], told["bytes"], told["ladder"])

    def show(self) -> None:
        """On the terminal."""
        sizes = ", ".join(f"{name} {n:,}" for name, n in self.bytes.items())
        exchanged = f"Exchanged at batch {self.case.batch_size}, bytes: {sizes}."
        table.show(
            f"{named(self.case, self.weak)}, predicted for {GPU}",
            HEADINGS,
            rows_of(self.ladder),
            [*assumptions(self.source), exchanged],
        )


@functools.cache
def exchanged_by(arch: str, batch_size: int) -> Exchanged:
    """Of UIAT's step, counted once in a process."""
    return counted(Case(arch=arch, batch_size=batch_size))


def page(records: Sequence[Record]) -> str:
    """The Markdown of ON_THE_PAGE, from records that may hold steps of one card; "" where none."""
    heads = ["step, batch", *HEADINGS]
    lines, sources = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)], []
    for case, weak in ON_THE_PAGE:
        single = single_card(records, case, "bf16")
        if single is not None:
            what = exchanged_by(case.arch, case.batch_size)
            for row in rows_of(predict(case, single, what, weak=weak)):
                lines.append("| " + " | ".join([named(case, weak), *row]) + " |")
            sources.append(single.source)
    if not sources:
        return ""
    return "\n".join([*lines, "", *assumptions("; ".join(dict.fromkeys(sources))), ""])
