"""The GPUs that the audit compiles for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Target:
    """A GPU architecture, and the memory of one card that has it."""

    name: str
    backend: str
    arch: int | str
    warp_size: int
    parameter_base: int
    """Offset of the first kernel parameter in constant bank 0 (CUDA only)."""
    matrix_instruction: str
    """Which opcodes multiply matrices, as a regular expression."""
    copies_tiles: bool
    """Whether it copies the tiles of tensor descriptors by itself, and its matrix instructions take
    both operands from the shared memory where they arrive."""
    shared_bytes: int
    """Shared memory that one program may have."""
    shared_per_multiprocessor: int
    warps: int
    """That a multiprocessor holds at once; so `most_programs`."""
    most_programs: int
    card: str
    gigabytes_per_second: float
    """Peak memory bandwidth, from the maker's datasheet of `card`."""
    teraflops: float
    """Peak of dense bf16 products with fp32 sums, from the same."""

    def programs(self, registers: int, threads: int, shared: int) -> int:
        """How many programs a multiprocessor holds at once (CUDA only)."""
        by_registers = _REGISTERS // (-(-registers // 8) * 8 * threads)
        by_shared = self.shared_per_multiprocessor // (shared + _RESERVED)
        by_warps = self.warps * self.warp_size // threads
        return min(by_registers, by_shared, by_warps, self.most_programs)


_REGISTERS = 65536
"""Of a multiprocessor, given out to a thread by eights."""
_RESERVED = 1024
"""Bytes of shared memory that the driver takes of each program."""


def _cuda(
    arch: int,
    base: int,
    matrix: str,
    holds: tuple[int, int, int],
    card: str,
    gigabytes_per_second: float,
    teraflops: float,
) -> Target:
    """`holds`: KiB of shared memory, warps and programs of a multiprocessor, from the CUDA C++
    Programming Guide's table of compute capabilities."""
    kib, warps, programs = holds
    return Target(
        name=f"sm_{arch}",
        backend="cuda",
        arch=arch,
        warp_size=32,
        parameter_base=base,
        matrix_instruction=matrix,
        copies_tiles=arch >= 90,
        shared_bytes=1024 * kib - _RESERVED,
        shared_per_multiprocessor=1024 * kib,
        warps=warps,
        most_programs=programs,
        card=card,
        gigabytes_per_second=gigabytes_per_second,
        teraflops=teraflops,
    )


# AMD Instinct MI300X data sheet
_MI300X = Target(
    name="gfx942",
    backend="hip",
    arch="gfx942",
    warp_size=64,
    parameter_base=0,
    matrix_instruction=r"v_mfma_\w+",
    copies_tiles=False,
    shared_bytes=65536,
    shared_per_multiprocessor=65536,
    warps=32,
    most_programs=32,
    card="Instinct MI300X",
    gigabytes_per_second=5300,
    teraflops=1307.4,
)

TARGETS = {
    target.name: target
    for target in (
        # NVIDIA A100 Tensor Core GPU datasheet (80 GB SXM)
        _cuda(80, 0x160, "HMMA", (164, 64, 32), "A100 SXM 80 GB", 2039, 312),
        # NVIDIA Ampere GA102 GPU architecture whitepaper
        _cuda(86, 0x160, "HMMA", (100, 48, 16), "GeForce RTX 3090", 936, 71),
        # NVIDIA Ada GPU architecture whitepaper
        _cuda(89, 0x160, "HMMA", (100, 48, 24), "GeForce RTX 4090", 1008, 165.2),
        # NVIDIA H100 Tensor Core GPU datasheet (SXM)
        _cuda(90, 0x210, "HGMMA", (228, 64, 32), "H100 SXM 80 GB", 3350, 989.4),
        # NVIDIA DGX B200 datasheet (64 TB/s and 72 PFLOPS of fp8, a half of that in bf16, with
        # sparsity a half again, over 8 GPUs)
        _cuda(100, 0x380, r"UTC\w*MMA", (228, 64, 32), "B200", 8000, 2250),
        _MI300X,
    )
}
