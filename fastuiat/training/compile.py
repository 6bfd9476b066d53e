"""Whether torch.compile can work here."""

from __future__ import annotations

import functools
import os
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import torch


def missing_for_compilation(device: torch.device) -> str | None:
    """What torch.compile lacks on this machine, in words, or None."""
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler) and not shutil.which("clang++"):
        return "no C++ compiler (install g++)"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "no Python headers (install python3-dev)"
    return None


@functools.cache
def mend_reductions() -> None:
    """Give each half-precision copy of a sum a scope of its own in Inductor's C++ for CPUs.

    torch 2.14.1 names a copy after its sum, so a kernel that stores one sum twice, as GradAlign's
    double backward through BatchNorm does in bf16, is not C++ ("conflicting declaration").
    """
    from torch._inductor.codegen.cpp import CppVecKernel

    original: Any = CppVecKernel.store_reduction

    @functools.wraps(original)
    def scoped(self: Any, *arguments: Any) -> None:
        self.reduction_suffix.writeline("{")
        original(self, *arguments)
        self.reduction_suffix.writeline("}")

    CppVecKernel.store_reduction = scoped  # type: ignore[method-assign]
