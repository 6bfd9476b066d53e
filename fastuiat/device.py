"""Device and arithmetic by name, and whether torch.compile can work here."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path

import torch

from fastuiat.config import UserError
from fastuiat.fast.torch_internals import cpu_has

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one; UserError on `cuda` without one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA device here; use --device cpu")
    return torch.device(name)


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return cpu_has("avx512_bf16") or cpu_has("amx_tile")


def resolve_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the hardware has it, else fp32; fp16 training is for CUDA."""
    if name not in ("auto", *DTYPES):
        raise UserError(f"unknown precision '{name}': choose from auto, {', '.join(DTYPES)}")
    if name == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 is unusably slow on the CPU: use bf16 or fp32")
    if name == "auto":
        return "bf16" if has_bf16(device) else "fp32"
    return name


def missing_for_compilation(device: torch.device) -> str | None:
    """What torch.compile lacks on this machine, in words, or None."""
    compiler = os.environ.get("CXX", "g++")
    if not shutil.which(compiler) and not shutil.which("clang++"):
        return "no C++ compiler (install g++)"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").exists():
        return "no Python headers (install python3-dev)"
    return None
