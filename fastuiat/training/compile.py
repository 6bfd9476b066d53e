"""Whether torch.compile can work here."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import torch


def missing_for_compilation(device: torch.device) -> str | None:
    """What torch.compile lacks on this machine, in words, or None."""
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler) and not shutil.which("clang++"):
        return "no C++ compiler (install g++)"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "no Python headers (install python3-dev)"
    return None
