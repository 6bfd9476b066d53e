"""What several tests need: the command line as a real process, a small run's flags, small nets."""

from __future__ import annotations

import fcntl
import importlib.util
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastuiat import data
from fastuiat.cli import main
from fastuiat.models.blocks import Classifier, pooled
from fastuiat.models.convolution import Conv3x3
from tests.forks import ROOT, Forks
from tests.processes import Process

SMALL_RUN = {
    "--dataset": "digits",
    "--arch": "wrn-10-1",
    "--batch-size": "128",
    "--max-lr": "0.1",
    "--val-size": "64",
    "--log-every": "3",
    "--loader": "resident",
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Who starts the command as a process, or has it packed, is slow; others say so themselves."""
    for item in items:
        if {"distributions", "fastuiat", "forks"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:
        items[:] = shared_out(items, workers)


def shared_out(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """In as many stretches, files of slow tests first in each: at the end small ones are stolen.

    xdist gives each worker an equal stretch, of which another takes from the end (worksteal).
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    slow = {f: sum("slow" in i.keywords for i in own) for f, own in files.items()}
    shares: list[list[pytest.Item]] = [[] for _ in range(workers)]
    weights = [0] * workers
    for file in sorted((f for f in files if slow[f]), key=lambda f: -slow[f]):
        lightest = weights.index(min(weights))
        weights[lightest] += slow[file]
        shares[lightest] += files[file]
    for file in (f for f in files if not slow[f]):
        min(shares, key=len).extend(files[file])
    shares.sort(key=len, reverse=True)  # what a stretch is too long for stands at its end
    return [item for share in shares for item in share]


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Starts `fastuiat` as a process without a start of Python, which would cost seconds."""
    with Forks() as started:
        yield started


@pytest.fixture
def start(tmp_path: Path, forks: Forks):
    """Begin `fastuiat WORDS…` in tmp_path; returns the Process, which ends with the test."""
    begun = []

    def run(*words: Any, **how: Any) -> Process:
        begun.append(forks.start(*words, folder=tmp_path, **how))
        return begun[-1]

    yield run
    for process in begun:
        process.ended(0)


@pytest.fixture
def fastuiat(start):
    """Run `fastuiat WORDS…` in tmp_path to its end; returns the Process."""

    def run(*words: Any, timeout: float = 300) -> Process:
        process = start(*words)
        process.wait(timeout)
        return process

    return run


@dataclass(frozen=True)
class Distributions:
    """What `python -m build` makes of a copy of the sources: the sdist, and the wheel from it."""

    sdist: Path
    wheel: Path
    unpacked: Path
    """The wheel as pip installs it, in a folder of its own."""

    def run(self, *words: str | Path, cwd: Path) -> str:
        """What Python says in cwd that knows of fastuiat by the unpacked wheel alone."""
        env = os.environ | {"PYTHONPATH": str(self.unpacked)}
        command = [sys.executable, *map(str, words)]
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    """Built without a network: with the setuptools that is installed, as `dev` asks for it.

    Once for all workers: the first builds, and the others wait for it.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "distributions"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "built").exists():
            build(folder)
            (folder / "built").touch()
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Distributions(sdist, wheel, folder / "unpacked")


def build(folder: Path) -> None:
    """An sdist, a wheel and `unpacked`, of a copy of the sources."""
    source, unpacked = folder / "source", folder / "unpacked"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("fastuiat", "kernels"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))

    def module(*words: str | Path) -> None:
        command = [sys.executable, "-m", *map(str, words)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    module("build", "--no-isolation", "--outdir", folder, source)
    (wheel,) = folder.glob("*.whl")
    module("pip", "install", "-q", "--no-deps", "--no-index", "--target", unpacked, wheel)


@pytest.fixture
def refusal(tmp_path: Path, monkeypatch, capsys):
    """refusal(*WORDS): the one line on stderr of a `fastuiat` that is refused, in tmp_path.

    In this process: a start of Python and PyTorch takes seconds, and what a process does with such
    a line is tested in test_cli.py.
    """

    def run(*words: str) -> str:
        monkeypatch.chdir(tmp_path)
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(list(words))
        said = capsys.readouterr().err
        assert stop.value.code == 2 and said.startswith("fastuiat: "), (words, said)
        assert said.count("\n") == 1, said
        return said

    return run


@pytest.fixture(scope="session")
def small_run() -> list[str]:
    return [word for pair in SMALL_RUN.items() for word in pair] + ["--no-compile"]


@pytest.fixture(scope="session")
def robustbench():
    """robustbench("resnet"): the installed package's architectures/resnet.py.

    Loaded file by file: on the way to its network classes the package imports a dozen others (timm,
    gdown, geotorch …) and `autoattack`, none of which these classes need.
    """

    def architectures(name: str) -> ModuleType:
        package = importlib.util.find_spec("robustbench")
        assert package is not None and package.origin, "pip install --no-deps robustbench"
        path = Path(package.origin).parent / "model_zoo" / "architectures" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"robustbench_{name}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return architectures


class SmallNet(Classifier):
    """Three strided convolutions with BatchNorm: trains in seconds, compiles in seconds."""

    head = "fc"

    def __init__(self, width: int = 16, num_classes: int = 10) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        pairs = list(itertools.pairwise(widths))
        self.convs = nn.ModuleList(Conv3x3(i, o, stride=2) for i, o in pairs)
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o in pairs)
        self.fc = nn.Linear(widths[-1], num_classes)
        self.initialise()

    def features(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.relu(norm(conv(x)))
        return pooled(x)


@pytest.fixture(scope="session")
def small_net() -> type[Classifier]:
    return SmallNet


@pytest.fixture(scope="session")
def digits() -> tuple[Tensor, Tensor]:
    """The training images in [0, 1], channels-last, and their labels."""
    train = data.load("digits", "data", "train")
    x = torch.from_numpy(train.images).permute(0, 3, 1, 2) / 255
    return x, torch.from_numpy(train.labels)


@pytest.fixture(scope="session")
def trained(digits: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """`net` in eval mode, accurate on the `x`, `y` of digits that it was trained on."""
    torch.manual_seed(0)
    x, y = digits
    net = SmallNet().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    for _ in range(8):
        for rows in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    net.eval()
    with torch.no_grad():
        assert (net(x).argmax(dim=1) == y).float().mean() > 0.95
    return {"net": net, "x": x, "y": y}


@pytest.fixture
def counted(monkeypatch):
    """The graphs made of regions, traced but not compiled; making one anew is an error."""
    from torch._dynamo.backends.debugging import aot_eager

    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    monkeypatch.setattr("fastuiat.fast.regions.BACKEND", backend)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield graphs
