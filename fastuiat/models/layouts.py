"""Under which names the entries of published nets stand, and which net that makes them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastuiat.models.nests import Weights
from fastuiat.models.preact_resnet import VARIANTS

Names = tuple[list[tuple[str, str]], tuple[str, str]]
ROBUST_RESNET: dict[str, Names] = {
    "wrn": (
        [
            ("conv1.", "stem_conv."),
            *((f"block{i + 1}.", f"blocks.{i}.") for i in range(3)),
            ("bn1.", "norm1."),
        ],
        (".convShortcut.", ".shortcut.0."),
    ),
    "prn": (
        [
            ("conv1.", "stem_conv."),
            *((f"layer{i + 1}.", f"blocks.{i}.layer.") for i in range(4)),
            ("bn.", "norm1."),
            ("linear.", "fc."),
        ],
        (".shortcut.0.", ".shortcut.0."),
    ),
}
"""Prefixes, and a part inside, as they are here and in RobustBench's robust_resnet.PreActResNet of
basic blocks, where its SiLU nets with symmetric padding are at home."""


@dataclass(frozen=True)
class Layout:
    """What a state dict looks like, for people, and the archs that it may be loaded as here."""

    looks_like: str
    archs: tuple[str, ...]
    num_classes: int

    def __str__(self) -> str:
        return self.looks_like + (f" with {self.num_classes} classes" if self.num_classes else "")

    def hint(self, arch: str | None) -> str:
        """; it looks like … but for an arch that it is said not to fit."""
        alike = {arch} | (VARIANTS.keys() if arch in VARIANTS else set())
        return "" if alike & {*self.archs} else f"; it looks like {self}"


def blocks_in(weights: Weights, stem: str) -> int:
    """How many blocks STEM.0, STEM.1 … there are."""
    pattern = re.compile(re.escape(stem) + r"\.(\d+)\.")
    return 1 + max((int(m[1]) for m in map(pattern.match, weights) if m), default=-1)


def recognise(weights: Weights) -> Layout | None:
    """The net that a state dict looks like; None where it is nothing known here."""

    def rows(key: str) -> int:
        return weights[key].shape[0] if key in weights and weights[key].ndim else 0

    def layout(name: str, archs: tuple[str, ...], head: str) -> Layout:
        return Layout(name, archs, rows(f"{head}.weight"))

    for kind, group, conv, head in (
        ("wrn", "block1.layer", "0.conv1.weight", "fc"),
        ("dm-wrn", "layer.0.block", "0.conv_0.weight", "logits"),
    ):
        if width := rows(f"{group}.{conv}") // 16:
            name = f"{kind}-{6 * blocks_in(weights, group) + 4}-{width}"
            return layout(name, (name,), head)
    if "layer_0.0.conv_2d_1.weight" in weights:
        deep = blocks_in(weights, "layer_0") > 2
        return layout(
            "dm-prn-34" if deep else "dm-prn-18", () if deep else ("dm-prn-18",), "logits"
        )
    if "layer1.0.conv1.weight" not in weights:
        return None
    counts = [blocks_in(weights, f"layer{stage}") for stage in range(1, 5)]
    bottleneck = "layer1.0.conv3.weight" in weights
    depth = "18" if counts == [2, 2, 2, 2] else "?"
    if counts == [3, 4, 6, 3]:
        depth = "50" if bottleneck else "34"
    if any(".downsample." in key for key in weights):
        return layout(f"a torchvision ResNet-{depth}", (), "fc")
    kind = "resnet" if "bn1.weight" in weights else "prn"
    archs: tuple[str, ...] = ()
    if depth == "18" and not bottleneck:
        archs = (f"{kind}-18",) if kind == "resnet" else variants_of(weights)
    return layout(" or ".join(archs) or f"{kind}-{depth}", archs, "linear")


def variants_of(weights: Weights) -> tuple[str, ...]:
    """The pre-activation ResNet-18s that have a state dict's keys."""
    return ("prn-18", "prn-18-v1-bn") if "bn.weight" in weights else ("prn-18-v1",)


def renamed(weights: Weights, names: Names, *, back: bool = False) -> Weights:
    """Other prefixes, and another word inside where there is one; `back` from theirs to ours."""
    prefixes, inner = names
    if back:
        prefixes, inner = [(b, a) for a, b in prefixes], inner[::-1]
    result = {}
    for key, value in weights.items():
        old, new = next(((a, b) for a, b in prefixes if key.startswith(a)), ("", ""))
        result[(new + key.removeprefix(old)).replace(*inner)] = value
    return result


def ours(weights: Weights) -> Weights:
    """RobustBench's robust_resnet under the names of this folder; others as they are."""
    if "stem_conv.weight" not in weights:
        return weights
    kind = "prn" if blocks_in(weights, "blocks") == 4 else "wrn"
    return renamed(weights, ROBUST_RESNET[kind], back=True)
