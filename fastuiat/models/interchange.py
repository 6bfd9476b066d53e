"""State dicts that others publish: unwrapped, recognised, fitted to this folder's nets.

Keys are enough to tell the layouts apart, and shapes to tell depth, width and classes. What no file
says is the activation, which of two shortcuts a pre-activation ResNet has (prn-18 or prn-18-v1; the
BatchNorm before its pooling shows, which makes a prn-18-v1 a prn-18-v1-bn), and a normalisation
that was done outside the net.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastuiat.config import UserError
from fastuiat.models import build_model
from fastuiat.models.deepmind import NormalisedInside
from fastuiat.models.normalised import Normalised
from fastuiat.models.preact_resnet import VARIANTS, PreActResNet18, Variant

NESTS = ("model_state_dict", "state_dict", "net", "model")
"""Where a checkpoint keeps its weights."""
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "0.", "1.")
"""Wrappers: data parallelism, torch.compile, a class of one net, nn.Sequential."""
MEANS, STDS = ("mean", "mu"), ("std", "sigma")

Weights = dict[str, Tensor]
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
    """What a state dict looks like, for people, and the arch that it may be loaded as here."""

    looks_like: str
    arch: str | None
    num_classes: int

    def __str__(self) -> str:
        return f"{self.looks_like} with {self.num_classes} classes"


@dataclass(frozen=True)
class Published:
    """An unwrapped state dict. `mean` and `std` (3,) are of a normalisation in front, or None."""

    weights: Weights
    mean: Tensor | None
    std: Tensor | None
    layer_in_front: bool
    """The net was the second part of a Sequential."""


def innermost(content: Mapping[str, Any], which: str) -> Mapping[str, Any]:
    """The state dict inside a checkpoint; `which` picks of a file that holds best and last."""
    for name in (*NESTS, which, "last"):
        if isinstance(inner := content.get(name), Mapping):
            return innermost(inner, which)
    return content


def unwrap(content: Mapping[str, Any], which: str = "best") -> Published:
    """The weights under their net's own names, the normalisation in front of it apart."""
    weights = {k: v for k, v in innermost(content, which).items() if isinstance(v, Tensor)}
    front: dict[str, Tensor] = {}
    for key, value in list(weights.items()):
        name = key.rpartition(".")[2]
        if name in (*MEANS, *STDS) and value.numel() in (1, 3):
            front["mean" if name in MEANS else "std"] = value.float().flatten().expand(3)
            del weights[key]
    second = False
    while prefix := next((p for p in PREFIXES if weights and all_begin(weights, p)), None):
        weights = {k.removeprefix(prefix): v for k, v in weights.items()}
        second |= prefix == "1."
    whole = len(front) == 2
    return Published(
        weights, front["mean"] if whole else None, front["std"] if whole else None, second
    )


def all_begin(weights: Weights, prefix: str) -> bool:
    return all(key.startswith(prefix) for key in weights)


def blocks_in(weights: Weights, stem: str) -> int:
    """How many blocks STEM.0, STEM.1 … there are."""
    pattern = re.compile(re.escape(stem) + r"\.(\d+)\.")
    return 1 + max((int(m[1]) for m in map(pattern.match, weights) if m), default=-1)


def recognise(weights: Weights) -> Layout | None:
    """The net that a state dict looks like; None where it is nothing known here."""

    def rows(key: str) -> int:
        return weights[key].shape[0] if key in weights and weights[key].ndim else 0

    def layout(name: str, arch: str | None, head: str) -> Layout:
        return Layout(name, arch, rows(f"{head}.weight"))

    for kind, group, conv, head in (
        ("wrn", "block1.layer", "0.conv1.weight", "fc"),
        ("dm-wrn", "layer.0.block", "0.conv_0.weight", "logits"),
    ):
        if width := rows(f"{group}.{conv}") // 16:
            name = f"{kind}-{6 * blocks_in(weights, group) + 4}-{width}"
            return layout(name, name, head)
    if "layer_0.0.conv_2d_1.weight" in weights:
        deep = blocks_in(weights, "layer_0") > 2
        return layout("dm-prn-34" if deep else "dm-prn-18", None if deep else "dm-prn-18", "logits")
    if "layer1.0.conv1.weight" not in weights:
        return None
    counts = [blocks_in(weights, f"layer{stage}") for stage in range(1, 5)]
    bottleneck = "layer1.0.conv3.weight" in weights
    depth = "18" if counts == [2, 2, 2, 2] else "?"
    if counts == [3, 4, 6, 3]:
        depth = "50" if bottleneck else "34"
    if any(".downsample." in key for key in weights):
        return layout(f"a torchvision ResNet-{depth}", None, "fc")
    kind = "resnet" if "bn1.weight" in weights else "prn"
    arch = f"{kind}-18" if depth == "18" and not bottleneck else None
    return layout(f"{kind}-{depth}", arch, "linear")


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


def empty_net(arch: str, num_classes: int, activation: str, weights: Weights) -> nn.Module:
    """The net for an arch; a pre-activation ResNet in the variant that its keys show."""
    net = build_model(arch, num_classes, activation)
    if isinstance(net, PreActResNet18):
        variant = Variant(
            raw_shortcut=net.variant.raw_shortcut,
            shortcut_bn="layer2.0.shortcut.1.weight" in weights,
            final_bn="bn.weight" in weights,
        )
        if variant != net.variant:
            return PreActResNet18(num_classes, activation, variant)
    return net


def load_published(
    content: Mapping[str, Any],
    path: Path,
    arch: str | None,
    *,
    activation: str | None = None,
    normalise: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    which: str = "best",
) -> tuple[nn.Module, dict[str, Any]]:
    """(net, info) of a state dict that others published, under any of the layouts known here.

    `activation` is by default SiLU for the dm- nets, else ReLU; `normalise` (mean, std) is what was
    done to [0, 1] pixels outside the net. `info` holds arch, num_classes, activation and
    `normalised`, and a `note` where the file leaves something open. UserError on a misfit: at most
    five keys, and the net that it looks like.
    """
    published = unwrap(content, which)
    weights = published.weights
    if not weights:
        raise UserError(f"{path} holds no state dict")
    if "stem_conv.weight" in weights:
        kind = "prn" if blocks_in(weights, "blocks") == 4 else "wrn"
        weights = renamed(weights, ROBUST_RESNET[kind], back=True)
    weights = {k: v for k, v in weights.items() if not k.startswith("sub_block1.")}
    layout = recognise(weights)
    looks = f"; it looks like {layout}" if layout else ""
    if arch is None:
        raise UserError(f"{path} is a bare state dict: name its net with --arch{looks}")
    if layout and layout.arch == f"dm-{arch}":
        arch = layout.arch
    activation = activation or ("silu" if arch.startswith("dm-") else "relu")
    num_classes = (layout.num_classes if layout else 0) or 10  # an unknown head fits none anyway
    net = empty_net(arch, num_classes, activation, weights)
    mean, std, note = published.mean, published.std, None
    if normalise is not None:
        if mean is not None:
            raise UserError(f"{path} holds its own normalisation: leave --mean and --std out")
        mean, std = (torch.tensor(values) for values in normalise)
    inside = isinstance(net, NormalisedInside)
    if inside:  # whose files mostly leave its two constants out
        buffers = dict(net.named_buffers(recurse=False))
        values = buffers if mean is None or std is None else {"mean": mean, "std": std}
        weights |= {k: v.view(3, 1, 1) for k, v in values.items()}
    load_weights(net, weights, path, arch, looks)
    if isinstance(net, PreActResNet18):  # the name of what its keys show, where it has one
        arch = next((name for name, v in VARIANTS.items() if v == net.variant), arch)
    if not inside and mean is not None and std is not None:
        net = Normalised(net, mean, std)
    elif published.layer_in_front and not inside:
        note = (
            "the state dict is of a net behind another layer that left no values: if that was a "
            "normalisation, give --mean and --std"
        )
    return net, {
        "arch": arch,
        "num_classes": num_classes,
        "activation": activation,
        "normalised": inside or isinstance(net, Normalised),
    } | ({"note": note} if note else {})


def load_weights(net: nn.Module, weights: Any, path: Path, arch: str, looks: str = "") -> None:
    """Fit a state dict; UserError that names at most five keys where it does not.

    BatchNorm's `num_batches_tracked`, which old files lack, moves nothing here and may be absent.
    """
    own = net.state_dict()
    if not isinstance(weights, Mapping):
        raise UserError(f"{path} holds no state dict")
    counters = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")}
    weights = {**counters, **weights}
    wrong = [k for k in own if getattr(weights.get(k), "shape", None) != own[k].shape]
    wrong += [k for k in weights if k not in own]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(
            f"{path} is of another net: {', '.join(wrong[:5])}{more} do not fit {arch}{looks}"
        )
    net.load_state_dict(weights)
