"""What a step would take on H100s that are not here: computed from a measured step of one of them.

With B images a step, n = m·g cards in m machines of g = 8, and b = B/n images a card (weak scaling:
b = B):

    step(n) = compute(b) + sum(S) + gather(G)
    compute(b): on the straight lines through (0, u) and the measured steps of one card by batch,
        the last of them prolonged; u = 20 bytes · parameters / memory rate
    sum(S) = c·(s + 2(g−1)·h + 2(m−1)·h') + 2(g−1)/g · S/r + 2(m−1)/m · (S/g)/r'
    gather(G) = c'·(s + (g−1)·h + (m−1)·h') + (g−1)/g · G/r + (m−1)/m · (G/g)/r'

S are the bytes that each card hands to c sums over all (gradients, BatchNorm's statistics, class
sums of z, metrics); G those of the rows of P of all cards, gathered by c' calls. r, h are rate and
hop inside a machine, r', h' between machines, s what a call takes besides: links.toml has them,
with their sources. A sum goes around rings: it is scattered inside each machine, added up between
machines by the cards of one place, each of them through a network adapter of its own, and gathered
inside. The exchange follows the backward, so nothing of it hides behind the arithmetic.

u is the optimiser's traffic (weights, gradients and momentum read, the first and last written, in
fp32); all else is taken as proportional to the batch below the smallest that was measured. A
smaller batch fills a card less, a kernel has a least time, ranks wait for the slowest, and no
network gives its printed rate: by all of that the real step is longer. Shorter it may be where NCCL
takes trees between many machines, which have fewer hops.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from fastuiat.bench import floors
from fastuiat.bench.columns import Record
from fastuiat.bench.exchanges import Exchanged
from fastuiat.bench.workload import Case

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

GPU = "H100"
IN_A_MACHINE = 8
SHOWN = (8, 32, 256)
"""Cards of one machine, of 4 and of 32."""
LADDER = (8, 16, 32, 64, 128, 256)
TRAFFIC = 20
"""Bytes a parameter that the optimiser moves."""
SUITES = ("step", "table2", "table5")
"""Those whose records hold a step of one card; the first that has a batch counts."""


@dataclass(frozen=True)
class Link:
    """Bytes per second of one card in one direction; seconds of a hop, and of a call besides."""

    rate: float
    hop_s: float
    start_s: float
    source: str


@functools.cache
def links() -> dict[str, Link]:
    """`inside` a machine and `between` machines, as links.toml has them."""
    file = resources.files("fastuiat").joinpath("bench/links.toml")
    return {
        name: Link(1e9 * row["rate"], 1e-6 * row["hop"], 1e-6 * row["start"], row["source"])
        for name, row in tomllib.loads(file.read_text(encoding="utf-8")).items()
    }


def exchange_s(size: float, calls: int, machines: int, *, ways: int) -> float:
    """Seconds of `calls` exchanges of `size` bytes together; `ways` 2 for sums, 1 for gathering."""
    inside, between = links()["inside"], links()["between"]
    hops = (IN_A_MACHINE - 1) * inside.hop_s + (machines - 1) * between.hop_s
    moved = (IN_A_MACHINE - 1) / IN_A_MACHINE * size / inside.rate
    moved += (machines - 1) / machines * size / IN_A_MACHINE / between.rate
    return calls * (inside.start_s + ways * hops) + ways * moved


@dataclass(frozen=True)
class SingleCard:
    """Measured steps of one card: seconds by batch, and which records say so."""

    seconds: Mapping[int, float]
    source: str

    def at(self, batch: float, update_s: float) -> float:
        """Seconds at a batch: on the line through `update_s` at 0 and what was measured."""
        points = [(0.0, update_s), *sorted((float(b), s) for b, s in self.seconds.items())]
        above = next((i for i, (b, _) in enumerate(points) if b >= batch), len(points) - 1)
        (b0, s0), (b1, s1) = points[max(above, 1) - 1], points[max(above, 1)]
        return s0 + (s1 - s0) * (batch - b0) / (b1 - b0)


def is_h100(record: Record) -> bool:
    rates = floors.datasheet_of(record["device"])
    return rates is not None and rates.name == GPU


def single_card(records: Iterable[Record], case: Case, precision: str) -> SingleCard | None:
    """What records of an H100 say of the case's step at any batch; None where nothing does."""
    wanted: dict[str, Any] = {"arch": case.arch, "method": case.method, "phase": None}
    wanted |= {"settings": case.settings, "precision": precision, "compile": True}
    found: dict[int, Record] = {}
    for r in records:
        own = {name: r["config"].get(name) for name in wanted}
        is_one = r["suite"] in SUITES and r["provider"] == "fastuiat" and not r["error"]
        if is_one and own == wanted and is_h100(r):
            size = r["config"]["batch_size"]
            if size not in found or rank_of(r) > rank_of(found[size]):
                found[size] = r
    if not found:
        return None
    said = [
        f"{r['suite']} {r['case']}{', its loader in it' * (r['suite'] != 'step')}, {r['time'][:10]}"
        for _, r in sorted(found.items())
    ]
    return SingleCard({b: r["median_s"] for b, r in found.items()}, "; ".join(said))


def rank_of(record: Record) -> tuple[int, str]:
    return -SUITES.index(record["suite"]), record["time"]


def predict(
    case: Case, single: SingleCard, what: Exchanged, *, weak: bool, ladder: Sequence[int] = LADDER
) -> list[dict[str, Any]]:
    """Of each number of cards, all of it predicted; `step_s` None where no whole image is a card's.

    `what` is exchanged at the case's batch, of which each card has an equal part, or with `weak`
    its own.
    """
    rates = floors.datasheets()[GPU]
    update_s = TRAFFIC * what.bytes["gradients"] / 4 / rates.bytes_per_s
    one = case.batch_size / single.at(case.batch_size, update_s)
    found = []
    for cards in ladder:
        each = case.batch_size if weak else case.batch_size / cards
        row: dict[str, Any] = {"cards": cards, "batch_each": each, "step_s": None}
        if each == int(each):
            machines = cards // IN_A_MACHINE
            compute = single.at(each, update_s)
            gathered = what.gathered * (each * cards / case.batch_size)
            exchange = exchange_s(what.summed, what.calls["summed"], machines, ways=2)
            exchange += exchange_s(gathered, what.calls.get("gathered", 0), machines, ways=1)
            images = each * cards / (compute + exchange)
            row |= {
                "batch_each": int(each),
                "compute_s": compute,
                "exchange_s": exchange,
                "step_s": compute + exchange,
                "images_per_s": images,
                "efficiency": images / (cards * one),
            }
        found.append(row)
    return found
