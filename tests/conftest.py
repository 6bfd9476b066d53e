"""What several tests need: the command line as a real process, a small run's flags, RobustBench."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from fastuiat.cli import main

SMALL_RUN = {
    "--dataset": "digits",
    "--arch": "wrn-10-1",
    "--batch-size": "128",
    "--max-lr": "0.1",
    "--val-size": "64",
    "--log-every": "3",
    "--loader": "resident",
}


@pytest.fixture
def fastuiat(tmp_path: Path):
    """Run `fastuiat WORDS…` in tmp_path to its end; returns the CompletedProcess."""

    def run(*words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fastuiat", *map(str, words)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    return run


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


@pytest.fixture
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
