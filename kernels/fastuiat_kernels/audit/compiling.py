"""Compile what a launcher launches, for a target that need not be there, and read the result."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import expand_signature
from triton.compiler import ASTSource
from triton.tools.tensor_descriptor import TensorDescriptor

from fastuiat_kernels.audit import sass
from fastuiat_kernels.audit.targets import Target
from fastuiat_kernels.launch import Launch, watched
from fastuiat_kernels.spec import Variant

_TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "i1",
}
_DESCRIPTOR = "nvTmaDesc"
_SIZES = {_DESCRIPTOR: 128, "i64": 8, "i1": 1}
"""Bytes of a kernel's parameter where not 4."""
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Compiled:
    """What one kernel became on one target; widths are None where no disassembler is at hand."""

    kernel: str
    registers: int
    spilled: int
    """Bytes of stack or scratch, spilled registers, and accesses to local memory: 0 is wanted."""
    threads: int
    shared: int
    matrix_instructions: int | None
    """That multiply matrices in the target's own way; None of a kernel without such a product."""
    operands_by_registers: int
    """Tiles that a loop with a product takes from shared memory to registers, where the target's
    matrix instructions would read them there: 0 is wanted."""
    widths: dict[str, int] | None
    """Narrowest global access per pointer argument, in bytes."""
    unattributed: int
    """Global accesses whose pointer could not be told."""


def launches(variant: Variant, dtype: torch.dtype, size: str) -> list[Launch]:
    """The launches that the launcher makes for a sample input; nothing runs."""
    seen: list[Launch] = []
    with watched(lambda launch, run: seen.append(launch)):
        variant.launcher(**variant.inputs(variant.sizes[size], dtype, torch.device("cpu")))
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
            elif isinstance(value, TensorDescriptor):
                block = ", ".join(map(str, value.block_shape))
                types[parameter.name] = f"tensordesc<{_TYPES[value.base.dtype]}[{block}]>"
            elif isinstance(value, float):
                types[parameter.name] = "fp32"
            else:
                types[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
                if value % 16 == 0:
                    attributes[(i,)] = divisible
        return cls(types, constants, attributes)

    def pointer_offsets(self, base: int, descriptors: Sequence[Any] | None) -> dict[int, str]:
        """Offset of each pointer parameter in the constant bank, naturally aligned.

        `descriptors`: what the compiler says of tensor descriptors, if it kept them whole: else
        each has become a pointer, by its own name here, and numbers.
        """
        offsets, offset = {}, base
        for name, kind in self.types.items():
            if kind == "constexpr":
                continue
            for part in expand_signature([kind], descriptors, _DESCRIPTOR):
                size = _SIZES.get(part, 8 if part.startswith("*") else 4)
                offset = -(-offset // min(size, 64)) * min(size, 64)
                if part.startswith("*"):
                    offsets[offset] = name
                offset += size
        return offsets


def compile_launch(launch: Launch, target: Target) -> Compiled:
    signature = Signature.of(launch)
    compiled = triton.compile(
        ASTSource(launch.kernel, signature.types, signature.constants, signature.attributes),
        target=GPUTarget(target.backend, target.arch, target.warp_size),
        options=launch.options,
    )
    by_registers = _operands_by_registers(compiled.asm["ttgir"]) if target.copies_tiles else 0
    read = _read_amd if target.backend == "hip" else _read_nvidia
    code = read(launch.kernel.__name__, compiled, target, signature)
    matrix = code.pop("matrix")
    return Compiled(
        kernel=launch.kernel.__name__,
        threads=launch.num_warps * target.warp_size,
        shared=compiled.metadata.shared,
        matrix_instructions=matrix if "tt.dot " in compiled.asm["ttir"] else None,
        operands_by_registers=by_registers,
        **code,
    )


def _operands_by_registers(ttgir: str) -> int:
    """Loads from shared memory to registers in loops that hold a product of matrices."""
    found = 0
    for loop in re.findall(r"^( +)(\S.*scf\.for.*$(?:\n\1 .*)*)", ttgir, re.MULTILINE):
        if re.search(r"ttng\.(warp_group_dot|tc_gen5_mma)\b|tt\.dot\b", loop[1]):
            found += len(re.findall(r"ttg\.local_load\b", loop[1]))
    return found


def _read_amd(name: str, compiled: Any, target: Target, signature: Signature) -> dict[str, Any]:
    assembly = compiled.asm["amdgcn"]

    def metadata(key: str) -> int:
        found = re.search(rf"^\s*\.{key}:\s*(\d+)", assembly, re.MULTILINE)
        if found is None:
            raise RuntimeError(f"{name}: the assembly has no .{key}")
        return int(found.group(1))

    spilled = sum(
        metadata(key)
        for key in ("private_segment_fixed_size", "vgpr_spill_count", "sgpr_spill_count")
    )
    return {
        "registers": metadata("vgpr_count"),
        "spilled": spilled,
        "matrix": len(re.findall(rf"^\s*{target.matrix_instruction}\b", assembly, re.MULTILINE)),
        "widths": None,
        "unattributed": 0,
    }


def _tool(tool: str, *arguments: str) -> str:
    command = [str(_TOOLS / tool), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _read_nvidia(name: str, compiled: Any, target: Target, signature: Signature) -> dict[str, Any]:
    pointers = signature.pointer_offsets(target.parameter_base, compiled.metadata.tensordesc_meta)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
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
    matrix = re.compile(target.matrix_instruction)
    return {
        "registers": resources["REG"],
        "spilled": resources["STACK"] + resources["LOCAL"] + code.local_accesses,
        "matrix": sum(n for opcode, n in code.opcodes.items() if matrix.fullmatch(opcode)),
        "widths": widths,
        "unattributed": unattributed,
    }
