"""`fastuiat bench scaling`: one training step by several processes, and what that gains.

Groups of processes stand ready side by side and take their samples in turn: one process with one
share of the machine (a card, or `--threads` cores), each number of processes with a share each, and
on a CPU, beside each of them, one process with as many cores as they have together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

import fastuiat
from fastuiat.bench import columns, predicted, predicted_table, table
from fastuiat.bench.groups import Group, RanksClock
from fastuiat.bench.predicted import SingleCard, single_card
from fastuiat.bench.predicted_table import Prediction, assumptions, step_column
from fastuiat.bench.rank import Task
from fastuiat.bench.record import RecordFile, make_record
from fastuiat.bench.setting import Setting, make_setting
from fastuiat.bench.suite import Columns, Done, Measuring, Record, Records, Suite, register
from fastuiat.bench.timing import QUEUED_S, Measurement, Plan, Spread, interleaved, percentile
from fastuiat.bench.workload import Case, make_method
from fastuiat.children import cores
from fastuiat.config import UserError, positive
from fastuiat.models import build_model
from fastuiat.torchrun import is_started_by_torchrun, place

RESULTS = Path(fastuiat.__file__).parents[1] / "benchmarks" / "results"
RECORDED = tuple(RESULTS / name for name in predicted_table.FILES)
"""Where a checkout has them; an installed package has none."""
MOST = 1024


@dataclass(frozen=True, kw_only=True)
class ScalingOptions(Measuring):
    """Time one training step by several processes, and predict it for H100s that are not here."""

    processes: tuple[int, ...] = (1, 2)
    """Numbers of processes; one is always measured, for the others are set beside it."""
    arch: str = "resnet-18"
    """Network: resnet-18, prn-18 or wrn-D-W."""
    batch_size: int = 128
    """Images per step, over all processes."""
    weak: bool = False
    """Each process has --batch-size images of its own, so that a step's batch grows with them."""
    method: str = "uiat"
    """Training method."""
    threads: int | None = None
    """Of each process; by default the cores over the most processes."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic; auto: bf16 where the device has it in hardware, else fp32."""
    compile: bool = True
    """Compile, as training does."""
    recorded: tuple[Path, ...] = ()
    """Record files with steps of one H100, from which to predict where this is none; by default
    those of the repository."""
    predict_only: bool = False
    """Measure nothing here, and predict from recorded steps alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(batch_size=self.batch_size)
        if self.threads is not None:
            positive(threads=self.threads)
        if not self.processes or not all(1 <= n <= MOST for n in self.processes):
            named = " ".join(map(str, self.processes))
            raise UserError(f"--processes needs numbers from 1 to {MOST}, got {named or 'none'}")
        if twice := {n for n in self.processes if self.processes.count(n) > 1}:
            raise UserError(f"--processes names {min(twice)} twice: name each number once")
        if self.predict_only and self.json:
            raise UserError("--predict-only measures nothing that --json could keep: leave one out")

    def counts(self, device: torch.device) -> list[int]:
        """Of processes, one first. UserError on those that cannot share batch or machine."""
        if is_started_by_torchrun() or place().world > 1:
            raise UserError("bench scaling starts processes of its own: run it without torchrun")
        uneven = [n for n in self.processes if self.batch_size % n]
        if uneven and not self.weak:
            raise UserError(
                f"--batch-size {self.batch_size} does not divide by {uneven[0]} processes"
            )
        cards = torch.cuda.device_count() if device.type == "cuda" else MOST
        if max(self.processes) > cards:
            raise UserError(
                f"--processes {max(self.processes)}: each needs a CUDA device of its own, and "
                f"this machine has {cards}: name fewer, or --device cpu"
            )
        return [1, *sorted(n for n in self.processes if n > 1)]

    def bf16_or_named(self) -> str:
        """The arithmetic of an H100's step."""
        return "bf16" if self.precision == "auto" else self.precision

    def known(self) -> Records:
        """Records that may hold a step of one H100; UserError where one is none."""
        from fastuiat.bench.reading import read_records  # which knows all suites

        files = self.recorded or tuple(path for path in RECORDED if path.exists())
        return [record for path in files for record in read_records(path)]


@dataclass(frozen=True)
class Part:
    """A row: so many processes of so many threads, and the row that it is set beside."""

    name: str
    processes: int
    threads: int
    batch_size: int
    """Of all of them."""
    beside: str | None = None
    """Of one process with the same cores."""


def parts_of(options: ScalingOptions, device: torch.device) -> list[Part]:
    """The rows of a run, of which the first is one process with one share."""
    on_cards, counts = device.type == "cuda", options.counts(device)
    threads = options.threads or max(1, cores() // max(counts))

    def named(n: int, own: int, batch_size: int) -> str:
        what = f"{n} card" if on_cards else f"{n} × {own} thread"
        many = n > 1 if on_cards else own > 1
        return what + "s" * many + f", batch {batch_size}" * options.weak

    parts: dict[str, Part] = {}
    for n in counts:
        batch_size = options.batch_size * (n if options.weak else 1)
        together = min(n * threads, max(cores(), threads))
        beside = None if n == 1 or on_cards else named(1, together, batch_size)
        name = named(n, threads, batch_size)
        parts[name] = Part(name, n, threads, batch_size, beside)
        if beside:
            parts.setdefault(beside, Part(beside, 1, together, batch_size))
    return list(parts.values())


def measure(
    case: Case,
    parts: Sequence[Part],
    setting: Setting,
    *,
    plan: Plan,
    weak: bool = False,
    done: Done = lambda event: None,
) -> Records:
    """A record of each row, in rounds; `case` has the batch of one share."""
    clock, on_cuda = RanksClock(), setting.device.type == "cuda"
    if on_cuda:  # regions are recorded in the second step
        plan = dataclasses.replace(plan, warmup=max(plan.warmup, 3))
    least = QUEUED_S if on_cuda else 0.0
    groups = []
    for part in parts:
        task = Task(
            case=dataclasses.replace(case, batch_size=part.batch_size),
            device=setting.device.type,
            precision=setting.precision,
            compiled=setting.compiled,
            threads=part.threads,
        )
        groups.append(Group(part.name, part.processes, task, clock, least, 1 + plan.warmup))
    try:
        measured = interleaved([g.provider() for g in groups], clock=clock, plan=plan, done=done)
    finally:
        for group in groups:
            group.end()
    by_name = {m.name: m for m in measured}
    return [
        record_of(case, part, parts[0], group, by_name, setting, weak)
        for part, group in zip(parts, groups, strict=True)
    ]


def record_of(
    case: Case,
    part: Part,
    share: Part,
    group: Group,
    measured: dict[str, Measurement],
    setting: Setting,
    weak: bool,
) -> Record:
    m, on_cards = measured[part.name], setting.device.type == "cuda"
    m.repeats = group.steps
    config = case.to_json() | {
        "batch_size": part.batch_size,
        "weak": weak,
        "processes": part.processes,
        "threads": None if on_cards else part.threads,
        "precision": setting.precision,
        "compile": setting.compiled,
    }
    shares = part.processes if part.processes > 1 else part.threads / share.threads
    by_share = efficiency(m, measured[share.name], part.batch_size / share.batch_size / shares)
    own = by_share if on_cards and part.processes > 1 else None
    if part.beside:
        own = efficiency(m, measured[part.beside], 1.0)
    return make_record(
        suite="scaling",
        case=f"{case.name}/weak" if weak else case.name,
        measured=m,
        device=setting.device,
        config=config,
        processes=part.processes,
        threads=part.threads,
        batch_each=part.batch_size // part.processes,
        images_per_s=part.batch_size / m.spread.median if m.samples else None,
        **exchange_fields(group, m),
        efficiency=own.median if own else None,
        efficiency_p20=own.p20 if own else None,
        efficiency_p80=own.p80 if own else None,
        efficiency_of_share=by_share.median if by_share and part != share else None,
        predicted=None,
    )


def efficiency(m: Measurement, other: Measurement, factor: float) -> Spread | None:
    """Images per second over the other's, made in each round, times what makes them comparable."""
    if not set(m.rounds) & set(other.rounds):
        return None
    s = other.ratio_to(m)
    return Spread(factor * s.median, factor * s.p20, factor * s.p80, s.n)


def exchange_fields(group: Group, m: Measurement) -> dict[str, Any]:
    """What of a step were exchanges: medians over the samples; None where there is nobody else."""
    names = ("exchange_s", "exchange_share", "exchange_least_share", "exchange_bytes", "exchanged")
    if group.processes == 1 or not m.samples:
        return dict.fromkeys(names)

    def median(of: Callable[[dict[str, Any], list[float]], float]) -> float:
        kept = group.samples[-len(m.samples) :]
        values = [of(s, [r["inside_s"] / s["steps"] for r in s["ranks"]]) for s in kept]
        return percentile(sorted(values), 0.5)

    what = group.samples[-1]["ranks"][0]["exchanged"]["bytes"]
    found = (
        median(lambda s, inside: sum(inside) / len(inside)),
        median(lambda s, inside: sum(inside) / len(inside) / s["seconds"]),
        median(lambda s, inside: min(inside) / s["seconds"]),
        sum(what.values()),
        what,
    )
    return dict(zip(names, found, strict=True))


def add_predictions(options: ScalingOptions, case: Case, records: Records, known: Records) -> None:
    """To the record of one share, in a field of their own; of this run's step, on an H100."""
    first, single = records[0], single_card(known, case, options.bf16_or_named())
    if predicted.is_h100(first) and first["n"]:
        single = SingleCard({case.batch_size: first["median_s"]}, "this run")
    if single is not None:
        first["predicted"] = Prediction.of(case, single, weak=options.weak).fields()


@register("scaling")
class ScalingSuite(Suite):
    Options = ScalingOptions
    rank = 7
    help = "a step by several processes: time, exchanges, efficiency; predicted for H100s"
    title = "Several processes"
    what = "the time of an optimiser step that several processes take together"
    unit = "a step"
    needs = {"processes": int, "threads": int}  # noqa: RUF012

    def columns(self) -> Columns:
        return {
            **self.measured_columns(),
            **{
                f"predicted: {predicted_table.machines(n)} {predicted.GPU}": step_column(n)
                for n in predicted.SHOWN
            },
        }

    def measured_columns(self) -> Columns:
        return {
            "case": columns.case,
            "processes": columns.provider,
            "images each": columns.number("batch_each", ",.0f"),
            "median": columns.median,
            "20–80%": columns.quantiles,
            "n": columns.count,
            "images/s": columns.number("images_per_s", ",.1f"),
            "in exchanges": columns.percent("exchange_share"),
            "the least of a rank": columns.percent("exchange_least_share"),
            "MB exchanged": columns.number("exchange_bytes", ".3g", 1e6),
            "efficiency": columns.percent("efficiency"),
            "of one share": columns.percent("efficiency_of_share"),
        }

    def run(self, options: ScalingOptions) -> None:
        setting, note = make_setting(options.device, options.precision, options.compile)
        case = Case(arch=options.arch, method=options.method, batch_size=options.batch_size)
        with torch.device("meta"):
            build_model(case.arch)
        make_method(case)
        known = options.known()  # a file that is none is said before anything is measured
        if options.predict_only:
            self.predict(options, case, known)
            return
        parts = parts_of(options, setting.device)
        with RecordFile(options.json) as file:
            if note:
                print(note)
            with table.progress(case.name) as done:
                records = measure(
                    case, parts, setting, plan=options.plan(), weak=options.weak, done=done
                )
            add_predictions(options, case, records, known)
            file.write(records)
        self.show(records)

    def predict(self, options: ScalingOptions, case: Case, known: Records) -> None:
        """Of recorded steps alone; UserError where there is none."""
        single = single_card(known, case, options.bf16_or_named())
        if single is None:
            raise UserError(
                f"no step of {case.arch} by {case.method} on one {predicted.GPU} is on record: "
                "measure one there with fastuiat bench step --json FILE, and give --recorded FILE"
            )
        Prediction.of(case, single, weak=options.weak).show()

    def show(self, records: Sequence[Record]) -> None:
        """What was measured, then what is predicted, never in one table."""
        measured = self.measured_columns()
        rows = [[column(r) for column in list(measured.values())[1:]] for r in records]
        notes = [f"{r['provider']}: {r['error']}" for r in records if r["error"]]
        first = records[0]
        table.show(
            f"{first['case']} on {first['device']}", list(measured)[1:], rows,
            [*notes, *self.measured_remarks(records)],
        )  # fmt: skip
        prediction = Prediction.told(first)
        if prediction is not None:
            prediction.show()
        else:
            arch, method = first["config"]["arch"], first["config"]["method"]
            print(
                f"predicted: nothing, for no step of {arch} by {method} on one "
                f"{predicted.GPU} is on record"
            )

    def measured_remarks(self, records: Sequence[Record]) -> list[str]:
        """What the columns mean."""
        threads, cpus = records[0]["threads"], (records[0].get("cpu") or {}).get("cpus") or MOST
        on_cards = records[0]["device_type"] == "cuda"
        share = "a card" if on_cards else f"{threads} thread{'s' * (threads > 1)}"
        beside = "as many times one card's" if on_cards else "one process with the same cores"
        said = [
            "In exchanges: of a step, waiting for the others included, the mean over ranks; the "
            "least of a rank: of the one that waits least.",
            f"Efficiency: images/s over those of {beside}; of one share: over as many times "
            f"those of one process with {share}. Ratios are made round by round.",
        ]
        most = max(r["processes"] for r in records)
        if not on_cards and most * threads > cpus:
            said.append(
                f"{most} processes of {share} have {cpus} cores between them: too few to tell of "
                "scaling."
            )
        return said

    def remarks(self, records: Sequence[Record]) -> list[str]:
        told = [r["predicted"]["from"] for r in records if r.get("predicted")]
        said = self.measured_remarks(records)
        return said + (assumptions("; ".join(dict.fromkeys(told))) if told else [])

    def figures(self, records: Sequence[Record]) -> str:
        said = []
        for r in records:
            if r["n"]:
                gained = f", efficiency {table.percent(r['efficiency'])}" if r["efficiency"] else ""
                said.append(f"{r['provider']} {table.seconds(r['median_s'])}{gained}")
        return "; ".join(said)
