"""`fastuiat bench SUITE`: options, and what each suite does with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from fastuiat.bench.cli_tables import (
    Table2Options,
    Table5Options,
    TourOptions,
    table2,
    table5,
    tour,
)
from fastuiat.bench.compare import CompareOptions
from fastuiat.bench.compare import run as compare
from fastuiat.bench.gpu.runner import GpuOptions, gpu
from fastuiat.bench.record import RecordFile
from fastuiat.bench.timing import Plan
from fastuiat.config import Radius, UserError, positive

Parse = Callable[..., Any]

USAGE = """usage: fastuiat bench [SUITE] [--help]

  no suite   a tour of them that fits this machine, in under ten minutes, and a summary:
             --json FILE, --device auto|cpu|cuda, --budget SECONDS, --no-compile

  step       one training step: naive, tuned-eager, fastuiat, and its convolutions alone
  kernels    the operations of fastuiat_kernels: eager, Inductor, and Triton on a GPU
  loader     images per second of the FFCV, the resident and torchvision's loader
  compare    record files side by side: A.jsonl B.jsonl … [--baseline paper|FILE]
  table2     minutes of an epoch by method and net, beside the paper's
  table5     seconds of an epoch of single-step methods with and without UIAT, beside the paper's
  autoattack  a whole AutoAttack: the plain package, and fastuiat eval
  gpu        all that a GPU has to show, tests too, in minutes; goes on where it was cut off
"""


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """How long to measure, and where the records go."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes CUDA where there is one."""
    repeats: int = 5
    """Rounds, each with one sample of every provider."""
    budget: float | None = None
    """Begin no round later than so many seconds after a case's first; one is always done."""
    json: Path | None = None
    """Append the results to this file, a JSON object per line."""

    def __post_init__(self) -> None:
        positive(repeats=self.repeats)
        if self.budget is not None:
            positive(budget=self.budget)

    def plan(self, **more: Any) -> Plan:
        return Plan(rounds=self.repeats, budget_s=self.budget, **more)


@dataclass(frozen=True, kw_only=True)
class StepOptions(Measuring):
    """Time one training step of a method, four ways, interleaved in one process."""

    arch: str = "resnet-18"
    """Network: resnet-18, prn-18 or wrn-D-W."""
    batch_size: int = 128
    """Images per step."""
    method: str = "uiat"
    """Training method."""
    epoch_phase: Literal["all", "before", "at", "after"] = "all"
    """Which part of a one-off run: before, in, or after its epoch T'; each has its own rows."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic of all but naive; auto: bf16 where the device has it in hardware, else fp32."""
    compile: bool = True
    """Compile the fastuiat row, as training does."""
    providers: tuple[Literal["naive", "tuned-eager", "fastuiat", "convolutions"], ...] = (
        "naive",
        "tuned-eager",
        "fastuiat",
        "convolutions",
    )
    """Which rows."""
    profile: bool = False
    """Also show, and record, where the time of a fastuiat step goes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(batch_size=self.batch_size)
        if self.profile and "fastuiat" not in self.providers:
            raise UserError("--profile is of the fastuiat row: name it in --providers")


def step(options: StepOptions) -> None:
    from fastuiat.bench import profile, table
    from fastuiat.bench.suites import step as suite
    from fastuiat.bench.workload import Case, Phase, phases
    from fastuiat.models import build_model

    setting, note = suite.make_setting(options.device, options.precision, options.compile)
    with torch.device("meta"):
        build_model(options.arch)  # an unknown net is said before anything is measured
    case = Case(arch=options.arch, method=options.method, batch_size=options.batch_size)
    parts = phases(case)
    chosen = [p for p in parts if options.epoch_phase in ("all", p.name)]
    if options.epoch_phase != "all" and not chosen:
        raise UserError(f"--epoch-phase {options.epoch_phase}: {options.method} has no such phase")
    if options.profile and setting.device.type == "cuda" and len(chosen) > 1:
        # CUPTI stays, and was seen to slow down what comes after by 10 to 20% (pytorch#146604).
        raise UserError(
            "on a GPU a profile slows down what is measured after it: choose one phase with "
            f"--epoch-phase {'|'.join(p.name for p in chosen)}"
        )
    recorder = RecordFile(options.json)
    if note:
        print(note)
    whole: list[Phase | None] = [None]
    for phase in chosen or whole:
        part = dataclasses.replace(case, phase=phase)
        with table.progress(part.name) as done:
            records = suite.measure(
                part,
                setting,
                plan=options.plan(),
                names=options.providers,
                done=done,
                profiled=options.profile,
                keep=recorder.write,
            )
        suite.show(records, explain=phase is None or phase is chosen[0])
        profile.show(records)
    recorder.close()


@dataclass(frozen=True, kw_only=True)
class KernelOptions(Measuring):
    """Time the operations of fastuiat_kernels: eager, Inductor, and Triton on a GPU."""

    kernels: tuple[str, ...] = ()
    """Which operations; none named: all."""
    sizes: tuple[Literal["cifar10", "cifar100", "classes1000"], ...] = ("cifar10",)
    """Batch 128 with 10 classes, 512 with 100, 4096 with 1000."""
    every_dtype: bool = False
    """Also in the other dtypes that an operation takes, not only in its first."""


def kernels(options: KernelOptions) -> None:
    from fastuiat.bench import table
    from fastuiat.bench.suites import kernels as suite
    from fastuiat.bench.timing import clock_for
    from fastuiat.device import resolve_device

    device = resolve_device(options.device)
    chosen = suite.cases(options.kernels, options.sizes, options.every_dtype)
    recorder = RecordFile(options.json)
    every: list[dict[str, Any]] = []
    with table.progress("kernels") as done:
        bandwidth = suite.copy_bandwidth(device, clock_for(device))
        for case in chosen:
            done(case.name)
            records = suite.measure(
                case,
                device,
                plan=options.plan(min_sample_s=suite.MIN_SAMPLE_S),
                bandwidth=bandwidth,
            )
            recorder.write(records)
            every += records
    suite.show(every)
    recorder.close()


@dataclass(frozen=True, kw_only=True)
class LoaderOptions(Measuring):
    """Time an epoch of batches from each loader, on synthetic images."""

    n: int = 50_000
    """Images."""
    batch_size: int = 128
    """Images per batch."""
    workers: int = 1
    """Threads of the FFCV loader, processes of torchvision's."""
    providers: tuple[Literal["ffcv", "resident", "torchvision"], ...] = (
        "ffcv",
        "resident",
        "torchvision",
    )
    """Which loaders."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(n=self.n, batch_size=self.batch_size, workers=self.workers)
        if self.n < self.batch_size:
            raise UserError(f"--n {self.n} makes no batch of {self.batch_size}")


def loader(options: LoaderOptions) -> None:
    from fastuiat.bench import table
    from fastuiat.bench.suites import loader as suite
    from fastuiat.device import resolve_device

    images = suite.Images(
        n=options.n,
        batch_size=options.batch_size,
        workers=options.workers,
        device=resolve_device(options.device),
    )
    recorder = RecordFile(options.json)
    with table.progress("loader") as done:
        records = suite.measure(
            images, plan=options.plan(warmup=0), names=options.providers, done=done
        )
    recorder.write(records)
    suite.show(records)
    recorder.close()


@dataclass(frozen=True, kw_only=True)
class AutoAttackOptions(Measuring):
    """Time a whole AutoAttack of the plain package and of `fastuiat eval`, side by side."""

    repeats: int = 1
    """Rounds after a first one; each evaluates with every provider."""
    run: Path | None = None
    """Run or checkpoint to attack on its first test images; by default a fresh net and noise."""
    data_dir: Path = Path("data")
    """Where the run's data set is."""
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
    providers: tuple[Literal["package", "fastuiat"], ...] = ("package", "fastuiat")
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


def autoattack(options: AutoAttackOptions) -> None:
    from fastuiat import data, load_checkpoint
    from fastuiat.bench import table
    from fastuiat.bench.suites import autoattack as suite
    from fastuiat.device import resolve_device
    from fastuiat.evaluation import pixels

    if options.run is None:
        net, x, y = suite.fresh(options.arch, options.n)
        name, eps = options.arch, options.eps or suite.EPS_OF_A_FRESH_NET
    else:
        net, info = load_checkpoint(options.run)
        if info.get("dataset") is None:
            raise UserError(f"{options.run} does not say which data set it is of")
        images = data.load(info["dataset"], options.data_dir, "test")
        x = pixels(images.images[: options.n], torch.device("cpu")).contiguous()
        y = torch.from_numpy(images.labels[: options.n])
        name, eps = options.run.name, options.eps or 8 / 255
    case = suite.Case(
        name=f"{name}/n{len(x)}/b{options.batch_size}",
        net=net,
        x=x,
        y=y,
        eps=eps,
        batch_size=options.batch_size,
        package_batch_sizes=options.package_batch_sizes,
        share=options.share,
        compile={"auto": None, "on": True, "off": False}[options.compile],
        device=resolve_device(options.device),
    )
    recorder = RecordFile(options.json)
    with table.progress("autoattack") as done:
        records = suite.measure(
            case, plan=options.plan(warmup=0), names=options.providers, done=done
        )
    recorder.write(records)
    suite.show(records)
    recorder.close()


SUITES: dict[str, tuple[type, Callable[[Any], None]]] = {
    "step": (StepOptions, step),
    "kernels": (KernelOptions, kernels),
    "loader": (LoaderOptions, loader),
    "compare": (CompareOptions, compare),
    "table2": (Table2Options, table2),
    "table5": (Table5Options, table5),
    "autoattack": (AutoAttackOptions, autoattack),
    "gpu": (GpuOptions, gpu),
}


def main(argv: list[str], parse: Parse) -> None:
    """Run one suite, or the tour; `parse(cls, argv, prog=…)` makes the options."""
    if argv and argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    if not argv or argv[0].startswith("-"):
        tour(parse(TourOptions, argv, prog="fastuiat bench"))
        return
    if argv[0] not in SUITES:
        raise UserError(f"unknown suite '{argv[0]}': choose from {', '.join(SUITES)}")
    options, run = SUITES[argv[0]]
    run(parse(options, argv[1:], prog=f"fastuiat bench {argv[0]}"))
