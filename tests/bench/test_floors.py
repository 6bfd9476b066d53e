"""Bounds: rates as the datasheets print them, and counts made by hand."""

from __future__ import annotations

import pytest
import torch

from fastuiat.bench import floors
from fastuiat.bench.floors import Rates, Work, bound_s
from fastuiat.bench.record import make_record
from fastuiat.bench.timing import Measurement

CPU = torch.device("cpu")
SLOW = Rates("slow", {"fp32": 1e9, "bf16": 4e9}, bytes_per_s=1e6, cache_bytes=1000, source="test")


@pytest.mark.parametrize(
    ("product", "bf16", "fp32", "memory"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12, 2039e9),
        ("NVIDIA A100-SXM4-40GB", 312e12, 156e12, 1555e9),
        ("NVIDIA H100 80GB HBM3", 989.4e12, 494.7e12, 3350e9),
        ("NVIDIA H200", 989.4e12, 494.7e12, 4800e9),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12, 1008e9),
    ],
)
def test_datasheet_rates(product, bf16, fp32, memory):
    rates = floors.datasheet_of(product)
    assert rates is not None and rates.source
    assert rates.flops_per_s == pytest.approx({"bf16": bf16, "fp16": bf16, "fp32": fp32})
    assert rates.bytes_per_s == pytest.approx(memory)


@pytest.mark.parametrize(
    "product",
    [
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA H100 PCIe",
        "H100",
    ],
)
def test_a_slice_or_another_part_is_unknown(product, monkeypatch):
    assert floors.datasheet_of(product) is None
    monkeypatch.setattr(floors.machine, "device_name", lambda device: product)
    assert floors.peak_flops(torch.device("cuda"), "bf16") is None


def test_a_known_gpu_has_its_datasheets_peak(monkeypatch):
    monkeypatch.setattr(floors.machine, "device_name", lambda device: "NVIDIA H200")
    assert floors.peak_flops(torch.device("cuda"), "fp32") == pytest.approx(494.7e12)


def test_the_cpus_peak_is_its_fastest_product(monkeypatch):
    """A clock that lets each call take 10 ms, but one of them 5."""

    class Scripted:
        calls = 0

        def seconds(self, call):
            call()
            self.calls += 1
            return 0.005 if self.calls == 4 else 0.010

    monkeypatch.setattr(floors, "WallClock", Scripted)
    assert floors.cpu_flops.__wrapped__("fp32") == 2 * 256**3 / 0.005


def test_what_a_step_holds_counted_by_hand():
    """ResNet-18: the image, then the inputs of each stage; a shortcut shares that of its block."""
    image = 3 * 32 * 32
    first = 4 * 64 * 32 * 32
    later = sum(
        width // 2 * (2 * side) ** 2 + 3 * width * side * side
        for width, side in ((128, 16), (256, 8), (512, 4))
    )
    assert floors.held_by_a_step("resnet-18", 5, 10) == (11_173_962, 5 * (image + first + later))


def test_the_bound_is_the_slower_of_operations_and_bytes():
    assert bound_s(Work(flops=3 * 10**9, precision="fp32"), SLOW) == 3.0
    assert bound_s(Work(flops=3 * 10**9, precision="bf16"), SLOW) == 0.75
    # 5000 bytes live, 1000 of them in the cache: 4000 go out and come back.
    assert bound_s(Work(flops=1, precision="fp32", live_bytes=5000), SLOW) == pytest.approx(8e-3)
    assert bound_s(Work(flops=0, precision="fp32", live_bytes=900), SLOW) == 0.0
    assert bound_s(Work(flops=0, precision="fp32", moved_bytes=500), SLOW) == pytest.approx(5e-4)


def test_work_behind_records():
    config = {"arch": "resnet-18", "batch_size": 5, "precision": "bf16", "num_classes": 10}
    parameters, elements = floors.held_by_a_step("resnet-18", 5, 10)
    work = floors.work_of({"suite": "table2", "flops": 7e9, "config": config})
    assert work == Work(7 * 10**9, "bf16", live_bytes=8 * parameters + 2 * elements)
    kernel = {"suite": "kernels", "bytes_moved": 100, "config": {"kernel": "sign_step"}}
    assert floors.work_of(kernel) == Work(0, "fp32", moved_bytes=100)
    assert floors.work_of({"suite": "loader", "config": {"n": 5}}) is None
    assert floors.work_of({"suite": "step", "flops": None, "config": config}) is None


def test_a_steps_record_carries_its_own_devices_bound(monkeypatch):
    monkeypatch.setattr(floors, "cpu_rates", lambda precision: SLOW)
    config = {"arch": "wrn-10-1", "batch_size": 1, "precision": "fp32"}

    def record(**more):
        measured = Measurement("fastuiat", [20.0])
        return make_record(
            suite="step", case="c", measured=measured, device=CPU, config=config, **more
        )

    own = record(flops=10 * 10**9)
    assert own["bound_s"] == 10.0 and own["peak_flops_per_s"] == 1e9
    assert own["peak_share"] == 0.5 and own["memory_bytes_per_s"] == 1e6
    assert "bound_s" not in record()
