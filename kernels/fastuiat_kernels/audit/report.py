"""The audit itself: compile, count, compare with what the specs declare, and say what fails."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fastuiat_kernels import SPECS
from fastuiat_kernels.audit import compiling, traffic
from fastuiat_kernels.audit.targets import TARGETS
from fastuiat_kernels.spec import Variant

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Case:
    """One variant in one dtype at one size."""

    spec: str
    variant: str
    dtype: str
    size: str


@dataclass(frozen=True)
class CodeRow:
    """One kernel on one target; `declared` are the widths that the spec says are possible."""

    target: str
    case: Case
    compiled: compiling.Compiled
    declared: dict[str, int]
    launched: bool = True
    """False where the operation takes another way on this target: then only how it multiplies
    matrices is asked for."""

    @property
    def programs(self) -> int | None:
        """That a multiprocessor holds at once; None where registers are shared out otherwise."""
        target, compiled = TARGETS[self.target], self.compiled
        if target.backend != "cuda":
            return None
        return target.programs(compiled.registers, compiled.threads, compiled.shared)

    def failures(self) -> list[str]:
        where = f"{self.target}, {self.case.variant}, {self.case.dtype}, {self.compiled.kernel}"
        target, found = TARGETS[self.target], []
        if self.compiled.matrix_instructions == 0:
            found.append(f"{where}: its product takes no {target.matrix_instruction}")
        if not self.launched:
            return found
        if self.compiled.operands_by_registers:
            found.append(f"{where}: operands by registers: {self.compiled.operands_by_registers}")
        if self.compiled.shared > target.shared_bytes:
            found.append(
                f"{where}: {self.compiled.shared} bytes of shared memory, "
                f"a program has {target.shared_bytes}"
            )
        if self.compiled.spilled:
            found.append(f"{where}: {self.compiled.spilled} bytes or accesses of local memory")
        if self.compiled.unattributed:
            found.append(
                f"{where}: {self.compiled.unattributed} accesses of a pointer that cannot be told"
            )
        for pointer, width in (self.compiled.widths or {}).items():
            declared = self.declared.get(pointer)
            if declared is None:
                found.append(f"{where}: {pointer} is not declared")
            elif width < declared:
                found.append(
                    f"{where}: {pointer} is accessed {width} bytes at a time, {declared} declared"
                )
        return found


@dataclass(frozen=True)
class TrafficRow:
    """Bytes of one call, counted and at least necessary, per pointer."""

    case: Case
    elements: int
    counted: dict[str, int]
    floor: dict[str, int]

    def failures(self) -> list[str]:
        where = f"{self.case.variant}, {self.case.dtype}, {self.case.size}"
        return [
            f"{where}: {pointer} moves {moved} bytes, its floor is {self.floor.get(pointer, 0)}"
            for pointer, moved in self.counted.items()
            if moved > self.floor.get(pointer, 0)
        ]


@dataclass(frozen=True)
class BoundRow:
    """Least time of a call if nothing but its bytes and its products of matrices mattered. A bound,
    not a measurement."""

    target: str
    case: Case
    bytes: int
    flops: int
    bound_us: float


@dataclass(frozen=True)
class Report:
    code: list[CodeRow]
    traffic: list[TrafficRow]
    bounds: list[BoundRow]

    def failures(self) -> list[str]:
        rows: list[CodeRow | TrafficRow] = [*self.code, *self.traffic]
        return [failure for row in rows for failure in row.failures()]

    def as_json(self) -> dict[str, Any]:
        import triton

        targets = {row.target for row in self.bounds}
        return {
            "torch": torch.__version__,
            "triton": triton.__version__,
            "targets": {name: asdict(TARGETS[name]) for name in TARGETS if name in targets},
            "machine_code": [asdict(row) | {"programs": row.programs} for row in self.code],
            "traffic": [asdict(row) for row in self.traffic],
            "bounds": [asdict(row) for row in self.bounds],
            "failures": self.failures(),
        }


def _variants(kernels: Iterable[str]) -> list[tuple[str, Variant]]:
    chosen = [spec for spec in SPECS if spec.name in kernels]
    return [(spec.name, variant) for spec in chosen for variant in spec.variants]


def cases(kernels: Iterable[str], sizes: str) -> list[tuple[Case, Variant, torch.dtype]]:
    """In every dtype, at the sizes that the variant names for the purpose."""
    return [
        (Case(spec, variant.name, str(dtype).removeprefix("torch."), size), variant, dtype)
        for spec, variant in _variants(kernels)
        for dtype in variant.dtypes
        for size in getattr(variant, sizes)
    ]


def code_rows(
    case: Case, variant: Variant, dtype: torch.dtype, targets: Iterable[str]
) -> list[CodeRow]:
    """All kernels of one case, for each target."""
    inputs = variant.inputs(variant.sizes[case.size], dtype, CPU)
    declared = {name: pointer.width for name, pointer in variant.pointers(inputs).items()}
    return [
        CodeRow(
            name,
            case,
            compiling.compile_launch(launch, TARGETS[name]),
            declared,
            TARGETS[name].copies_tiles or not variant.by_tiles,
        )
        for launch in compiling.launches(variant, dtype, case.size)
        for name in targets
    ]


def _code_rows(job: tuple[str, int, tuple[str, ...]]) -> list[CodeRow]:
    """A job is small enough to be sent to a process."""
    kernels, number, targets = job
    return code_rows(*cases(kernels.split(","), "audit_sizes")[number], targets)


def _bounds(kernels: Sequence[str], targets: Sequence[str]) -> list[BoundRow]:
    rows = []
    for case, variant, dtype in cases(kernels, "audit_sizes"):
        inputs = variant.inputs(variant.sizes[case.size], dtype, CPU)
        moved, flops = variant.bytes_moved(inputs), variant.flops(inputs)
        for name in targets:
            target = TARGETS[name]
            microseconds = max(
                moved / target.gigabytes_per_second / 1e3, flops / target.teraflops / 1e6
            )
            rows.append(BoundRow(name, case, moved, flops, microseconds))
    return rows


def _traffic_rows(kernels: Sequence[str], counts: dict[str, traffic.Counted]) -> list[TrafficRow]:
    rows = []
    for case, variant, dtype in cases(kernels, "traffic_sizes"):
        inputs = variant.inputs(variant.sizes[case.size], dtype, CPU)
        pointers = variant.pointers(inputs)
        counted = {
            name: distinct if name in pointers and pointers[name].cached else total
            for name, (total, distinct) in counts[
                traffic.key(case.variant, dtype, case.size)
            ].items()
        }
        floor = {name: pointer.bytes for name, pointer in pointers.items()}
        rows.append(TrafficRow(case, variant.elements(inputs), counted, floor))
    return rows


def run(targets: Sequence[str], kernels: Sequence[str]) -> Report:
    """Audit the named kernels for the named targets, on all cores."""
    torch.set_num_threads(1)  # the compiling processes are forked: no thread pool may be alive
    names = ",".join(kernels)
    jobs = [(names, i, tuple(targets)) for i in range(len(cases(kernels, "audit_sizes")))]
    with (
        ThreadPoolExecutor(1) as thread,
        multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool,
    ):
        counting = thread.submit(traffic.count, list(kernels))
        code = [row for rows in pool.imap(_code_rows, jobs) for row in rows]
        counted = counting.result()
    code.sort(key=lambda row: list(TARGETS).index(row.target))
    return Report(code, _traffic_rows(kernels, counted), _bounds(kernels, targets))
