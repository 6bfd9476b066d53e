"""Bounds: the least time in which a device could do a case's work, whoever wrote the code.

max(operations / peak rate, bytes / bandwidth). The rates are a GPU's datasheet's (rates.toml), or
measured where the code runs: a CPU's by a large matrix product and a large copy.

Operations are those that the record has counted: convolutions and matrix products, as direct ones
(an algorithm that multiplies less, as Winograd's does, may beat the bound).

Bytes are those that no step can keep on the chip. When a training forward ends, the weights and
their momentum (fp32), and the input of every convolution in it (in the dtype of the arithmetic) are
all needed once more: the convolution's weight gradient needs its input, and whatever a compiler
computes again it computes from a tensor of that size. What of it exceeds the last cache has gone to
memory and comes back. One training forward is counted, though some methods run two; gradients,
attacks and the memories P and z are left out: so it is a bound from below for every method.
An operation of the kernels' suite has cold inputs, so its bytes are those that it must move.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from torch import Tensor, nn

from fastuiat import machine
from fastuiat.bench.timing import Clock, Plan, Provider, WallClock, interleaved
from fastuiat.models import build_model

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SHOWN = ("A100", "H100", "H200", "RTX 4090")
"""The GPUs whose bounds stand beside every case."""
COPY_BYTES = 256 << 20
COPY_S = 5e-3
"""A sample on a GPU has so many copies that the launch of the first does not count."""
ENOUGH_S = 0.008
"""A matrix product that takes so long fills the machine; a longer one is sooner interrupted."""
LARGEST = 4096
PRODUCTS = 25


@dataclass(frozen=True)
class Rates:
    """What a device can do at most."""

    name: str
    flops_per_s: Mapping[str, float]
    """By precision."""
    bytes_per_s: float
    cache_bytes: int
    source: str


@dataclass(frozen=True)
class Work:
    """What a case must do at least."""

    flops: int
    precision: str
    live_bytes: int = 0
    """Held at once: what exceeds the cache is written and read again."""
    moved_bytes: int = 0
    """Read or written, with nothing of it in a cache."""


@functools.cache
def datasheets() -> dict[str, Rates]:
    """The GPUs of rates.toml by their short names."""
    file = resources.files("fastuiat").joinpath("bench/rates.toml")
    return {
        name: Rates(
            name=name,
            flops_per_s={p: 1e12 * row["tf32" if p == "fp32" else p] for p in DTYPES},
            bytes_per_s=1e9 * row["memory"],
            cache_bytes=int(1e6 * row["cache"]),
            source=row["source"],
        )
        for name, row in tomllib.loads(file.read_text(encoding="utf-8")).items()
    }


@functools.cache
def _short_names() -> dict[str, str]:
    file = resources.files("fastuiat").joinpath("bench/rates.toml")
    content = tomllib.loads(file.read_text(encoding="utf-8"))
    return {product: name for name, row in content.items() for product in row["names"]}


def datasheet_of(product: str) -> Rates | None:
    """Rates of a GPU by the name that the driver gives it; None for one that has no row."""
    name = _short_names().get(product)
    return datasheets()[name] if name else None


def copy_bandwidth(device: torch.device, clock: Clock) -> float:
    """Bytes per second, read and written, that a copy reaches here: what shares refer to."""
    source = torch.zeros(COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    plan = Plan(rounds=5, min_sample_s=COPY_S)
    (m,) = interleaved(
        [Provider("copy", lambda: lambda: target.copy_(source))], clock=clock, plan=plan
    )
    return 2 * COPY_BYTES / m.spread.median


@functools.cache
def cpu_bandwidth() -> float:
    return copy_bandwidth(torch.device("cpu"), WallClock())


@functools.cache
def cpu_flops(precision: str) -> float:
    """The fastest of several large matrix products, flop/s, with PyTorch's present threads.

    Grown until one takes ENOUGH_S: CPUs with and without units for a precision are far apart.
    """
    clock, size, taken = WallClock(), 128, 0.0
    while taken < ENOUGH_S and size < LARGEST:
        size *= 2
        a, b = (torch.ones(size, size).to(DTYPES[precision]) for _ in range(2))
        product = functools.partial(torch.mm, a, b)
        product()
        taken = clock.seconds(product)
    return 2 * size**3 / min(taken, *(clock.seconds(product) for _ in range(PRODUCTS)))


@functools.cache
def cpu_rates(precision: str) -> Rates:
    """This CPU's rates, measured once in a process and precision (about a second)."""
    return Rates(
        name=machine.cpu()["name"],
        flops_per_s={precision: cpu_flops(precision)},
        bytes_per_s=cpu_bandwidth(),
        cache_bytes=machine.cache_bytes(torch.device("cpu")),
        source="measured here: the fastest of several large matrix products, and a large copy",
    )


def present_rates(device: torch.device, precision: str) -> Rates | None:
    """Measured on the CPU; a GPU's datasheet's, None where it has no row."""
    if device.type == "cpu":
        return cpu_rates(precision)
    return datasheet_of(machine.device_name(device))


def peak_flops(device: torch.device, precision: str) -> float | None:
    """The most flop/s of dense matrix products at a precision (fp32, bf16, fp16).

    A GPU's datasheet's (fp32: TF32, as cuDNN's convolutions do), None where it has no row; measured
    on the CPU, once in a process.
    """
    if device.type == "cpu":
        return cpu_flops(precision)
    rates = datasheet_of(machine.device_name(device))
    return rates.flops_per_s[precision] if rates else None


def held_by_a_step(
    arch: str, batch_size: int, num_classes: int, resolution: int = 32
) -> tuple[int, int]:
    """(parameters, elements of the distinct inputs of the convolutions in one forward)."""
    parameters, elements = held_by_two_images(arch, num_classes, resolution)
    return parameters, batch_size * elements // 2


@functools.cache
def held_by_two_images(arch: str, num_classes: int, resolution: int) -> tuple[int, int]:
    """The same of a batch of two, the least that BatchNorm takes: inputs grow with the batch."""
    with torch.device("meta"):
        net = build_model(arch, num_classes)
        x = torch.empty(2, 3, resolution, resolution)
    inputs: dict[int, Tensor] = {}  # holding them keeps their ids apart

    def note(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        inputs[id(args[0])] = args[0]

    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(note)
    with torch.no_grad():
        net(x)
    return sum(p.numel() for p in net.parameters()), sum(t.numel() for t in inputs.values())


def work_of(record: Mapping[str, Any]) -> Work | None:
    """The work behind a record; None where it says too little, or the work is not a device's."""
    config = record.get("config") or {}
    if record.get("bytes_moved"):
        return Work(flops=0, precision="fp32", moved_bytes=int(record["bytes_moved"]))
    if not (record.get("flops") and {"arch", "batch_size", "precision"} <= set(config)):
        return None
    if config["precision"] not in DTYPES:
        return None
    parameters, elements = held_by_a_step(
        config["arch"],
        config["batch_size"],
        config.get("num_classes", 10),
        config.get("resolution", 32),
    )
    itemsize = DTYPES[config["precision"]].itemsize
    return Work(
        flops=int(record["flops"]),
        precision=config["precision"],
        live_bytes=2 * 4 * parameters + itemsize * elements,
    )


def bound_s(work: Work, rates: Rates) -> float:
    """Seconds that the work takes at least at these rates."""
    beyond = max(0, work.live_bytes - rates.cache_bytes)
    compute = work.flops / rates.flops_per_s[work.precision] if work.flops else 0.0
    return max(compute, (2 * beyond + work.moved_bytes) / rates.bytes_per_s)


def fields(record: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """What a step's record says of the device's limits, so that they can be told elsewhere."""
    work = work_of(record) if record.get("flops") else None
    rates = present_rates(device, work.precision) if work else None
    if work is None or rates is None:
        return {}
    peak = rates.flops_per_s[work.precision]
    median = record.get("median_s")
    return {
        "peak_flops_per_s": peak,
        "memory_bytes_per_s": rates.bytes_per_s,
        "peak_share": work.flops / median / peak if median else None,
        "bound_s": bound_s(work, rates),
    }
