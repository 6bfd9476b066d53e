"""Which of the nets that a file holds is meant: averaged or raw, best or last.

A mapping that holds convolutions is a net whatever it is called, and so is each set of keys inside
one that a prefix sets apart. Names only decide which of several is which.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastuiat.config import UserError, legible

Weights = dict[str, Tensor]

KNOWN = (
    "model_state_dict", "state_dict", "net", "model", "model_state", "network", "weights", "params",
    "classifier",
)  # fmt: skip
"""Usual names of the net that a file is about, among others of no meaning known here."""
PLAIN = (
    "model|net(?:work)?|state|dict|weights?|param(?:eter)?s?|classifier|module|best|last|latest"
    "|teacher|student"
)
AVERAGE = (
    "emas?|swa|sma|wa|avg|averaged?|averaging|shadow|polyak|exponentialaverage|meanteacher|emateacher"
    "|exponentialmovingaverage|movingaverage"
)
AVERAGING = re.compile(AVERAGE)
AVERAGED = re.compile(f"(?:{PLAIN})*(?:{AVERAGE})+(?:{PLAIN}|{AVERAGE})*")
RAW = re.compile(
    f"(?:{PLAIN})*(?:un|non|no|not|without|wo|sans|before|pre)(?:{AVERAGE})(?:{PLAIN})*"
    f"|(?:raw|live|online)(?:{PLAIN})*"
)
BEST, LAST = {"best"}, {"last", "latest", "final", "current", "newest"}
ATTACKS = {"attacker", "attack", "adversary", "atk", "pgd"}
ASIDE = {
    "teacher", "helper", "proxy", "awp", "generator", "discriminator", "pretrained", "reference",
}  # fmt: skip
NO_NET = re.compile("optim|sched|scaler|rng|random|config|args|hyper|hist|metric")
STEMS = ("conv1.weight", "init_conv.weight", "conv_2d.weight", "stem_conv.weight")
"""First convolutions of the nets known here, by which a prefix shows."""
MOST_CLAIMED = 1 << 20
"""Bytes up to which a tensor may be an expanded view of fewer."""


def words_of(name: str) -> set[str]:
    return set(re.findall("[a-z]+", name.lower()))


def is_count(key: str) -> bool:
    """Whether an entry says how many nets an AveragedModel has averaged."""
    return key.rpartition(".")[2] == "n_averaged"


@dataclass(frozen=True, eq=False)
class Nest:
    """A net in a file: `path` leads to its mapping, `prefix` is what its keys begin with there."""

    path: tuple[str | int, ...]
    prefix: str
    weights: Weights
    """Without the prefix."""
    rest: Weights
    """What the same mapping holds that is of no net."""

    @property
    def names(self) -> list[str]:
        return [*map(str, self.path), *self.prefix.split(".")]

    @property
    def name(self) -> str:
        """For people."""
        name = ".".join((*map(str, self.path), self.prefix.rstrip("."))).strip(".")
        return legible(name) or "the file itself"

    def says(self, words: set[str]) -> bool:
        return any(words & words_of(name) for name in self.names)

    def matches(self, pattern: re.Pattern[str]) -> bool:
        return any(pattern.fullmatch(re.sub("[^a-z]", "", name.lower())) for name in self.names)

    @property
    def raw(self) -> bool:
        return self.matches(RAW)

    @property
    def aside(self) -> bool:
        """Whether it serves another net's training; the teacher that is an average is the net."""
        return any(
            ASIDE & words_of(name) and not AVERAGED.fullmatch(re.sub("[^a-z]", "", name.lower()))
            for name in self.names
        )

    @property
    def averaged(self) -> bool:
        words = (word for name in self.names for word in words_of(name))
        told = self.matches(AVERAGED) or any(map(AVERAGING.fullmatch, words))
        return not self.raw and (bool(self.counts) or told)

    @property
    def counts(self) -> list[Tensor]:
        """Its `n_averaged`, which stands inside it or beside a module that it is in."""
        found = [v for k, v in self.weights.items() if is_count(k)]
        return found + [
            value
            for key, value in self.rest.items()
            if is_count(key) and self.prefix.startswith(key.removesuffix("n_averaged"))
        ]

    @property
    def which(self) -> str | None:
        return "best" if self.says(BEST) else "last" if self.says(LAST) else None

    @property
    def is_fresh(self) -> bool:
        """Whether its counter says that it averages nothing yet."""
        return any(count.numel() == 1 and count.item() == 0 for count in self.counts)

    def has_shape_of(self, other: Nest) -> bool:
        return {k: v.shape for k, v in self.weights.items()} == {
            k: v.shape for k, v in other.weights.items()
        }

    def equals(self, other: Nest) -> bool:
        if self.weights.keys() != other.weights.keys():
            return False
        return all(same(value, other.weights[key]) for key, value in self.weights.items())


def same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))


def tensors_in(mapping: Mapping[Any, Any], path: tuple[str | int, ...] = ()) -> Weights:
    """Its tensors by name, arrays among them. UserError on one that claims more than it holds."""
    found: Weights = {}
    for key, value in mapping.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
        if not isinstance(key, str) or not isinstance(value, Tensor):
            continue
        if value.layout is not torch.strided or value.is_quantized or value.is_meta:
            continue
        claimed = value.numel() * value.element_size()
        if claimed > max(MOST_CLAIMED, value.untyped_storage().nbytes()):
            name = legible(".".join((*map(str, path), key)))
            raise UserError(
                f"the file is damaged: {name} claims {value.numel()} values and holds "
                f"{value.untyped_storage().nbytes() // value.element_size()}"
            )
        found[key] = value
    return found


def mappings_in(content: Mapping[Any, Any]) -> Iterator[tuple[tuple[str | int, ...], Weights]]:
    """(keys that lead there, tensors) of every mapping that may be a net, outermost first."""
    seen: set[int] = set()
    waiting: list[tuple[tuple[str | int, ...], Mapping[Any, Any]]] = [((), content)]
    while waiting:
        path, mapping = waiting.pop(0)
        if tensors := tensors_in(mapping, path):
            yield path, tensors
        for key, value in mapping.items():
            if not isinstance(key, str | int) or NO_NET.search(str(key).lower()):
                continue
            # One mapping may stand under two names, and each counts; but none inside itself.
            if isinstance(value, Mapping) and (len(path) < 2 or id(value) not in seen):
                seen.add(id(value))
                if len(path) < 8:
                    waiting.append(((*path, key), value))


def unnamed_averages(content: Mapping[Any, Any], depth: int = 3) -> list[str]:
    """Names under which an average lies as a list of tensors, in an order that no file tells."""
    found = []
    for key, value in content.items():
        if isinstance(value, Mapping) and depth:
            inner = unnamed_averages(value, depth - 1)
            found += [f"{legible(key)}.{name}" for name in inner]
        elif isinstance(value, list | tuple) and len(value) > 1:
            plain = re.sub("[^a-z]", "", str(key).lower())
            if AVERAGED.fullmatch(plain) and all(isinstance(v, Tensor) for v in value):
                found.append(legible(key))
    return found


def nests_in(
    content: Mapping[Any, Any], stem: str | None, is_net: Callable[[Weights], bool]
) -> list[Nest]:
    """All nets in a file. `stem` is the first key of the net that is asked for, if it is known."""
    found = list(mappings_in(content))
    for dimensions in (4, 2, 0):
        if kept := [(p, w) for p, w in found if any(t.ndim >= dimensions for t in w.values())]:
            break
    return [nest for path, tensors in kept for nest in parted(path, tensors, stem, is_net)]


def parted(
    path: tuple[str | int, ...],
    tensors: Weights,
    stem: str | None,
    is_net: Callable[[Weights], bool],
) -> list[Nest]:
    """The nets of one mapping, which differ by the prefix of their keys."""
    stems = (*STEMS, stem) if stem else STEMS
    prefixes = dict.fromkeys(  # in the file's order
        key.removesuffix(end)
        for key in tensors
        for end in stems
        if key.endswith(end) and key.removesuffix(end)[-1:] in ("", ".")
    )
    groups: dict[str, Weights] = {}
    for prefix in sorted(prefixes, key=len):
        group = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if is_net(group):
            groups[prefix] = group
    if not groups:
        groups = {(prefix := common_prefix(tensors)): without(tensors, prefix)}
    owned: dict[str, Weights] = {prefix: {} for prefix in groups}
    rest: Weights = {}
    for key, value in tensors.items():
        home = max((p for p in groups if key.startswith(p)), key=len, default=None)
        if home is None:
            rest[key] = value
        else:
            owned[home][key.removeprefix(home)] = value
    return [Nest(path, prefix, weights, rest) for prefix, weights in owned.items()]


def without(tensors: Weights, prefix: str) -> Weights:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "0.", "1.")
"""Data parallelism, torch.compile, a class of one net, nn.Sequential."""


def common_prefix(tensors: Weights) -> str:
    """The wrappers that all keys stand in, of a net that is none of those known here."""
    prefix = ""
    keys = [key for key in tensors if key != "n_averaged"]
    while step := next(
        (w for w in WRAPPERS if keys and all(k.startswith(prefix + w) for k in keys)), None
    ):
        prefix += step
    return prefix


@dataclass
class Choice:
    """The net that was taken, and what is to be said of the choice."""

    nest: Nest
    averaged: bool
    which: str | None = None
    """`best` or `last` of a file that holds both."""
    chosen: list[str] = field(default_factory=list)
    """What was asked for in place of what is taken by default: `last`, `raw`."""
    twin: Nest | None = None
    """The raw net beside an averaged one."""
    others: list[Nest] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def choose(
    nests: Sequence[Nest],
    which: str,
    weights: str,
    fits: Callable[[Nest], bool],
    path: Path,
) -> Choice:
    """The net of `which` and `weights`; UserError where the file leaves more than one, or has none.

    `fits` tells whether a net is of the kind that was asked for.
    """
    left = [nest for nest in nests if not nest.says(ATTACKS)] or list(nests)
    left = [nest for nest in left if not nest.aside] or left
    left = [nest for nest in left if fits(nest)] or left
    groups = {kind: [n for n in left if n.which == kind] for kind in ("best", "last", None)}
    order = ("best", None, "last") if which == "best" else ("last", None, "best")
    taken = next(kind for kind in order if groups[kind])
    has_two = sum(map(bool, groups.values())) > 1
    here = groups[taken]
    chosen = ["last"] if which == "last" and has_two and taken != "best" else []
    averaged = [n for n in here if n.averaged]
    plain = [n for n in here if not n.averaged]
    if not averaged and any(n.raw for n in plain) and not all(n.raw for n in plain):
        averaged = [n for n in plain if not n.raw]
        plain = [n for n in plain if n.raw]
    if weights == "raw" and averaged and not plain:
        raise UserError(
            f"{path} holds an averaged net alone ({averaged[0].name}): leave --weights raw out"
        )
    is_averaged = bool(averaged) and weights != "raw"
    nest = the_one(averaged if is_averaged else plain, path)
    if weights == "raw" and averaged:
        chosen.append("raw")
    twin = the_one(plain, path) if is_averaged and plain else None
    name = taken or ("last" if chosen[:1] == ["last"] else None)
    choice = Choice(nest, is_averaged, name if has_two else None, chosen, twin)
    choice.others = [n for n in nests if n is not nest]
    if is_averaged and nest.is_fresh:
        choice.notes.append(f"{nest.name} averages nothing yet, by its n_averaged of 0")
    for other in choice.others:
        if other.says(ATTACKS):
            relation = "repeats" if other.equals(nest) else "differs from"
            choice.notes.append(f"{other.name} {relation} {nest.name}, which was taken")
            continue
        is_known = other in left and is_partner(other, choice, taken, weights)
        if not is_known and other.has_shape_of(nest) and not other.equals(nest):
            what = "an averaged net" if other.averaged else "another net of this shape"
            choice.notes.append(f"{other.name} is {what}: not taken")
    return choice


def is_partner(other: Nest, choice: Choice, taken: str | None, weights: str) -> bool:
    """Whether a net that was left is the raw, averaged, best or last one to that of the choice."""
    if other is choice.twin or (choice.averaged and other.raw):
        return True
    if other.averaged:
        return weights == "raw" or (choice.averaged and other.which != taken)
    named = other.which is not None or any(name in KNOWN for name in other.names)
    return choice.which is not None and other.which != taken and named


def the_one(nests: Sequence[Nest], path: Path) -> Nest:
    """The only one, or that of a usual name among others; UserError where two could be meant."""
    first, *others = nests
    if all(other.equals(first) for other in others):
        return first
    usual = [n for n in nests if n.path and n.path[-1] in KNOWN]
    if len(usual) == 1:
        return usual[0]
    names = ", ".join(nest.name for nest in nests)
    place = f"torch.load({str(path)!r})" + "".join(f"[{key!r}]" for key in first.path)
    if first.prefix:
        begin = f"k.startswith({first.prefix!r})"
        place = f"{{k[{len(first.prefix)}:]: v for k, v in {place}.items() if {begin}}}"
    raise UserError(
        f"{path} holds several nets ({names}): keep the one that is meant, as "
        f"torch.save({legible(place, 400)}, NEW) does with {first.name}"
    )
