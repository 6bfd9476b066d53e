"""Entries of a published state dict that are no part of the net, and what they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastuiat.config import UserError, legible
from fastuiat.models.nests import ATTACKS, Weights, same, words_of

COUNTERS = {"n_averaged", "total_ops", "total_params"}
"""Of AveragedModel, and of a counter of operations."""
MEAN = re.compile(r"mean|(^|_)mu(_|\d|$)")
STD = re.compile(r"std|sigma|stddev|(^|_)sd(_|\d|$)")
INVERSE = re.compile(r"inv|recip|one_over|(^|_)[ir]_?std")
STATES = {
    "epoch",
    "step",
    "iter",
    "iteration",
    "acc",
    "best",
    "loss",
    "lr",
    "decay",
    "eps",
    "epsilon",
}
"""Words in names of single numbers that a trainer or an attack keeps."""
LOSSES, METRICS = {"criterion", "loss", "losses"}, {"metric", "metrics", "acc", "accuracy"}
"""Words in names of modules that a net is measured with."""


@dataclass(frozen=True)
class Constants:
    """A normalisation: mean and std (3,) of pixels in [0, 1], and where they are from."""

    mean: Tensor
    std: Tensor
    origin: str

    def equals(self, other: Constants) -> bool:
        return self.mean.equal(other.mean) and self.std.equal(other.std)

    def described(self) -> dict[str, object]:
        mean, std = ([round(v, 7) for v in t.flatten().tolist()] for t in (self.mean, self.std))
        return {"mean": mean, "std": std, "from": self.origin}


def channels(value: Tensor) -> bool:
    """Whether it is one number, or one for each channel of a picture."""
    return value.numel() in (1, 3) and not value.is_complex() and value.dtype is not torch.bool


def kind_of(name: str) -> str:
    """`mean`, `std`, `inverse` of a std, or nothing of these, by the name of an entry."""
    name = name.lower()
    if MEAN.search(name):
        return "mean"
    return ("inverse" if INVERSE.search(name) else "std") if STD.search(name) else ""


def normalisers(entries: Weights, own: Collection[str]) -> dict[str, dict[str, list[str]]]:
    """Names by kind by the module that they stand in, but for entries of the net's own."""
    found: dict[str, dict[str, list[str]]] = {}
    for key, value in entries.items():
        module, _, name = key.rpartition(".")
        if key not in own and channels(value) and "running" not in name and kind_of(name):
            found.setdefault(module, {}).setdefault(kind_of(name), []).append(key)
    return {m: kinds for m, kinds in found.items() if "mean" in kinds and len(kinds) > 1}


def normaliser_names(entries: Weights, own: Collection[str]) -> set[str]:
    modules = normalisers(entries, own).values()
    return {key for kinds in modules for keys in kinds.values() for key in keys}


def normalisation_in(
    entries: Weights, own: Collection[str], path: Path, *, by_hand: bool
) -> tuple[Constants | None, list[str]]:
    """(the normalisation that stands beside a net, notes).

    UserError where it leaves open what is done, but for one given `by_hand`, which decides then.
    """
    modules = normalisers(entries, own)
    if not modules:
        return None, []

    # The net's own one before an attacker's copy, the outer before the inner.
    def place(module: str) -> tuple[bool, int]:
        return bool(ATTACKS & words_of(module)), len(module.split(".")) if module else 0

    first, *inner = sorted(modules, key=lambda m: (*place(m), m))
    try:
        taken, notes = constants_of(entries, modules[first])
        others = [m for m in inner if not gives(entries, modules[m], taken)]
        if rivals := [m for m in others if place(m) == place(first)]:
            said = ", ".join(map(legible, [first, *rivals]))
            raise Unclear(f"holds several normalisations, in {said}")
    except Unclear as error:
        if by_hand:
            return None, [f"it {error}: --mean and --std were taken in its place"]
        raise UserError(f"{path} {error}: say what is done by --mean and --std") from error
    if others:
        said = ", ".join(map(legible, others))
        notes.append(f"another normalisation stands in {said}: that of {legible(first)} was taken")
    return taken, notes


def gives(entries: Weights, kinds: dict[str, list[str]], expected: Constants) -> bool:
    try:
        return constants_of(entries, kinds)[0].equals(expected)
    except Unclear:
        return False


class Unclear(Exception):
    """What a file holds in place of a normalisation, in words that go on from its name."""


def constants_of(entries: Weights, kinds: dict[str, list[str]]) -> tuple[Constants, list[str]]:
    """(the constants of one module's entries, notes); Unclear where they are none."""
    keys = [kinds["mean"][0], kinds.get("std", kinds.get("inverse", []))[0]]
    said = ", ".join(map(legible, keys))
    mean, std = (entries[key].float().flatten().expand(3).clone() for key in keys)
    for alike in kinds.values():
        first = entries[alike[0]].float().flatten().expand(3)
        if any(not entries[k].float().flatten().expand(3).equal(first) for k in alike[1:]):
            raise Unclear(f"holds several of a kind: {', '.join(map(legible, alike))}")
    if "bgr" in said.lower():
        raise Unclear(f"holds constants in the order of blue, green, red ({said})")
    notes = []
    if "std" not in kinds:
        std = 1 / std
        notes.append(f"{legible(keys[1])} was taken to be 1 / std, and std is its inverse")
        said += ", inverted"
    mean, std, levels = in_pixels(mean, std, said)
    notes += [f"its {name} is in grey levels and was divided by 255" for name in levels[:1]]
    return Constants(mean, std, f"the file: {said}"), notes


def in_pixels(mean: Tensor, std: Tensor, said: str) -> tuple[Tensor, Tensor, list[str]]:
    """(mean, std) (3,) of pixels in [0, 1], and which of them were in grey levels, in words.

    A mean in grey levels is 2 or more, a std too; no picture's pixels in [0, 1] have a std above
    0.5, and one of 1 is none beside a mean in grey levels. Unclear where that does not decide.
    """
    if not (std.min() > 0 and std.isfinite().all() and mean.isfinite().all()):
        raise Unclear(f"holds a normalisation that is none ({said})")
    if mean.min() < 0:
        raise Unclear(f"holds a negative mean ({said})")
    high = {"mean": mean.max().item(), "std": std.max().item()}
    levels = [name for name, value in high.items() if value >= 2]
    odd = any(1 < value < 2 or value > 255 for value in high.values())
    if levels == ["mean"]:
        odd |= not 0.02 <= std.min().item() <= high["std"] <= 0.5
    if levels == ["std"]:
        odd |= high["mean"] > 0 and std.min().item() < 2
    if odd:
        raise Unclear(
            f"holds a normalisation that is neither of pixels in [0, 1] nor of grey levels ({said})"
        )
    mean, std = mean / (255 if "mean" in levels else 1), std / (255 if "std" in levels else 1)
    words = {2: ["normalisation"], 1: [f"{name} alone" for name in levels], 0: []}
    return mean, std, words[len(levels)]


def numbers_in(value: Any) -> list[float] | None:
    """Three numbers, of a tensor, an array, a list or a text; else None."""
    flat = value
    if isinstance(value, Tensor):
        flat = value.flatten().tolist() if value.numel() == 3 and not value.is_meta else None
    elif isinstance(value, np.ndarray):
        flat = value.flatten().tolist() if value.size == 3 else None
    elif isinstance(value, str) and len(value) < 200:
        flat = re.findall(r"[^\s,;()\[\]]+", value)
    if not isinstance(flat, list | tuple) or len(flat) != 3:
        return None
    try:
        return [float(v) for v in flat]
    except (TypeError, ValueError):
        return None


def settings_in(content: Any, depth: int = 3) -> Iterator[Mapping[Any, Any]]:
    """The mapping and all inside it, objects of settings among them, outermost first."""
    waiting = [(content, depth)]
    while waiting:
        value, left = waiting.pop(0)
        inside = value if isinstance(value, Mapping) else getattr(value, "__dict__", None)
        if isinstance(value, Tensor | np.ndarray) or not isinstance(inside, Mapping):
            continue
        yield inside
        if left:
            waiting += [(v, left - 1) for v in inside.values()]


def constants_beside(content: Mapping[Any, Any]) -> str | None:
    """A mean and a std that a file holds outside all of its nets, as options that say them."""
    for settings in settings_in(content):
        found: dict[str, list[float]] = {}
        for key, value in settings.items():
            if isinstance(key, str) and "running" not in key and (numbers := numbers_in(value)):
                found.setdefault(kind_of(key), numbers)
        if "inverse" in found and all(found["inverse"]):
            found.setdefault("std", [1 / v for v in found["inverse"]])
        if {"mean", "std"} <= found.keys():
            try:
                both = in_pixels(torch.tensor(found["mean"]), torch.tensor(found["std"]), "")[:2]
            except Unclear:
                return f"mean {spaced(found['mean'])}, std {spaced(found['std'])}"
            return " ".join(
                f"--{name} {spaced(numbers.tolist())}"
                for name, numbers in zip(("mean", "std"), both, strict=True)
            )
    return None


def spaced(numbers: Iterable[float]) -> str:
    return " ".join(f"{v:.4g}" for v in numbers)


def activation_beside(content: Mapping[Any, Any]) -> str | None:
    """relu or silu, where the settings in a file name one."""
    names = {"relu": "relu", "silu": "silu", "swish": "silu"}
    for settings in settings_in(content):
        for key in ("activation", "act", "act_fn", "activation_fn", "activation_name"):
            if isinstance(told := settings.get(key), str):
                word = re.sub(
                    r"^(torch)?\.?(nn)?\.?(functional)?\.?|\(.*\)$", "", told.strip().lower()
                )
                if word in names:
                    return names[word]
    return None


def is_counter(key: str) -> bool:
    return key.rpartition(".")[2] in COUNTERS


def is_no_part(key: str, value: Tensor, own: Collection[str]) -> bool:
    """Whether an entry beside a net is what trainers keep there, and nothing that it computes with.

    Empty tensors, whole numbers and flags outside its modules, what losses and metrics hold.
    """
    if key in own:
        return False
    if is_counter(key) or value.numel() == 0:
        return True
    first = key.split(".")[0]
    if first in {name.split(".")[0] for name in own}:
        return False
    whole = not value.is_floating_point() and not value.is_complex()
    counted = value.numel() == 1 and (whole or bool(words_of(key) & STATES))
    measured = bool(words_of(first) & METRICS) and (whole or value.ndim < 2)
    return counted or measured or bool(words_of(first) & LOSSES)


def repeated(extra: Weights, weights: Weights) -> set[str]:
    """Names in `extra` of modules that repeat a module of `weights`, value for value.

    All entries of a module must repeat one module's, and something must tell it from a fresh one:
    a shared storage, or values that are not all the same number.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    for key, value in extra.items():
        module, _, name = key.rpartition(".")
        modules.setdefault(module, {})[name] = value
    found: set[str] = set()
    for module, entries in modules.items():
        if any(repeats(entries, weights, to) for to in homes_of(entries, weights)):
            found |= {f"{module}.{name}".lstrip(".") for name in entries}
    return found


def homes_of(entries: Weights, weights: Weights) -> list[str]:
    """Prefixes in `weights` of modules that have all the names."""
    name = next(iter(entries))
    ends = [key.removesuffix(name) for key in weights if key.endswith(name)]
    return [
        home
        for home in ends
        if home[-1:] in ("", ".") and all(home + name in weights for name in entries)
    ]


def repeats(entries: Weights, weights: Weights, home: str) -> bool:
    pairs = [(value, weights[home + name]) for name, value in entries.items()]
    if all(value.data_ptr() == own.data_ptr() and value.shape == own.shape for value, own in pairs):
        return True
    varied = any(own.numel() > 1 and own.min() < own.max() for _, own in pairs)
    return varied and all(same(value, own) for value, own in pairs)


def grouped(names: Iterable[str], most: int = 3) -> list[str]:
    """Names for people: more than `most` that begin alike are one with a star and their count."""
    parts: dict[str, list[str]] = {}
    for name in names:
        parts.setdefault(legible(name).split(".")[0], []).append(legible(name))
    result = []
    for first, inside in parts.items():
        result += inside if len(inside) <= most else [f"{first}.* ({len(inside)})"]
    return result
