"""Entries of a published state dict that are no part of the net, and what they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastuiat.config import legible
from fastuiat.models.nests import ATTACKS, Weights, same, words_of

COUNTERS = {"n_averaged", "total_ops", "total_params"}
"""Of AveragedModel, and of a counter of operations."""
MEAN = re.compile(r"mean|(^|_)mu(_|\d|$)")
STD = re.compile(r"std|sigma|stddev|(^|_)sd(_|\d|$)")


@dataclass(frozen=True)
class Constants:
    """A normalisation: mean and std (3,) of pixels in [0, 1], and where they are from."""

    mean: Tensor
    std: Tensor
    origin: str

    def described(self) -> dict[str, object]:
        mean, std = ([round(v, 7) for v in t.flatten().tolist()] for t in (self.mean, self.std))
        return {"mean": mean, "std": std, "from": self.origin}


def channels(value: Tensor) -> bool:
    """Whether it is one number, or one for each channel of a picture."""
    return value.numel() in (1, 3) and value.is_floating_point()


def normalisers(entries: Weights, own: Collection[str]) -> dict[str, tuple[str, str]]:
    """Names of (mean, std) by the module that they stand in, but for entries of the net's own."""
    found: dict[str, dict[str, str]] = {}
    for key, value in entries.items():
        module, _, name = key.rpartition(".")
        if key in own or not channels(value) or "running" in name:
            continue
        if (
            kind := "mean"
            if MEAN.search(name.lower())
            else "std"
            if STD.search(name.lower())
            else ""
        ):
            found.setdefault(module, {})[kind] = key
    return {m: (pair["mean"], pair["std"]) for m, pair in found.items() if len(pair) == 2}


def normalisation_in(
    entries: Weights, own: Collection[str]
) -> tuple[Constants | None, set[str], list[str]]:
    """(the normalisation that stands beside a net, its entries' names, notes)."""
    pairs = normalisers(entries, own)
    names = {name for pair in pairs.values() for name in pair}
    if not pairs:
        return None, names, []
    # The net's own one before an attacker's copy, the outer before the inner.
    module = min(pairs, key=lambda m: (bool(ATTACKS & words_of(m)), m.count("."), m))
    mean, std = (entries[name].float().flatten().expand(3).clone() for name in pairs[module])
    notes = []
    if others := [m for m in pairs if not alike(entries, pairs[m], pairs[module])]:
        said = ", ".join(map(legible, others))
        notes.append(f"another normalisation stands in {said}: that of {legible(module)} was taken")
    if mean.max() > 1 and std.max() <= 255:
        mean, std = mean / 255, std / 255
        notes.append("its normalisation is in grey levels and was divided by 255")
    return Constants(mean, std, f"the file: {', '.join(map(legible, pairs[module]))}"), names, notes


def alike(entries: Weights, one: tuple[str, str], other: tuple[str, str]) -> bool:
    return all(
        torch.equal(entries[a].float().flatten().expand(3), entries[b].float().flatten().expand(3))
        for a, b in zip(one, other, strict=True)
    )


def numbers_in(value: Any) -> list[float] | None:
    """Three numbers, of a tensor, an array or a list; else None."""
    flat = value
    if isinstance(value, Tensor):
        flat = value.flatten().tolist() if value.numel() == 3 and not value.is_meta else None
    elif isinstance(value, np.ndarray):
        flat = value.flatten().tolist() if value.size == 3 else None
    if not isinstance(flat, list | tuple) or len(flat) != 3:
        return None
    return list(map(float, flat)) if all(isinstance(v, int | float) for v in flat) else None


def constants_beside(content: Mapping[Any, Any], depth: int = 2) -> str | None:
    """A mean and a std that a file holds outside all of its nets, as options that say them."""
    found: dict[str, str] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and depth and (said := constants_beside(value, depth - 1)):
            return said
        if isinstance(key, str) and (numbers := numbers_in(value)) and "running" not in key:
            for name, pattern in (("mean", MEAN), ("std", STD)):
                if pattern.search(key.lower()):
                    found[name] = f"--{name} {' '.join(f'{v:.4g}' for v in numbers)}"
    return " ".join((found["mean"], found["std"])) if len(found) == 2 else None


def is_counter(key: str) -> bool:
    return key.rpartition(".")[2] in COUNTERS


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
