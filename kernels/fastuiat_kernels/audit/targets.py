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
    card: str
    gigabytes_per_second: float
    """Peak memory bandwidth, from the maker's datasheet of `card`."""


TARGETS = {
    target.name: target
    for target in (
        # NVIDIA A100 Tensor Core GPU datasheet (80 GB SXM)
        Target("sm_80", "cuda", 80, 32, 0x160, "A100 SXM 80 GB", 2039),
        # NVIDIA Ampere GA102 GPU architecture whitepaper
        Target("sm_86", "cuda", 86, 32, 0x160, "GeForce RTX 3090", 936),
        # NVIDIA Ada GPU architecture whitepaper
        Target("sm_89", "cuda", 89, 32, 0x160, "GeForce RTX 4090", 1008),
        # NVIDIA H100 Tensor Core GPU datasheet (SXM)
        Target("sm_90", "cuda", 90, 32, 0x210, "H100 SXM 80 GB", 3350),
        # NVIDIA DGX B200 datasheet (64 TB/s over 8 GPUs)
        Target("sm_100", "cuda", 100, 32, 0x380, "B200", 8000),
        # AMD Instinct MI300X data sheet
        Target("gfx942", "hip", "gfx942", 64, 0, "Instinct MI300X", 5300),
    )
}
