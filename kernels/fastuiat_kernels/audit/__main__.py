"""python -m fastuiat_kernels.audit [--target sm_80 …] [--kernel sign_step …] [--json FILE]

Exit code 0 if all is as the specs declare, 1 if a kernel spills, asks for more shared memory than
there is, accesses memory more narrowly than declared, moves more bytes than its floor, or does not
multiply matrices by the target's instructions out of shared memory; 2 on wrong usage.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastuiat_kernels import SPECS
from fastuiat_kernels.audit.targets import TARGETS
from fastuiat_kernels.launch import HAVE_TRITON


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    columns = list(zip(header, *rows, strict=True))
    widths = [max(map(len, column)) for column in columns]
    for row in (header, ["-" * width for width in widths], *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _access(row) -> str:  # type: ignore[no-untyped-def]
    if row.compiled.widths is None:
        said = "not disassembled"
    else:
        said = " ".join(
            f"{name.removesuffix('_ptr')} {width}/{row.declared.get(name, '?')}"
            for name, width in row.compiled.widths.items()
        )
    return said if row.launched else f"not launched there: {said}"


def _lines(report) -> Iterator[str]:  # type: ignore[no-untyped-def]
    yield (
        "Machine code. Programs: that a multiprocessor holds at once. Matrix: instructions that "
        "multiply matrices. By regs: operands of these that are read to registers first. "
        "Access: bytes per access of each pointer / declared possible"
    )
    yield from _table(
        (
            "target",
            "kernel",
            "of",
            "dtype",
            "size",
            "regs",
            "local",
            "shared",
            "programs",
            "matrix",
            "by regs",
            "access",
        ),
        [
            (
                row.target,
                row.compiled.kernel.strip("_").removesuffix("_kernel"),
                row.case.variant,
                row.case.dtype,
                row.case.size,
                str(row.compiled.registers),
                str(row.compiled.spilled),
                str(row.compiled.shared),
                "–" if row.programs is None else str(row.programs),
                "–"
                if row.compiled.matrix_instructions is None
                else str(row.compiled.matrix_instructions),
                str(row.compiled.operands_by_registers),
                _access(row),
            )
            for row in report.code
        ],
    )
    yield ""
    yield "Bytes per element, counted under the interpreter and at least necessary"
    yield from _table(
        ("operation", "dtype", "size", "counted", "floor"),
        [
            (
                row.case.variant,
                row.case.dtype,
                row.case.size,
                f"{sum(row.counted.values()) / row.elements:.3f}",
                f"{sum(row.floor.values()) / row.elements:.3f}",
            )
            for row in report.traffic
        ],
    )
    yield ""
    yield (
        "Lower bound of the time per call: the floor's bytes at the datasheet's bandwidth, or the "
        "products of matrices at its rate, whichever takes longer"
    )
    yield from _table(
        (
            "target",
            "card",
            "GB/s",
            "TFLOP/s",
            "operation",
            "dtype",
            "size",
            "MB",
            "GFLOP",
            "bound (µs)",
        ),
        [
            (
                row.target,
                TARGETS[row.target].card,
                f"{TARGETS[row.target].gigabytes_per_second:g}",
                f"{TARGETS[row.target].teraflops:g}",
                row.case.variant,
                row.case.dtype,
                row.case.size,
                f"{row.bytes / 1e6:.2f}",
                f"{row.flops / 1e9:.2f}",
                f"{row.bound_us:.2f}",
            )
            for row in report.bounds
        ],
    )


def main(arguments: Sequence[str] | None = None) -> int:
    kernels = [spec.name for spec in SPECS]
    parser = argparse.ArgumentParser(prog="python -m fastuiat_kernels.audit", description=__doc__)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--kernel", nargs="+", choices=kernels, default=kernels)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all figures here")
    options = parser.parse_args(arguments)
    if not HAVE_TRITON:
        parser.error("Triton is not installed: pip install triton")
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json {options.json}: there is no such folder")
    from fastuiat_kernels.audit import report as audit  # it imports Triton

    report = audit.run(options.target, options.kernel)
    print("\n".join(_lines(report)))
    if options.json:
        options.json.write_text(json.dumps(report.as_json(), indent=1) + "\n")
    failures = report.failures()
    print()
    for failure in failures:
        print(f"FAILED {failure}")
    count = len(report.code)
    print(f"{count} compiled kernels, {len(report.traffic)} counts: {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
