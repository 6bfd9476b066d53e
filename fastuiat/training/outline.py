"""What a pickle would make, told without making it: its keys, its names of classes and functions.

Every instruction is followed on plain values alone. Nothing is imported and nothing is called, so
that a file which PyTorch refuses to read can still be described.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

MARK = object()
MOST_STEPS = 1 << 20
"""Instructions that are followed; each may make an object of sixty bytes."""


@dataclass(frozen=True)
class Name:
    """A class or function: `module.name`."""

    path: str


@dataclass(eq=False)
class Made:
    """What calling a Name would give."""

    by: str
    arguments: Any
    items: dict[Any, Any] = field(default_factory=dict)
    """What is then put into it, of a mapping."""
    state: Any = None


@dataclass
class Outline:
    """`content` in plain dicts, lists and `Made`; `names` in order of appearance."""

    content: Any
    names: list[str]
    protocol: int


def outline(content: bytes | IO[bytes]) -> Outline:
    """Follow a pickle of any protocol, of a file from where it is.

    ValueError where it is none, and where it has more than MOST_STEPS.
    """
    machine, protocol = Machine(), 0
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if step == MOST_STEPS:
                raise ValueError("a pickle without end")
            if opcode.name == "STOP":
                break
            if opcode.name == "PROTO":
                protocol = argument or 0
            machine.follow(opcode.name, argument)
        return Outline(machine.stack[-1], list(machine.names), protocol)
    except (
        IndexError, KeyError, TypeError, AttributeError, RecursionError, MemoryError, OverflowError,
    ) as error:  # fmt: skip
        raise ValueError("no pickle") from error


def hashable(key: Any) -> Any:
    return key if isinstance(key, str | int | float | bool | bytes | None) else id(key)


class Machine:
    """The stack and the memo of an unpickler, on values that stand for what would be made."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.names: dict[str, None] = {}

    def follow(self, name: str, argument: Any) -> None:
        if step := getattr(self, f"do_{name.lower()}", None):
            step()
        elif name in ("GLOBAL", "INST"):
            self.push_name(argument.replace(" ", "."))
            if name == "INST":
                made = Made(self.stack.pop().path, tuple(self.marked()))
                self.stack.append(made)
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[int(argument)])
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self.memo[len(self.memo) if name == "MEMOIZE" else int(argument)] = self.stack[-1]
        elif name in ("PERSID", "EXT1", "EXT2", "EXT4"):
            self.stack.append(Made(name, argument))
        elif name not in ("PROTO", "FRAME"):
            self.stack.append(CONSTANTS[name]() if name in CONSTANTS else argument)

    def push_name(self, path: str) -> None:
        self.names[path] = None
        self.stack.append(Name(path))

    def marked(self) -> list[Any]:
        """What stands above the last mark, taken off with it."""
        place = len(self.stack) - 1
        while self.stack[place] is not MARK:
            place -= 1
        above = self.stack[place + 1 :]
        del self.stack[place:]
        return above

    def call(self, arguments: Any) -> None:
        by = self.stack.pop()
        self.stack.append(Made(by.path if isinstance(by, Name) else "?", arguments))

    def put(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        items = target.items if isinstance(target, Made) else target
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            items[hashable(key)] = value

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(values)

    def do_mark(self) -> None:
        self.stack.append(MARK)

    def do_pop(self) -> None:
        self.stack.pop()

    def do_pop_mark(self) -> None:
        self.marked()

    def do_dup(self) -> None:
        self.stack.append(self.stack[-1])

    def do_binpersid(self) -> None:
        self.stack[-1] = Made("storage", self.stack[-1])

    def do_stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_name(f"{module}.{name}")

    def do_reduce(self) -> None:
        self.call(self.stack.pop())

    do_newobj = do_reduce

    def do_newobj_ex(self) -> None:
        self.stack.pop()
        self.call(self.stack.pop())

    def do_obj(self) -> None:
        by, *arguments = self.marked()
        self.stack.append(by)
        self.call(tuple(arguments))

    def do_build(self) -> None:
        state = self.stack.pop()
        if isinstance(target := self.stack[-1], Made):
            target.state = state

    def do_append(self) -> None:
        self.extend([self.stack.pop()])

    def do_appends(self) -> None:
        self.extend(self.marked())

    do_additems = do_appends

    def do_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.put([key, value])

    def do_setitems(self) -> None:
        self.put(self.marked())

    def do_list(self) -> None:
        self.stack.append(self.marked())

    do_frozenset = do_list

    def do_tuple(self) -> None:
        self.stack.append(tuple(self.marked()))

    def do_tuple1(self) -> None:
        self.pack(1)

    def do_tuple2(self) -> None:
        self.pack(2)

    def do_tuple3(self) -> None:
        self.pack(3)

    def pack(self, count: int) -> None:
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(values)

    def do_dict(self) -> None:
        pairs = self.marked()
        self.stack.append({})
        self.put(pairs)


CONSTANTS: dict[str, Any] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_SET": list,
    "EMPTY_TUPLE": tuple,
}


def mapping_of(value: Any) -> dict[Any, Any] | None:
    """The items of a dict, or of what stands for one of another class; else None."""
    if isinstance(value, dict):
        return value
    return value.items if isinstance(value, Made) and value.items else None


def is_module(value: Any) -> bool:
    """Whether it stands for a torch.nn.Module, stored whole."""
    state = mapping_of(value.state) if isinstance(value, Made) else None
    return bool(state) and {"_parameters", "_modules"} <= state.keys()  # type: ignore[union-attr]


def is_state_dict(value: Any) -> bool:
    """Whether it stands for a mapping that holds tensors of at least two dimensions."""
    return any(len(shape_of(tensor)) > 1 for tensor in (mapping_of(value) or {}).values())


def shape_of(value: Any) -> tuple[Any, ...]:
    """The shape of what stands for a tensor or parameter; () of anything else."""
    if not isinstance(value, Made) or not isinstance(arguments := value.arguments, tuple):
        return ()
    if value.by.startswith("torch._utils._rebuild_parameter"):
        return shape_of(arguments[0])
    if value.by.startswith("torch._utils._rebuild_tensor") and len(arguments) > 2:
        return arguments[2] if isinstance(arguments[2], tuple) else ()
    return ()


def nets_in(value: Any) -> Iterator[tuple[tuple[str, ...], bool]]:
    """(keys that lead there, whether it is a module) of all that holds weights, each once."""
    seen: set[int] = set()
    waiting: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while waiting:
        path, value = waiting.pop(0)
        if id(value) in seen:
            continue
        seen.add(id(value))
        if is_module(value) or is_state_dict(value):
            yield path, is_module(value)
        elif inner := mapping_of(value):
            waiting += [((*path, key), item) for key, item in inner.items() if isinstance(key, str)]
