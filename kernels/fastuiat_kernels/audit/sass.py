"""Reading NVIDIA machine code: which pointer each global access goes through, and how wide it is.

Kernel parameters lie in constant bank 0 at fixed offsets. Following which registers hold a value
computed from a pointer parameter, through branches and loops, tells for each load and store the
pointer it started from.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)\s*([^;]*);")
_REGISTER = re.compile(r"\b(U?R)(\d+)\b")
_CONSTANT = re.compile(r"c\[0x0\]\[0x([0-9a-f]+)\]")
_RESULT = re.compile(r"(?:U?P\w+,\s*)*(U?R)(\d+)\b")
_LABEL = re.compile(r"(\.L_x_\d+):")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_BRACKETS = re.compile(r"\[([^\]]*)\]")
_GLOBAL = {
    "LDG": "load",
    "LDGSTS": "load",
    "STG": "store",
    "ATOM": "atomic",
    "ATOMG": "atomic",
    "RED": "atomic",
    "REDG": "atomic",
}
_LOCAL = {"LDL", "STL"}
_NO_RESULT = {"STG", "LDGSTS", "STS", "STL", "RED", "REDG", "BRA", "EXIT", "BAR", "PLOP3"}
_FROM_MEMORY = {"LDG", "LDS", "LDL", "LDSM", "ATOMG", "ATOM", "ATOMS", "SHFL", "REDUX"}


Holds = dict[str, frozenset[str]]
"""Per register: the pointer parameters that its value was computed from."""


@dataclass(frozen=True)
class Instruction:
    predicate: bool
    opcode: str
    operands: str


@dataclass
class Block:
    """Instructions that always run one after the other."""

    instructions: list[Instruction] = field(default_factory=list)
    successors: list[int] = field(default_factory=list)
    falls_through: bool = True


@dataclass(frozen=True)
class Access:
    """One global memory instruction: bytes per thread, and the parameters its address may be of."""

    kind: str
    bytes: int
    pointers: frozenset[str]


@dataclass(frozen=True)
class MachineCode:
    accesses: tuple[Access, ...]
    local_accesses: int
    """Loads and stores of local memory: spilled registers."""
    opcodes: Counter[str]
    """How often each is there, without its suffixes."""


def access_bytes(opcode: str) -> int:
    parts = opcode.split(".")
    for suffix, size in (("256", 32), ("128", 16), ("64", 8)):
        if suffix in parts:
            return size
    if {"U8", "S8"} & set(parts):
        return 1
    return 2 if {"U16", "S16", "F16", "BF16"} & set(parts) else 4


def result_registers(opcode: str) -> int:
    """How many 32-bit registers the instruction writes."""
    parts = opcode.split(".")
    if parts[0] in _FROM_MEMORY:
        return max(1, access_bytes(opcode) // 4)
    if "128" in parts:
        return 4
    wide = "WIDE" in parts or "64" in parts or (parts[0] == "CS2R" and "32" not in parts)
    return 2 if wide else 1


def read(text: str, pointers: Mapping[int, str]) -> MachineCode:
    """`text` is nvdisasm's; `pointers` maps the bank offset of a pointer parameter to its name."""
    blocks = _blocks(text)
    entry: list[Holds] = [{} for _ in blocks]
    pending, seen = {0}, {0}
    while pending:  # until nothing new arrives at any block
        index = pending.pop()
        holds = dict(entry[index])
        for instruction in blocks[index].instructions:
            _step(instruction, holds, pointers)
        for successor in blocks[index].successors:
            merged = dict(entry[successor])
            for register, names in holds.items():
                merged[register] = merged.get(register, frozenset()) | names
            if merged != entry[successor] or successor not in seen:
                entry[successor] = merged
                pending.add(successor)
                seen.add(successor)
    accesses, opcodes = [], Counter[str]()
    for block, holds in zip(blocks, entry, strict=True):
        for instruction in block.instructions:
            base = instruction.opcode.split(".")[0]
            opcodes[base] += 1
            if base in _GLOBAL:
                address = _BRACKETS.findall(instruction.operands)[-1]  # a descriptor comes before
                width = access_bytes(instruction.opcode)
                accesses.append(Access(_GLOBAL[base], width, _held(address, holds)))
            _step(instruction, holds, pointers)
    return MachineCode(tuple(accesses), sum(opcodes[base] for base in _LOCAL), opcodes)


def _blocks(text: str) -> list[Block]:
    """The kernel cut at its labels and branches."""
    blocks = [Block()]
    labels: dict[str, int] = {}
    targets: list[str | None] = [None]
    for line in text.splitlines():
        if label := _LABEL.match(line):
            blocks.append(Block())
            targets.append(None)
            labels[label.group(1)] = len(blocks) - 1
        elif found := _INSTRUCTION.search(line):
            instruction = Instruction(bool(found.group(1)), found.group(2), found.group(3))
            blocks[-1].instructions.append(instruction)
            base = instruction.opcode.split(".")[0]
            if base in ("BRA", "EXIT"):
                target = _TARGET.search(instruction.operands)
                targets[-1] = target.group(1) if target else None
                blocks[-1].falls_through = bool(instruction.predicate or "," in found.group(3))
                blocks.append(Block())
                targets.append(None)
    for index, (block, name) in enumerate(zip(blocks, targets, strict=True)):
        if block.falls_through and index + 1 < len(blocks):
            block.successors.append(index + 1)
        if name is not None and name in labels:
            block.successors.append(labels[name])
    return blocks


def _held(operands: str, holds: Holds) -> frozenset[str]:
    registers = _REGISTER.findall(operands)
    return frozenset().union(*(holds.get(k + n, frozenset()) for k, n in registers))


def _step(instruction: Instruction, holds: Holds, pointers: Mapping[int, str]) -> None:
    """What the registers hold after the instruction."""
    base = instruction.opcode.split(".")[0]
    result = _RESULT.match(instruction.operands)
    if base in _NO_RESULT or "SETP" in base or result is None:
        return
    kind, number = result.group(1), int(result.group(2))
    sources = instruction.operands[result.end() :]
    constants = [int(offset, 16) for offset in _CONSTANT.findall(sources)]
    held = _held(sources, holds)
    for i in range(result_registers(instruction.opcode)):
        value: frozenset[str] = frozenset()
        if base not in _FROM_MEMORY:
            step = 4 * i if base in ("LDC", "LDCU", "ULDC") else 0
            names = (pointers.get((offset + step) & ~7) for offset in constants)
            value = held | {name for name in names if name}
        register = f"{kind}{number + i}"
        if instruction.predicate:  # the old value may survive
            value |= holds.get(register, frozenset())
        holds[register] = value
