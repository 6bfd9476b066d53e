"""`fastuiat bench autoattack`: the plain AutoAttack package beside `fastuiat eval`, same points.

Both run every attack of the standard version on the same net, images, labels and seed, each in a
process of its own; the times are of whole evaluations, compiling included, and the points that hold
out are compared one by one.
Without a run the net is fresh and the radius so small that nearly all points hold out: the longest
that an evaluation of so many points can take.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import signal
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastuiat import data, load_checkpoint
from fastuiat.bench import columns, table
from fastuiat.bench.record import make_record
from fastuiat.bench.suite import Columns, Done, Measuring, Record, Records, Suite, register
from fastuiat.bench.timing import (
    OUT_OF_MEMORY,
    Call,
    Clock,
    Plan,
    Provider,
    clock_for,
    describe,
    interleaved,
    release,
)
from fastuiat.config import Radius, UserError, positive
from fastuiat.device import resolve_device
from fastuiat.evaluation import pixels, run_autoattack
from fastuiat.evaluation.package import MOST_TARGETS, package
from fastuiat.fast.allocator import keep_freed_memory
from fastuiat.models import build_model

Way = Literal["package", "fastuiat"]
PROVIDERS: tuple[Way, ...] = get_args(Way)
EPS_OF_A_FRESH_NET = 1e-6


@dataclass(frozen=True, kw_only=True)
class AutoAttackCase:
    """The points, and how both evaluate them."""

    name: str
    net: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    batch_size: int
    package_batch_sizes: tuple[int, ...]
    share: float
    compile: bool | None
    device: torch.device

    def adjust(self, adversary: Any) -> None:
        """A share of each attack's iterations."""
        for attack in (adversary.apgd, adversary.apgd_targeted, adversary.fab):
            attack.n_iter = max(1, round(attack.n_iter * self.share))
        adversary.square.n_queries = max(1, round(adversary.square.n_queries * self.share))


def fresh(arch: str, n: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A net of random weights whose logits are spread out, noise, and the labels it gives it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build_model(arch).eval()
        nn.init.normal_(getattr(net, str(net.head)).weight)
        x = torch.rand(n, 3, 32, 32)
    with torch.no_grad():
        return net, x, torch.cat([net(part).argmax(dim=1) for part in x.split(64)])


@dataclass(frozen=True)
class Verdicts:
    """What an evaluation found: which points hold (N,), and whether the net was compiled."""

    robust: list[bool]
    compiled: bool = False


def by_package(batch_size: int, case: AutoAttackCase) -> Verdicts:
    """A whole evaluation by the plain package."""
    make, name = package()
    size = "batch_size" if name.startswith("pyautoattack") else "bs"
    net = case.net.to(case.device)
    adversary = make(net, norm="Linf", eps=case.eps, seed=0, device=str(case.device))  # standard
    case.adjust(adversary)
    x, y = case.x.to(case.device), case.y.to(case.device)
    with torch.no_grad():
        targets = min(MOST_TARGETS, net(x[:1]).shape[1] - 1)
        adversary.apgd_targeted.n_target_classes = targets
        adversary.fab.n_target_classes = targets
    out = adversary.run_standard_evaluation(x, y, **{size: batch_size})
    x_adv = out[0] if isinstance(out, tuple) else out
    with torch.no_grad():
        held = [
            net(a).argmax(dim=1) == b
            for a, b in zip(x_adv.split(batch_size), y.split(batch_size), strict=True)
        ]
    return Verdicts(torch.cat(held).tolist())


def by_fastuiat(case: AutoAttackCase) -> Verdicts:
    """A whole evaluation as `fastuiat eval` does it."""
    if case.device.type == "cpu":
        keep_freed_memory()
    with tempfile.TemporaryDirectory(prefix="fastuiat-bench-") as folder:
        result = run_autoattack(
            case.net.to(case.device),
            case.x,
            case.y,
            eps=case.eps,
            batch_size=case.batch_size,
            compile=case.compile,
            state_path=Path(folder) / "state",
            device=case.device,
            adjust=case.adjust,
        )
    return Verdicts(result.robust.tolist(), result.compiled)


Evaluate = Callable[[AutoAttackCase], Verdicts]


def serve(asker: Any, evaluate: Evaluate, packed: bytes, threads: int) -> None:
    """Evaluate each time one is asked for, until the asker is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the asker gets it, and goes
    torch.set_num_threads(threads)
    case = torch.load(io.BytesIO(packed), weights_only=False)  # ours, from a moment ago
    asker.send(None)
    with contextlib.suppress(EOFError):
        while asker.recv():
            try:
                asker.send(evaluate(case))
            except Exception as error:
                asker.send(describe(error))
            release()  # a GPU's memory is the other way's as well


class Evaluations:
    """The two ways, each in a process of its own; `found` keeps what each found.

    In one process the package would profit from what ours changes there: that freed memory is kept.
    """

    def __init__(self, case: AutoAttackCase) -> None:
        self.case = case
        self.found: dict[str, Verdicts] = {}
        self._processes: list[Any] = []

    def providers(self, names: Sequence[str]) -> list[Provider]:
        ways: dict[str, Evaluate] = {}
        if "package" in names:
            for size in self.case.package_batch_sizes:
                ways[f"package b{size}"] = partial(by_package, size)
        if "fastuiat" in names:
            ways["fastuiat"] = by_fastuiat
        return [Provider(name, partial(self.start, name, way)) for name, way in ways.items()]

    def start(self, name: str, evaluate: Evaluate) -> Call:
        """Its process, ready; each call is an evaluation in it."""
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        packed = io.BytesIO()  # as it is, tensors would be shared by the processes
        torch.save(self.case, packed)
        process = context.Process(
            target=serve,
            args=(theirs, evaluate, packed.getvalue(), torch.get_num_threads()),
            daemon=True,
        )
        process.start()
        theirs.close()
        self._processes.append(process)

        def answer() -> Any:
            try:
                return ours.recv()
            except (EOFError, OSError) as error:
                process.join()
                raise RuntimeError(f"its process ended, exit code {process.exitcode}") from error

        def call() -> None:
            with contextlib.suppress(OSError):  # which the answer tells
                ours.send(True)
            found = answer()
            if found == OUT_OF_MEMORY:
                raise torch.OutOfMemoryError(found)
            if isinstance(found, str):
                raise RuntimeError(found)
            self.found[name] = found

        answer()
        return call

    def end(self) -> None:
        for process in self._processes:
            process.terminate()
            process.join()


def agreeing(found: Verdicts | None, reference: Verdicts | None) -> int | None:
    """Points that two evaluations judge alike."""
    if found is None or reference is None:
        return None
    return sum(a == b for a, b in zip(found.robust, reference.robust, strict=True))


def measure(
    case: AutoAttackCase,
    *,
    plan: Plan,
    names: Sequence[str] = PROVIDERS,
    clock: Clock | None = None,
    done: Callable[[str], object] = lambda event: None,
) -> list[dict[str, Any]]:
    """A record per row; `same_verdicts` counts the points on which it and the first row agree."""
    ways = Evaluations(case)
    try:
        measured = interleaved(
            ways.providers(names), clock=clock or clock_for(case.device), plan=plan, done=done
        )
    finally:
        ways.end()
    config = {"n": len(case.x), "batch_size": case.batch_size, "share": case.share}
    config |= {"eps": case.eps}
    if case.compile is not None:
        config |= {"compile": case.compile}
    reference = next((ways.found[m.name] for m in measured if m.name in ways.found), None)
    first = measured[0]
    records = []
    for m in measured:
        found = ways.found.get(m.name)
        both = m.samples and first.samples
        records.append(
            make_record(
                suite="autoattack",
                case=case.name,
                measured=m,
                device=case.device,
                config=config,
                first_s=m.first_s if m.samples else None,
                speedup=first.ratio_to(m).median if both else None,
                robust=sum(found.robust) if found else None,
                same_verdicts=agreeing(found, reference),
                compiled=found.compiled if found else False,
            )
        )
    return records


@dataclass(frozen=True, kw_only=True)
class AutoAttackOptions(Measuring):
    """Time a whole AutoAttack of the plain package and of `fastuiat eval`, side by side."""

    repeats: int = 1
    """Rounds after a first one; each evaluates with every provider."""
    run: Path | None = None
    """Run or checkpoint to attack on its first test images; by default a fresh net and noise."""
    data_dir: Path = Path("data")
    """Where the run's data set is."""
    unchecked_data: bool = False
    """Use its files also where they are not the published ones."""
    arch: str = "wrn-10-1"
    """The fresh net."""
    eps: Radius | None = None
    """Radius; by default 8/255 for a run, and so small for a fresh net that points hold out."""
    n: int = 64
    """Points."""
    batch_size: int = 64
    """Points at a time in fastuiat."""
    package_batch_sizes: tuple[int, ...] = (64,)
    """Points at a time in the package; each is a row."""
    share: float = 1.0
    """Share of each attack's iterations to run."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the net in the fastuiat row; auto: where the work is worth it."""
    providers: tuple[Way, ...] = PROVIDERS
    """Which rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(n=self.n, batch_size=self.batch_size, share=self.share)
        for size in self.package_batch_sizes:
            positive(package_batch_sizes=size)
        if self.share > 1:
            raise UserError(f"--share must be at most 1, got {self.share:g}")
        if self.eps is not None:
            positive(eps=self.eps)

    def case(self) -> AutoAttackCase:
        """UserError where the run cannot be read, or does not say which data set it is of."""
        if self.run is None:
            net, x, y = fresh(self.arch, self.n)
            name, eps = self.arch, self.eps or EPS_OF_A_FRESH_NET
        else:
            net, info = load_checkpoint(self.run)
            if info.get("dataset") is None:
                raise UserError(f"{self.run} does not say which data set it is of")
            images = data.load(
                info["dataset"], self.data_dir, "test", unchecked=self.unchecked_data
            )
            x = pixels(images.images[: self.n], torch.device("cpu")).contiguous()
            y = torch.from_numpy(images.labels[: self.n])
            name, eps = self.run.name, self.eps or 8 / 255
        return AutoAttackCase(
            name=f"{name}/n{len(x)}/b{self.batch_size}",
            net=net,
            x=x,
            y=y,
            eps=eps,
            batch_size=self.batch_size,
            package_batch_sizes=self.package_batch_sizes,
            share=self.share,
            compile={"auto": None, "on": True, "off": False}[self.compile],
            device=resolve_device(self.device),
        )


@register("autoattack")
class AutoAttackSuite(Suite):
    Options = AutoAttackOptions
    rank = 6
    help = "a whole AutoAttack: the plain package, and fastuiat eval"
    title = "AutoAttack"
    what = "the time of a whole evaluation"
    unit = "an evaluation"

    def columns(self) -> Columns:
        return {
            "net, points, batch": columns.case,
            "by": columns.provider,
            "evaluation": columns.median,
            "20–80%": columns.quantiles,
            "n": columns.count,
            "times as fast": columns.number("speedup", ".2f"),
            "first evaluation": columns.seconds("first_s"),
            "hold out": columns.number("robust", ",.0f"),
            "same verdicts": columns.number("same_verdicts", ",.0f"),
        }

    def measure(self, options: AutoAttackOptions, done: Done) -> Records:
        plan = options.plan(warmup=0)
        return measure(options.case(), plan=plan, names=options.providers, done=done)

    def show(self, records: Sequence[Record]) -> None:
        headings = (
            "way",
            "evaluation",
            "20–80%",
            "n",
            "faster",
            "hold out",
            "same verdicts",
            "first",
        )
        rows = []
        for r in records:
            span = f"{table.seconds(r['p20_s'])} – {table.seconds(r['p80_s'])}"
            rows.append(
                (
                    r["provider"],
                    table.seconds(r["median_s"]),
                    table.NONE if r["error"] else span,
                    str(r["n"]),
                    table.number(r["speedup"], ".2f") + ("×" if r["speedup"] else ""),
                    table.number(r["robust"]),
                    table.number(r["same_verdicts"]),
                    table.seconds(r["first_s"]),
                )
            )
        first = records[0]
        notes = [f"{r['provider']}: {r['error']}" for r in records if r["error"]]
        if first["config"]["share"] != 1:
            notes.append(f"{100 * first['config']['share']:g}% of each attack's iterations")
        notes.append(f"{first['config']['n']} points; faster, same verdicts: against the first row")
        table.show(f"autoattack/{first['case']} on {first['device']}", headings, rows, notes)

    def figures(self, records: Sequence[Record]) -> str:
        said = []
        for r in records:
            if r["n"]:
                compiled = {True: " compiled", False: " eager"}.get(r["config"].get("compile"), "")
                name = r["provider"] + (compiled if r["provider"] == "fastuiat" else "")
                said.append(f"{name} {table.seconds(r['median_s'])}")
        return ", ".join(said)
