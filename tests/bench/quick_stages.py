"""Stages for `fastuiat bench gpu` that are quick, and a GPU that is not there."""

from __future__ import annotations

import json
import signal
import tarfile
import tempfile
from pathlib import Path

import pytest

from fastuiat.bench.gpu.runner import GpuOptions, run
from fastuiat.bench.gpu.stages import Place, Stage
from fastuiat.bench.record import config_hash

HARDWARE = {
    "device": "NVIDIA Test 80GB",
    "gpu": {"driver": "1.2"},
    "versions": {"torch": "9.9", "triton": "3.9", "python": "3.12.3"},
    "commit": "abcdef0123456789",
    "dirty": False,
}
CONFIG = {"arch": "wrn-10-1", "batch_size": 4}
RECORD = {
    "format": "fastuiat-bench-1",
    "suite": "step",
    "case": "wrn-10-1/b4/uiat",
    "provider": "fastuiat",
    "device": HARDWARE["device"],
    "n": 5,
    **dict.fromkeys(("median_s", "p20_s", "p80_s"), 0.0214),
    "peak_share": 0.181,
    "error": None,
    "config": CONFIG,
    "config_hash": config_hash(CONFIG),
    "time": "2026-02-03T04:05:06+00:00",
}


AT_ONCE = {"stop": signal.SIGKILL, "grace": 0.0}
"""How a script is ended at its share."""


def line(**more) -> str:
    return json.dumps(RECORD | more)


def shell(name: str, script: str, share: float = 1.0, **more) -> Stage:
    """A stage of a shell script: $1 is its records, $2 the folder of what stays here."""

    def command(place: Place) -> list[str]:
        return ["sh", "-c", script, name, str(place.records), str(place.work)]

    return Stage(name, share, (command,), **{"least": 0.5, **AT_ONCE, **more})


def said(record: str) -> str:
    return f"echo '{record}' >> $1"


def call(out: Path, stages, budget=60.0, hardware=HARDWARE, **options):
    return run(GpuOptions(out=out, budget=budget, **options), stages=stages, hardware=hardware)


def state_of(out: Path) -> dict:
    return json.loads((out / "state.json").read_text())


def verdicts(out: Path) -> dict[str, str]:
    return {name: entry["verdict"] for name, entry in state_of(out)["stages"].items()}


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}


def be_machine(folder: Path, monkeypatch) -> None:
    """From now on the temporary folder is that of this machine."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """machine(NAME): from now on this is another machine."""

    def be(name: str) -> None:
        be_machine(tmp_path / f"tmp-{name}", monkeypatch)

    be("first")
    return be


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "report"
