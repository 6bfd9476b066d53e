"""The machine as records describe it: from the system itself, in the fields of old files."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastuiat
import fastuiat_kernels
from fastuiat import machine
from fastuiat.evaluation import record
from fastuiat.training.folder import environment

CPU = torch.device("cpu")


def test_cpu_is_described_by_what_the_kernel_says():
    words = Path("/proc/cpuinfo").read_text()
    assert machine.cpu()["name"] in words
    flags = set(next(x for x in words.splitlines() if x.startswith("flags")).split())
    assert machine.cpu()["features"] == [f for f in machine.CPU_FEATURES if f in flags]


def test_runs_and_evaluations_keep_their_fields():
    """Files of earlier versions stand beside new ones: names and values are theirs."""
    here = {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "gpu": None,
        "threads": torch.get_num_threads(),
    }
    run = {"fastuiat": fastuiat.__version__, "platform": platform.platform(), "command": sys.argv}
    assert environment(CPU) == here | run
    assert record.machine(CPU) == here | {"device": "cpu", "precision": "fp32"}
    fields = {"device", "device_type", "cpu", "gpu", "versions", "commit", "dirty"}
    assert set(machine.describe(CPU)) == fields
    json.dumps(machine.describe(CPU))


@pytest.mark.slow
def test_commit_is_that_of_the_package_and_not_of_a_repository_around_it(tmp_path):
    """An installed copy inside somebody's repository has no commit of its own."""
    site = tmp_path / "site"
    package = Path(machine.__file__).parent
    kernels = Path(fastuiat_kernels.__file__).parent
    for folder in (package, kernels):
        leave = shutil.ignore_patterns("__pycache__")
        shutil.copytree(folder, site / folder.name, ignore=leave)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    code = "from fastuiat import machine; print(machine.source())"

    def source() -> str:
        environment = os.environ | {"PYTHONPATH": str(site)}
        return subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    assert source() == "{'commit': None, 'dirty': None}"
    subprocess.run([*git, "add", "site"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "ours"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert head.stdout.strip() in source()
