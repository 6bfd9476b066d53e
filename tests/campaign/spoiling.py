"""Contents made wrong: values inside a document or a checkpoint, the text of one, the file itself.

Values of any shape come from hypothesis; the seed decides them all.
"""

from __future__ import annotations

import math
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import torch
from hypothesis import strategies as st

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-2, 2)
    | st.floats()
    | st.text(max_size=9)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
HUGE = 10**30
NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, math.nan, math.inf, -math.inf, HUGE, -HUGE, 1 << 63, 1 << 31,
    10**9, 10**400, -(10**400), "", "0", "8/255", "nan", "x" * 5000, "\x1b[31mred\x1b[0m", "\x00",
    "\ud800", "a\nb", "é", "..", "/", "../loop", "None", "cifar10", "uiat", "[red]x[/]", [], {},
    [[]], [1, 2], ["a"], {"a": 1}, {"": None},
)  # fmt: skip


def values(seed: int) -> Iterator[Any]:
    """Endless, of VALUES and, as often, of NASTY."""
    drawing = random.Random(seed)
    while True:
        found: list[Any] = []

        @hypothesis.seed(drawing.randrange(1 << 30))
        @hypothesis.settings(
            max_examples=60, database=None, deadline=None, phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )  # fmt: skip
        @hypothesis.given(VALUES)
        def keep(value: Any) -> None:
            found.append(value)  # noqa: B023 (called at once)

        keep()
        for value in found:
            yield value
            yield drawing.choice(NASTY)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where each value inside lists and dicts stands, the whole being ()."""
    yield path
    inside: Any = ()
    if isinstance(value, dict):
        inside = value.items()
    elif isinstance(value, list):
        inside = list(enumerate(value))[:5]
    for key, below in inside:
        yield from places(below, (*path, key))


def changed(value: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> Any:
    """A copy in which what stands at `path` is what `change` makes of it."""
    if not path:
        return change(value)
    key, *rest = path
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = changed(value[key], tuple(rest), change)
    return copy


def removed(value: Any, path: tuple[Any, ...]) -> Any:
    *above, key = path

    def without(inside: Any) -> Any:
        copy = dict(inside) if isinstance(inside, dict) else list(inside)
        del copy[key]
        return copy

    return changed(value, tuple(above), without)


def spoilt_value(value: Any, random: random.Random, other: Iterator[Any]) -> tuple[Any, str]:
    """(a document with one or two values replaced, removed or added, what was done)."""
    said = []
    for _ in range(random.choice((1, 1, 2))):
        path = random.choice(list(places(value)))
        way = random.choice(("replaced", "replaced", "replaced", "removed", "added", "retyped"))
        if way == "removed" and path:
            value = removed(value, path)
            said.append(f"{path} removed")
            continue
        new = next(other)
        if way == "added":
            value = changed(value, path, lambda v, new=new: added(v, new))
        elif way == "retyped":
            value = changed(value, path, lambda v: retyped(v, random))
        else:
            value = changed(value, path, lambda _, new=new: new)
        said.append(f"{path} {way}{'' if way == 'retyped' else f' {shortened(new)}'}")
    return value, ", ".join(said)


def shortened(value: Any) -> str:
    try:
        return ascii(value)[:80]
    except ValueError:  # of a whole number too long for text
        return "a huge number"


def added(value: Any, new: Any) -> Any:
    if isinstance(value, dict):
        return {**value, "added": new}
    return [*value, new] if isinstance(value, list) else [value, new]


def retyped(value: Any, random: random.Random) -> Any:
    """The same in another type."""
    kinds: list[Callable[[Any], Any]] = [str, lambda v: [v], lambda v: {"value": v}]
    if isinstance(value, int | float) and math.isfinite(value):
        kinds += [float, lambda v: -v, bool, lambda v: v * 10**9, lambda v: v + 0.5]
    if isinstance(value, torch.Tensor):
        kinds = TENSORS
    if isinstance(value, dict):
        kinds = [list, lambda v: list(v.items()), lambda v: [v], str]
    try:
        return random.choice(kinds)(value)
    except (OverflowError, ValueError, RuntimeError):
        return None


TENSORS: list[Callable[[Any], Any]] = [
    lambda t: t.to(torch.float64), lambda t: t.to(torch.int64), lambda t: t.to(torch.bool),
    lambda t: t.to(torch.complex64), lambda t: t.to(torch.float16), lambda t: t[None],
    lambda t: t.flatten()[:0], lambda t: t.flatten(), lambda t: t * math.nan, lambda t: t.tolist(),
    lambda t: t.to("meta"), lambda t: t.to_sparse(), lambda t: t.numpy(), lambda t: t.T,
    lambda t: torch.zeros(1).expand(10**9), lambda t: torch.zeros(()), lambda t: t.sum().item(),
    lambda t: torch.nn.Parameter(t), lambda t: t.expand(3, *t.shape),
]  # fmt: skip


TEXTS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "cut": lambda c, r: c[: r.randrange(len(c) + 1)],
    "empty": lambda c, r: b"",
    "blank": lambda c, r: b" \n\t\n",
    "with a BOM": lambda c, r: b"\xef\xbb\xbf" + c,
    "in UTF-16": lambda c, r: c.decode("utf-8", "replace").encode("utf-16"),
    "in UTF-32": lambda c, r: c.decode("utf-8", "replace").encode("utf-32"),
    "NULs": lambda c, r: b"\0" * len(c),
    "a NUL inside": lambda c, r: inserted(c, b"\0", r),
    "no UTF-8": lambda c, r: inserted(c, b"\xff\xfe", r),
    "control characters": lambda c, r: inserted(c, b"\x1b[31m", r),
    "nested": lambda c, r: b"[" * 100_000,
    "nested within": lambda c, r: c.replace(b": ", b": " + 20_000 * b"[", 1),
    "nested names": lambda c, r: b'{"a":' * 100_000,
    "a name twice": lambda c, r: c.replace(b"{", b'{"seed": 1, "seed": 2, "format": 3, ', 1),
    "a huge number": lambda c, r: number_replaced(c, b"9" * 5000, r),
    "a number without end": lambda c, r: number_replaced(c, b"1e999", r),
    "NaN": lambda c, r: number_replaced(c, b"NaN", r),
    "junk behind": lambda c, r: c + b"}{",
    "twice": lambda c, r: c + c,
    "a page": lambda c, r: b"<!DOCTYPE html><html><body>404</body></html>",
    "a pickle": lambda c, r: b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94.",
    "random bytes": lambda c, r: r.randbytes(300),
    "a line of a million": lambda c, r: b'"' + b"a" * 1_000_000 + b'"',
    "lines between": lambda c, r: c.replace(b"\n", b"\r\n"),
    "a bit": lambda c, r: flipped(c, r),
}


def inserted(content: bytes, what: bytes, random: random.Random) -> bytes:
    at = random.randrange(len(content) + 1)
    return content[:at] + what + content[at:]


def number_replaced(content: bytes, new: bytes, random: random.Random) -> bytes:
    found = list(re.finditer(rb"(?<=[:\[,] )-?\d[\d.e+-]*", content))
    if not found:
        return new
    one = random.choice(found)
    return content[: one.start()] + new + content[one.end() :]


def flipped(content: bytes, random: random.Random) -> bytes:
    if not content:
        return content
    at = random.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << random.randrange(8))]) + content[at + 1 :]


def in_place_of(path: Path, random: random.Random) -> str:
    """Something else than a file stands at `path`; returns what."""
    path.unlink(missing_ok=True)
    kind = random.choice(("a folder", "a pipe", "a link to itself", "a link to nothing", "nothing",
                          "an endless device", "a full folder"))  # fmt: skip
    if kind in ("a folder", "a full folder"):
        path.mkdir()
        if kind == "a full folder":
            (path / "x").touch()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a link to itself":
        path.symlink_to(path.name)
    elif kind == "a link to nothing":
        path.symlink_to("nowhere/at/all")
    elif kind == "an endless device":
        path.symlink_to(path.parents[len(path.parts) - path.parts.index("place") - 2] / "zero")
    return kind
