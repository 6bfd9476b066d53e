"""What several tests need: the command line as a real process, and a small run's flags."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
def small_run() -> list[str]:
    return [word for pair in SMALL_RUN.items() for word in pair] + ["--no-compile"]
