"""A kernel is one file and its line in SPECS: the bench, and what iterates the specs, follow."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import fastuiat_kernels

PACKAGE = Path(fastuiat_kernels.__file__).parent
ROOT = PACKAGE.parents[1]
NEW = "bank_shift"


@pytest.mark.slow
def test_a_new_file_and_its_line_are_a_kernel_everywhere(tmp_path):
    """In a copy of the package: the shortest kernel under another name."""
    copy = tmp_path / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / f"{NEW}.py").write_text((copy / "bank_apply.py").read_text().replace("bank_apply", NEW))
    face = copy / "__init__.py"
    text = face.read_text()
    text = text.replace(
        "\nSPECS: ", f"\nfrom fastuiat_kernels.{NEW} import SPEC as _{NEW}\n\nSPECS: "
    )
    face.write_text(text.replace("    _bank_apply,\n", f"    _bank_apply,\n    _{NEW},\n"))

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    bench = ("-m", "fastuiat", "bench", "kernels", "--device", "cpu", "--budget", "1")
    said = run(*bench, "--kernels", NEW)
    assert NEW in said
    names = run("-c", "import fastuiat_kernels as k; print([s.name for s in k.SPECS])")
    assert f"'{NEW}'" in names
