"""Compile what a launcher launches, for a target that need not be there, and read the result."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fastuiat_kernels.audit import sass
from fastuiat_kernels.audit.targets import Target
from fastuiat_kernels.launch import Launch, watched
from fastuiat_kernels.spec import SIZES, Variant

_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "i1",
}
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Compiled:
    """What one kernel became on one target; widths are None where no disassembler is at hand."""

    kernel: str
    registers: int
    spilled: int
    """Bytes of stack or scratch, spilled registers, and accesses to local memory: 0 is wanted."""
    shared: int
    widths: dict[str, int] | None
    """Narrowest global access per pointer argument, in bytes."""
    unattributed: int
    """Global accesses whose pointer could not be told."""


def launches(variant: Variant, dtype: torch.dtype, size: str) -> list[Launch]:
    """The launches that the launcher makes for a sample input; nothing runs."""
    seen: list[Launch] = []
    with watched(lambda launch, run: seen.append(launch)):
        variant.launcher(**variant.inputs(SIZES[size], dtype, torch.device("cpu")))
    return seen


@dataclass(frozen=True)
class Signature:
    """The arguments as Triton's own launch would specialise them."""

    types: dict[str, str]
    constants: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], list[list[Any]]]

    @classmethod
    def of(cls, launch: Launch) -> Signature:
        types: dict[str, str] = {}
        constants: dict[tuple[int, ...], Any] = {}
        attributes: dict[tuple[int, ...], list[list[Any]]] = {}
        divisible: list[list[Any]] = [["tt.divisibility", 16]]
        for i, parameter in enumerate(launch.kernel.params):
            value = launch.arguments[parameter.name]
            if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
                types[parameter.name] = "constexpr"
                constants[(i,)] = value
            elif isinstance(value, torch.Tensor):
                types[parameter.name] = "*" + _TYPES[value.dtype]
                attributes[(i,)] = divisible  # PyTorch's allocator aligns to 512 bytes
            elif isinstance(value, float):
                types[parameter.name] = "fp32"
            else:
                types[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                if value % 16 == 0:
                    attributes[(i,)] = divisible
        return cls(types, constants, attributes)

    def pointer_offsets(self, base: int) -> dict[int, str]:
        """Offset of each pointer parameter in the constant bank, naturally aligned."""
        offsets, offset = {}, base
        for name, kind in self.types.items():
            if kind == "constexpr":
                continue
            size = 8 if kind.startswith("*") or kind == "i64" else 4
            offset = -(-offset // size) * size
            if kind.startswith("*"):
                offsets[offset] = name
            offset += size
        return offsets


def compile_launch(launch: Launch, target: Target) -> Compiled:
    signature = Signature.of(launch)
    compiled = triton.compile(
        ASTSource(launch.kernel, signature.types, signature.constants, signature.attributes),
        target=GPUTarget(target.backend, target.arch, target.warp_size),
        options={"num_warps": launch.num_warps},
    )
    name, shared = launch.kernel.__name__, compiled.metadata.shared
    if target.backend == "hip":
        return _read_amd(name, compiled.asm["amdgcn"], shared)
    return _read_nvidia(
        name, compiled.asm["cubin"], shared, signature.pointer_offsets(target.parameter_base)
    )


def _read_amd(name: str, assembly: str, shared: int) -> Compiled:
    def metadata(key: str) -> int:
        found = re.search(rf"^\s*\.{key}:\s*(\d+)", assembly, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"{name}: the assembly has no .{key}")
        return int(found.group(1))

    spilled = sum(
        metadata(key)
        for key in ("private_segment_fixed_size", "vgpr_spill_count", "sgpr_spill_count")
    )
    return Compiled(name, metadata("vgpr_count"), spilled, shared, None, 0)


def _tool(tool: str, *arguments: str) -> str:
    command = [str(_TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _read_nvidia(name: str, cubin: bytes, shared: int, pointers: dict[int, str]) -> Compiled:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = sass.read(_tool("nvdisasm", "-c", file.name), pointers)
    resources = {key: int(value) for key, value in re.findall(r"\b([A-Z]+):(\d+)", usage)}
    widths: dict[str, int] = {}
    unattributed = 0
    for access in code.accesses:
        if len(access.pointers) != 1:
            unattributed += 1
            continue
        (pointer,) = access.pointers
        widths[pointer] = min(access.bytes, widths.get(pointer, access.bytes))
    spilled = resources["STACK"] + resources["LOCAL"] + code.local_accesses
    return Compiled(name, resources["REG"], spilled, shared, widths, unattributed)
