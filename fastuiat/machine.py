"""What numbers depend on beside their settings: this machine's hardware and software."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import fastuiat

CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")
"""Flags of /proc/cpuinfo that decide how fast matrix products in fp32 and bf16 are."""
UNKNOWN_CACHE_BYTES = 64 << 20


def _lines_of(*command: str) -> list[str]:
    """Output of a program; none where it is missing or fails."""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return answer.stdout.splitlines()


@functools.cache
def cpu() -> dict[str, Any]:
    """Model name, features, logical CPUs that this process may use, threads of PyTorch."""
    fields: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    except OSError:
        pass
    flags = set(fields.get("flags", "").split())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": fields.get("model name") or platform.processor() or platform.machine(),
        "features": [f for f in CPU_FEATURES if f in flags],
        "cpus": usable,
        "threads": torch.get_num_threads(),
    }


def cache_bytes(device: torch.device) -> int:
    """The last cache before memory."""
    if device.type == "cuda":
        properties: Any = torch.cuda.get_device_properties(device)
        return int(properties.L2_cache_size)
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        sizes.append(int(text.rstrip("KM")) * (1 << 20 if text.endswith("M") else 1 << 10))
    return max(sizes, default=UNKNOWN_CACHE_BYTES)


@functools.cache  # every record asks, and nvidia-smi is a process
def gpu(device: torch.device) -> dict[str, Any] | None:
    """Name, memory, driver and power limit of a CUDA device; None for the CPU."""
    if device.type != "cuda":
        return None
    properties: Any = torch.cuda.get_device_properties(device)
    uuid = f"GPU-{getattr(properties, 'uuid', '')}"
    query = "driver_version,power.limit,clocks.max.sm,clocks.max.mem"
    answer = _lines_of(
        "nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits", "-i", uuid
    )
    told = answer[0].split(", ") if answer else []
    driver, watts, sm, memory = told if len(told) == 4 else [None] * 4
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": driver,
        "power_limit_w": _number(watts),
        "max_sm_mhz": _number(sm),
        "max_memory_mhz": _number(memory),
    }


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:  # "[N/A]"
        return None


@functools.cache
def versions() -> dict[str, str | None]:
    try:
        import triton

        triton_version: str | None = triton.__version__
    except ImportError:
        triton_version = None
    return {
        "fastuiat": fastuiat.__version__,
        "torch": torch.__version__,
        "triton": triton_version,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


@functools.cache
def source() -> dict[str, Any]:
    """Commit of the running code and whether it was changed since; None where git has it not.

    An installed package may lie inside a repository of another project: only a tracked file counts.
    """
    package = Path(fastuiat.__file__).parent

    def git(*words: str) -> list[str]:
        return _lines_of("git", "-C", str(package), *words)

    if not git("ls-files", "--error-unmatch", "__init__.py"):
        return {"commit": None, "dirty": None}
    top = git("rev-parse", "--show-toplevel")[0]
    # Results that are being recorded lie in the same tree and change no number.
    changed = git(
        "-C", top, "status", "--porcelain", "--", package.name, "kernels", "pyproject.toml"
    )
    return {"commit": git("rev-parse", "HEAD")[0], "dirty": bool(changed)}


def summary(device: torch.device) -> dict[str, Any]:
    """What decides the numbers of a run or an evaluation, as their records carry it."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "gpu": device_name(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
    }


def device_name(device: torch.device) -> str:
    """What a table calls the device: its product name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu()["name"]


def describe(device: torch.device) -> dict[str, Any]:
    """All that decides how fast code runs here, as a bench's record carries it."""
    return {
        "device": device_name(device),
        "device_type": device.type,
        "cpu": cpu(),
        "gpu": gpu(device),
        "versions": versions(),
        **source(),
    }
