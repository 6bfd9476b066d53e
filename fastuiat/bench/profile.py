"""Where a step's time goes: what the profiler saw, as rows that sum to the step.

On a GPU the time is the device's: its kernels and copies, and what lies between them (`idle`). The
step is profiled twice. Launched one by one, each kernel has an operator behind it, whose arguments
say for which layer of the net it works; as it is trained, most kernels come out of recorded graphs,
which tell only names. The layers are of the first profile, the rows of the second.

On a CPU the time is that of the thread that takes the step: operators, Inductor's kernels, and what
it does between them (`host`: Python, and the glue of compiled graphs).
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from fastuiat.bench import floors, table
from fastuiat.bench.events import Trace, collect
from fastuiat.bench.layers import Layer, Products, input_share, products
from fastuiat.bench.passes import Op
from fastuiat.bench.pieces import IDLE, Piece, device_pieces, host_pieces, learn, split
from fastuiat.bench.timing import describe
from fastuiat.fast.recording import one_by_one

LAUNCHED_STEPS = 3
"""Steps of a profile that asks for shapes."""
REPLAYED_STEPS = 50
"""Steps at most of one that does not: a sample of a tiny net has hundreds."""
KEPT_SHARE = 1e-3
"""Smaller rows are gathered, in one row for each kind."""
NAME_LENGTH = 200
"""Of a kernel's C++ name, whose templates go on for pages."""
SHOWN_ROWS, NAME_WIDTH = 16, 56
AGREEMENT = 0.05
"""How far the profiled step may be from the measured one before the table says so."""


def fields(
    call: Callable[[], object],
    device: torch.device,
    *,
    precision: str,
    ops: Sequence[Op],
    queued: int,
) -> dict[str, Any]:
    """What a record says of the profile of a step; of a profile that fails, a line that says why.

    `ops` are the operations counted in a step, `queued` the steps of a measured sample.
    """
    try:
        return profile(call, device, precision=precision, ops=ops, queued=queued)
    except Exception as error:  # what was measured stays whatever the profiler does
        return {"profile": None, "profile_sum_s": None, "profile_error": describe(error)}


def profile(
    call: Callable[[], object],
    device: torch.device,
    *,
    precision: str,
    ops: Sequence[Op],
    queued: int,
) -> dict[str, Any]:
    """The same; raises where the profiler does."""
    with one_by_one():
        launched = collect(call, device, steps=LAUNCHED_STEPS, shapes=True)
    known, peak = products(ops), floors.peak_flops(device, precision)
    if device.type != "cuda":
        dtype = floors.DTYPES[precision]
        share = functools.cache(functools.partial(input_share, dtype=dtype))
        return summed(*of_host(launched, known, share), launched, launched, peak)
    try:
        replayed = collect(call, device, steps=min(queued, REPLAYED_STEPS), shapes=False)
        return summed(*of_device(launched, replayed, known), launched, replayed, peak)
    except Exception as error:  # the layers are known all the same
        pieces = device_pieces(launched, known)
        found = summed(pieces, pieces, launched, launched, peak)
        return found | {"profile_error": f"of the replays: {describe(error)}"}


def of_host(
    trace: Trace, known: Products, share: Callable[[Layer], float]
) -> tuple[list[Piece], list[Piece]]:
    """The pieces that the layers are made of, and those of the step: the same ones on a CPU."""
    pieces = split(host_pieces(trace, known), share)
    return pieces, pieces


def of_device(launched: Trace, replayed: Trace, known: Products) -> tuple[list[Piece], list[Piece]]:
    """The pieces that the layers are made of, and those of the step as it is trained."""
    by_operator = device_pieces(launched, known)
    return by_operator, device_pieces(replayed, known, learn(by_operator))


def summed(
    of_layers: Sequence[Piece],
    of_step: Sequence[Piece],
    launched: Trace,
    replayed: Trace,
    peak: float | None,
) -> dict[str, Any]:
    """The fields of a record."""
    rows = rows_of(of_step, replayed.steps)
    return {
        "profile": {
            "rows": rows,
            "layers": layers_of(of_layers, launched.steps, peak),
            "steps": replayed.steps,
            "busy_s": busy(of_step, replayed.steps),
            "launched_busy_s": busy(of_layers, launched.steps),
        },
        "profile_sum_s": sum(row["seconds"] for row in rows),
    }


def busy(pieces: Iterable[Piece], steps: int) -> float:
    """Seconds of a step in which the device, or on a CPU the thread, worked."""
    return sum(piece.ns for piece in pieces if piece.kind != IDLE) / steps / 1e9


def rows_of(pieces: Iterable[Piece], steps: int) -> list[dict[str, Any]]:
    """`kind name calls seconds share` of a step, the largest first; tiny ones gathered by kind."""
    pieces = list(pieces)
    total = sum(p.ns for p in pieces) or 1.0
    groups: dict[tuple[str, str], list[float]] = {}
    for piece in pieces:
        key = piece.kind, piece.name[:NAME_LENGTH]
        entry = groups.setdefault(key, [0.0, 0.0])
        entry[0] += piece.ns
        entry[1] += piece.calls
    gathered: dict[tuple[str, str], list[float]] = {}
    tiny = Counter(kind for (kind, _), (ns, _) in groups.items() if ns < KEPT_SHARE * total)
    for (kind, name), (ns, calls) in groups.items():
        is_tiny = ns < KEPT_SHARE * total and tiny[kind] > 1
        key = (kind, f"{tiny[kind]} others") if is_tiny else (kind, name)
        entry = gathered.setdefault(key, [0.0, 0.0])
        entry[0] += ns
        entry[1] += calls
    rows = [
        {
            "kind": kind,
            "name": name,
            "calls": tidy(calls / steps),
            "seconds": ns / steps / 1e9,
            "share": ns / total,
        }
        for (kind, name), (ns, calls) in gathered.items()
    ]
    return sorted(rows, key=lambda r: -r["seconds"])


def tidy(count: float) -> float:
    """A whole number where it is one."""
    return round(count) if abs(count - round(count)) < 1e-6 else round(count, 2)


def layers_of(pieces: Iterable[Piece], steps: int, peak: float | None) -> list[dict[str, Any]]:
    """The convolutions of a step by pass and layer, the longest first."""
    spent: defaultdict[tuple[str, Layer], float] = defaultdict(float)
    called: defaultdict[tuple[str, Layer], set[int]] = defaultdict(set)
    for piece in pieces:
        if piece.layer is not None:
            key = piece.kind, piece.layer
            spent[key] += piece.ns
            called[key].add(piece.operator)
    rows = []
    for (kind, layer), operators in called.items():
        calls = len(operators) / steps
        seconds = spent[kind, layer] / steps / 1e9
        flops = layer.flops(kind) * calls
        rate = flops / seconds if seconds else None
        rows.append(
            {
                "kind": kind,
                "layer": str(layer),
                "input": list(layer.x),
                "weight": list(layer.weight),
                "stride": list(layer.stride),
                "calls": tidy(calls),
                "seconds": seconds,
                "flops": tidy(flops),
                "tflops_per_s": rate / 1e12 if rate else None,
                "peak_share": rate / peak if rate and peak else None,
            }
        )
    return sorted(rows, key=lambda r: -r["seconds"])


def show(records: Iterable[dict[str, Any]]) -> None:
    """The profiles that records have, each as three tables: kinds, rows, and layers."""
    for record in records:
        if record.get("profile_error"):
            print(f"  profile of {record['provider']} failed: {record['profile_error']}")
        if record.get("profile"):
            show_one(record)


def show_one(record: dict[str, Any]) -> None:
    rows, layers = record["profile"]["rows"], record["profile"]["layers"]
    print()
    table.show(
        f"where {record['provider']}'s step goes",
        ("kind", "calls", "time", "share"),
        [
            (kind, *_cells(calls, seconds, share))
            for kind, (calls, seconds, share) in by_kind(rows).items()
        ],
        [agreement(record)],
    )
    print()
    table.show(
        "",
        ("the largest", "kind", "calls", "time", "share"),
        [
            (_fitting(r["name"]), r["kind"], *_cells(r["calls"], r["seconds"], r["share"]))
            for r in rows[:SHOWN_ROWS]
        ],
        [f"{len(rows) - SHOWN_ROWS} more are in the record"] if len(rows) > SHOWN_ROWS else [],
    )
    print()
    table.show(
        "",
        ("convolution", "pass", "calls", "time", "a call", "TFLOP/s", "of peak"),
        [
            (
                r["layer"],
                r["kind"].removeprefix("convolution "),
                f"{r['calls']:g}",
                table.seconds(r["seconds"]),
                table.seconds(r["seconds"] / r["calls"]),
                table.number(r["tflops_per_s"], ".3g"),
                table.number(r["peak_share"], ".0%"),
            )
            for r in layers
        ],
    )


def by_kind(rows: Iterable[dict[str, Any]]) -> dict[str, tuple[float, float, float]]:
    """Calls, seconds and share of each kind, the largest first."""
    sums: dict[str, tuple[float, float, float]] = {}
    for r in rows:
        calls, seconds, share = sums.get(r["kind"], (0.0, 0.0, 0.0))
        sums[r["kind"]] = calls + r["calls"], seconds + r["seconds"], share + r["share"]
    return dict(sorted(sums.items(), key=lambda item: -item[1][1]))


def agreement(record: dict[str, Any]) -> str:
    """The sum beside the measured step, in a sentence."""
    total, median = record["profile_sum_s"], record["median_s"]
    said = f"sum {table.seconds(total)}, measured without a profiler {table.seconds(median)}"
    off = total / median - 1
    if abs(off) <= AGREEMENT:
        return f"{said}: {off:+.1%}"
    working = [record["profile"][name] for name in ("busy_s", "launched_busy_s")]
    replayed, launched = map(table.seconds, working)
    return (
        f"{said}: {off:+.1%}, so the machine was not quiet, or profiling itself took time "
        f"(working {replayed} of it, {launched} launched one by one)"
    )


def _cells(calls: float, seconds: float, share: float) -> tuple[str, str, str]:
    return f"{calls:,g}", table.seconds(seconds), f"{share:.1%}"


def _fitting(name: str) -> str:
    return name if len(name) <= NAME_WIDTH else f"{name[: NAME_WIDTH - 1]}…"
