"""The stages, in order of worth: what each runs, and which part of the time it may have."""

from __future__ import annotations

import importlib.util
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastuiat.bench.gpu.results import accuracies
from fastuiat.children import cores

TRAINED = "cifar10-20"
"""The table of `fastuiat reproduce` that the stage `train` fills."""
CIFAR10 = ("cifar-10-batches-py", "cifar-10-python.tar.gz")
"""Where one of them is, nothing has to be downloaded while the GPU waits."""


@dataclass(frozen=True)
class Place:
    """Where a command of a stage works and how long it may take."""

    root: Path
    """The folder that holds the package: a checkout, or site-packages."""
    data_dir: Path
    work: Path
    """What stays on this machine."""
    stage: str
    seconds: float
    memory_bytes: int | None = None
    """The device's."""

    @property
    def records(self) -> Path:
        return self.work / f"{self.stage}.jsonl"

    @property
    def outcomes(self) -> Path:
        return self.work / f"{self.stage}-tests.jsonl"

    @property
    def junit(self) -> Path:
        return self.work / f"{self.stage}.xml"

    @property
    def log(self) -> Path:
        return self.work / f"{self.stage}.log"

    @property
    def runs(self) -> Path:
        return self.work / "train"


PER_PROCESS = 8 << 30
"""Bytes of the device that a process of tests may need."""
Command = Callable[[Place], list[str]]
"""Made when it begins, for its budget is known only then."""


@dataclass(frozen=True)
class Stage:
    """One stage. Its commands are run one after another and share its time."""

    name: str
    share: float
    """Of the time, beside the shares of the stages that are still to come."""
    commands: tuple[Command, ...]
    least: float = 30.0
    """Seconds below which it is not begun."""
    needs: tuple[str, ...] = ()
    """Packages that it imports beside those that fastuiat itself does; `a|b` is either."""
    tests: str | None = None
    """The folder of tests that it runs."""
    stop: int = signal.SIGINT
    """The signal that ends it at its share, before SIGKILL does: a bench then writes down what it
    has measured."""
    grace: float = 8.0
    """Seconds between the two, of its own share."""
    obstacle: Callable[[Place], str | None] = lambda place: None
    """Why it has nothing to do here, if so."""
    figures: Callable[[Place], str] | None = None
    """By default those of its records or tests."""

    def environment(self, place: Place) -> dict[str, str]:
        """Processes of tests share the cores, which each would take for its own."""
        if self.tests is None:
            return {}
        return {"OMP_NUM_THREADS": str(max(1, cores() // workers(place)))}

    def missing(self) -> str | None:
        """The first package that it needs and that is not here."""
        for need in self.needs:
            if not any(importlib.util.find_spec(name) for name in need.split("|")):
                return need.split("|")[0]
        return None


def bench(*words: str, budget: Callable[[float], float]) -> Command:
    """`fastuiat bench WORDS`, its records kept; `budget` of the seconds that the command has."""

    def command(place: Place) -> list[str]:
        told = f"{max(1.0, budget(place.seconds)):.0f}"
        own = ["--device", "cuda", "--budget", told, "--json", str(place.records)]
        return [sys.executable, "-m", "fastuiat", "bench", *words, *own]

    return command


def part(share: float) -> Callable[[float], float]:
    return lambda seconds: share * seconds


def all_but(rest: float) -> Callable[[float], float]:
    return lambda seconds: seconds - min(rest, seconds / 2)


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def workers(place: Place) -> int:
    """Processes of tests at a time."""
    if not has("xdist"):
        return 1
    return max(1, min(8, cores() // 2, (place.memory_bytes or PER_PROCESS * 4) // PER_PROCESS))


def pytest_of(folder: str) -> Command:
    """The folder's tests: by several processes where xdist is here, for compiling is the CPU's
    work; and none of them takes all of the stage's time."""

    def command(place: Place) -> list[str]:
        words = ["-p", "no:cacheprovider", "-p", "fastuiat.bench.gpu.outcomes", "--tb=short"]
        words += ["--continue-on-collection-errors"]
        words += ["--outcomes", str(place.outcomes), f"--junitxml={place.junit}"]
        if (count := workers(place)) > 1:
            words += ["-n", str(count), "--dist", "worksteal"]
        if has("pytest_timeout"):
            words += [f"--timeout={max(30.0, 0.75 * place.seconds):.0f}"]
        return [sys.executable, "-m", "pytest", str(place.root / folder), *words]

    return command


def no_checkout(place: Place) -> str | None:
    if (place.root / "tests").is_dir() and (place.root / "pyproject.toml").is_file():
        return None
    return "an installed package has no tests: call it from a checkout"


def tests_in(name: str, folder: str, share: float, needs: Sequence[str]) -> Stage:
    return Stage(
        name,
        share,
        (pytest_of(folder),),
        needs=("pytest", *needs),
        tests=folder,
        grace=10.0,  # pytest writes its report, once xdist has ended its processes
        obstacle=no_checkout,
    )


def no_cifar10(place: Place) -> str | None:
    if any((place.data_dir / name).exists() for name in CIFAR10):
        return None
    return f"no CIFAR-10 in {place.data_dir}: --data-dir says where it is"


def train(place: Place) -> list[str]:
    """As far as the time goes. The next call goes on: with the runs that are here, without the rows
    that are on record, whose runs may have stayed behind."""
    words = ["reproduce", TRAINED, "--data-dir", str(place.data_dir), "--device", "cuda"]
    words += ["--record", str(place.runs / f"{TRAINED}.jsonl"), "--out", str(place.runs)]
    return [sys.executable, "-m", "fastuiat", *words]


def train_figures(place: Place) -> str:
    return accuracies(place.runs / f"{TRAINED}.json")


def loader(place: Place) -> list[str]:
    """Those that are here: an FFCV that is not would be a failed row."""
    providers = [*(["ffcv"] if has("ffcv") else []), "resident", "torchvision"]
    # The budget begins behind the first round, and torchvision's epoch is as long as all others.
    return bench("loader", "--providers", *providers, budget=part(0.2))(place)


STEP = ("step", "--method", "uiat", "--profile", "--arch")
WAYS = ("step", "--method", "uiat", "--arch", "resnet-18", "--providers", "fused", "cudnn")
AUTOATTACK = (
    "autoattack",
    *("--arch", "resnet-18", "--n", "512", "--batch-size", "512"),
    *("--package-batch-sizes", "512", "--share", "0.1"),
)
"""A tenth of each attack's iterations: ten times as many take minutes by the package."""

ROUNDS = ("--steps", "12")
"""Else a table goes on until every row is calm, which the launches of an eager one never are."""

STAGES = (
    tests_in("kernels", "tests/kernels/launched", 0.24, ["hypothesis"]),
    tests_in("cuda", "tests/cuda", 0.36, ["sklearn"]),
    # Both ways of the frozen blocks: what fast/fused.py leans on.
    Stage(
        "conv",
        0.4,
        (bench("layers", budget=part(0.01)), bench(*WAYS, budget=part(0.1))),
        least=150.0,
    ),
    # A case's budget begins once its first calls are compiled.
    Stage("step", 0.3, (bench(*STEP, "resnet-18", budget=part(0.2)),), least=120.0),
    Stage(
        "train",
        0.2,
        (train,),
        stop=signal.SIGTERM,  # a run saves its state first
        grace=20.0,
        obstacle=no_cifar10,
        figures=train_figures,
        # Of a shorter one no row ends, and what is left fits no report.
        least=300.0,
    ),
    Stage(
        "table2-resnet-18",
        0.25,
        (bench("table2", "--archs", "resnet-18", *ROUNDS, budget=all_but(20)),),
        least=60.0,
    ),
    Stage("step-wrn", 0.06, (bench(*STEP, "wrn-28-10", budget=part(0.2)),), least=120.0),
    Stage("operations", 0.04, (bench("kernels", budget=part(0.05)),), least=45.0),
    Stage(
        "table2-wrn",
        0.06,
        (bench("table2", "--archs", "wrn-28-10", "wrn-34-10", *ROUNDS, budget=all_but(25)),),
        least=60.0,
    ),
    Stage(
        "table5",
        0.05,
        (bench("table5", "--archs", "prn-18", *ROUNDS, budget=all_but(20)),),
        least=60.0,
    ),
    Stage(
        "autoattack",
        0.04,
        (
            bench(*AUTOATTACK, "--compile", "on", budget=part(0.3)),
            bench(*AUTOATTACK, "--compile", "off", "--providers", "fastuiat", budget=part(0.3)),
        ),
        needs=("pyautoattack|autoattack",),
        least=120.0,
    ),
    Stage("loader", 0.02, (loader,), least=60.0),
)
