"""State dicts that others publish: unwrapped, recognised, fitted to this folder's nets.

Keys are enough to tell the layouts apart, and shapes to tell depth, width and classes. What no file
says is the activation, which input a pre-activation ResNet's shortcut takes where a BatchNorm
stands before its pooling (prn-18 or prn-18-v1-bn; without it, it is a prn-18-v1 in every public
use), and a normalisation that was done outside the net.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastuiat.config import UserError, legible
from fastuiat.models import build_model
from fastuiat.models.deepmind import PUBLISHED, NormalisedInside
from fastuiat.models.entries import (
    Constants,
    activation_beside,
    constants_beside,
    grouped,
    is_no_part,
    normalisation_in,
    normaliser_names,
    repeated,
)
from fastuiat.models.heads import head_keys, on_meta
from fastuiat.models.layouts import ours, recognise
from fastuiat.models.libraries import OWN, is_of_library
from fastuiat.models.nests import (
    Choice,
    Nest,
    Weights,
    choose,
    nests_in,
    tensors_in,
    unnamed_averages,
)
from fastuiat.models.normalised import behind, constants
from fastuiat.models.preact_resnet import VARIANTS, PreActResNet18, Variant


def empty_net(arch: str, num_classes: int, activation: str, weights: Weights) -> nn.Module:
    """The net for an arch; a pre-activation ResNet in the variant that its keys show."""
    net = build_model(arch, num_classes, activation)
    if isinstance(net, PreActResNet18):
        final_bn = "bn.weight" in weights
        variant = Variant(
            raw_shortcut=net.variant.raw_shortcut or not final_bn,
            shortcut_bn="layer2.0.shortcut.1.weight" in weights,
            final_bn=final_bn,
        )
        if variant != net.variant:
            return PreActResNet18(num_classes, activation, variant)
    return net


@dataclass
class Said:
    """What is known of a state dict beside it, and what comes to light while it is read."""

    path: Path
    arch: str | None
    activation: str | None
    normalise: tuple[tuple[float, ...], tuple[float, ...]] | None
    dataset: str | None
    is_ours: bool
    """The file itself says which net it is."""
    beside: str | None
    """Constants that stand in the file outside its nets, as options."""
    told: str | None
    """The activation that settings in the file name."""
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def load_published(
    content: Mapping[str, Any],
    path: Path,
    arch: str | None,
    *,
    activation: str | None = None,
    normalise: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    which: str = "best",
    weights: str = "averaged",
    dataset: str | None = None,
    is_ours: bool = False,
) -> tuple[nn.Module, dict[str, Any]]:
    """(net, info) of a state dict that others published, under any of the layouts known here.

    `which` and `weights` pick of a file that holds several nets. `activation` is by default SiLU
    for the dm- nets, else ReLU; `normalise` (mean, std) is what was done to [0, 1] pixels outside
    the net; `dataset` decides the constants of a dm- net that leaves them out. `info` holds arch,
    num_classes, activation, normalisation, nest, weights, which, chosen, left_out and notes, as
    load_checkpoint describes them. UserError on a misfit: at most five keys, and the net that it
    looks like.
    """
    beside = constants_beside(content), activation_beside(content)
    said = Said(path, arch, activation, normalise, dataset, is_ours, *beside)
    if normalise is not None:
        constants(*normalise)
    own = keys_of(arch) if arch else []

    def is_net(group: Weights) -> bool:
        return recognise(ours(group)) is not None or (bool(own) and group.keys() >= {*own})

    def fits(nest: Nest) -> bool:
        layout = recognise(ours(nest.weights))
        archs = set(layout.archs) if layout else set()
        archs |= VARIANTS.keys() if archs & VARIANTS.keys() else set()
        return bool(archs & {arch, f"dm-{arch}"}) or (bool(own) and nest.weights.keys() >= {*own})

    nests = nests_in(content, own[0] if own else None, is_net)
    if not nests:
        raise UserError(f"{path} holds no state dict{held(content)}")
    choice = choose(nests, which, weights, fits, path)
    said.notes += choice.notes
    if not choice.averaged and weights == "averaged":
        said.notes += [
            f"{name} is an average without names, which cannot be read: the raw weights were taken"
            for name in unnamed_averages(content)
        ]
    if which == "last" and choice.which != "last":
        said.notes.append("the file holds one net only, and no last one beside a best")
    said.left_out += left_beside(content, choice, is_net)
    net, found = fitted(with_buffers(choice, said), choice.nest.rest, said)
    return net, {
        "nest": ".".join(map(str, choice.nest.path)) or None,
        "weights": "averaged" if choice.averaged else "raw",
        "which": choice.which,
        "chosen": choice.chosen,
        **found,
        "left_out": grouped(said.left_out),
        "notes": said.notes,
    }


def left_beside(
    content: Mapping[Any, Any], choice: Choice, is_net: Callable[[Weights], bool]
) -> list[str]:
    """What a file holds beside the mapping of the net that was taken: its other nets, by name, and
    what stands with them on the way there, but for tensors in that very mapping."""
    nets = [other for other in choice.others if is_net(other.weights)]
    left = [other.name for other in nets]
    inside: Any = content
    for depth in range(len(choice.nest.path) + 1):
        way = choice.nest.path[:depth]
        own = tensors_in(inside) if way == choice.nest.path else {}
        shown = {other.path[: depth + 1] for other in nets}
        for key in inside:
            if key not in own and (*way, key) not in {*shown, choice.nest.path[: depth + 1]}:
                left.append(".".join(map(str, (*way, key))))
        inside = inside[choice.nest.path[depth]] if depth < len(choice.nest.path) else {}
    return left


def held(content: Mapping[str, Any]) -> str:
    keys = [legible(key) for key in content]
    return f": its keys are {', '.join(keys[:8])}" if keys else ""


def keys_of(arch: str) -> list[str]:
    """The entries of the net of an arch, its first layer's first, without counters."""
    state = on_meta(lambda: build_model(arch)).state_dict()
    return [key for key in state if "." in key and not key.endswith("num_batches_tracked")]


def with_buffers(choice: Choice, said: Said) -> Weights:
    """The weights; an average of parameters alone with the BatchNorm statistics of its raw twin."""
    weights = choice.nest.weights
    if choice.twin is None:
        return weights
    missing = {
        key: value
        for key, value in choice.twin.weights.items()
        if key not in weights
        and key.endswith(("running_mean", "running_var", "num_batches_tracked"))
    }
    if any(not key.endswith("num_batches_tracked") for key in missing):
        said.notes.append(
            f"{choice.nest.name} holds no BatchNorm statistics: those of {choice.twin.name} "
            "were taken"
        )
    return weights | missing


def fitted(weights: Weights, rest: Weights, said: Said) -> tuple[nn.Module, dict[str, Any]]:
    """(net, what it is) of one net's entries and of what else stood among them."""
    is_theirs = is_of_library(said.arch or "")
    weights = weights if is_theirs else ours(weights)
    layout = recognise(weights)
    if said.arch is None:
        looks = f"; it looks like {layout}" if layout else ""
        raise UserError(f"{said.path} is a bare state dict: name its net with --arch{looks}")
    arch = said.arch
    if layout and f"dm-{arch}" in layout.archs:
        arch = f"dm-{arch}"
    activation = said.activation or ("silu" if arch.startswith("dm-") else "relu")
    activation = OWN if is_theirs else activation
    if not is_theirs and said.activation is None and said.told not in (None, activation):
        said.notes.append(
            f"settings in the file name the activation {said.told}, and {activation} was taken: "
            f"give --activation {said.told} where the net has it"
        )
    told = classes_in(arch, weights) if is_theirs else layout and layout.num_classes
    num_classes = told or 10  # an unknown head fits none anyway
    make = partial(empty_net, arch, num_classes, activation, weights)
    blank = on_meta(make)
    inside = isinstance(blank, NormalisedInside)
    own = set(blank.state_dict()) - ({"mean", "std"} if inside else set())
    all_of_it = rest | weights
    names = normaliser_names(all_of_it, own)
    hint = layout.hint(arch) if layout else ""
    is_known = is_theirs or not hint
    weights = sorted_out(weights, rest, own, names, said, copies_may_go=is_known)
    placeholders = {k: v for k, v in blank.state_dict().items() if inside and k in ("mean", "std")}
    refuse_misfit(blank, weights | placeholders, said.path, arch, hint)
    by_hand = said.normalise is not None
    found, notes = normalisation_in(all_of_it, own, said.path, by_hand=by_hand)
    said.notes += notes
    given = normalisation(found, blank, num_classes, said)
    if inside and given is not None:  # whose files mostly leave its two constants out
        weights = weights | {k: getattr(given, k).view(3, 1, 1) for k in ("mean", "std")}
    net = make()
    load_weights(net, weights, said.path, arch)
    said.notes += oddities(net)
    arch = named(net, arch, said)
    return net if inside or given is None else behind(net, given.mean, given.std), {
        "arch": arch,
        "num_classes": num_classes,
        "activation": activation,
        "normalisation": given.described() if given else None,
    }


def classes_in(arch: str, weights: Weights) -> int:
    """The number of classes of another library's net, by its head; 0 where there is none."""
    for key, dimension in head_keys(partial(build_model, arch), 10).items():
        if key in weights and weights[key].ndim > dimension:
            return weights[key].shape[dimension]
    return 0


def sorted_out(
    weights: Weights,
    rest: Weights,
    own: set[str],
    normaliser: set[str],
    said: Said,
    *,
    copies_may_go: bool,
) -> Weights:
    """The entries of the net; what is known to be no part of it is listed, the unknown stays in.

    Of a net that looks like another one no copies are left out: its further blocks may be alike.
    """
    kept = {k: v for k, v in weights.items() if k in own or k not in normaliser}
    for key in list(kept):
        # TRADES' WideResNet has a sub_block1 that it never calls.
        if is_no_part(key, kept[key], own) or key.startswith("sub_block1."):
            said.left_out.append(key)
            del kept[key]
    beside = {key for key, value in rest.items() if is_no_part(key, value, own)}
    aside = {k: v for k, v in rest.items() if k not in normaliser and k not in beside}
    said.left_out += [key for key in rest if key in beside and key not in normaliser]
    extra = {k: v for k, v in kept.items() if k not in own}
    for entries in (extra, aside) if copies_may_go else ():
        copies = repeated(entries, {k: v for k, v in kept.items() if k in own})
        said.left_out += sorted(copies)
        kept = {k: v for k, v in kept.items() if k not in copies}
        aside = {k: v for k, v in aside.items() if k not in copies}
    return kept | aside


def normalisation(
    found: Constants | None, net: nn.Module, num_classes: int, said: Said
) -> Constants | None:
    """What is done to the pixels first, and where that is known from; notes on what was guessed."""
    if said.normalise is not None:
        if found is not None:
            raise UserError(f"{said.path} holds its own normalisation: leave --mean and --std out")
        return Constants(*constants(*said.normalise), "--mean and --std")
    if found is not None:
        return found
    if not isinstance(net, NormalisedInside):
        if not said.is_ours:
            there = "the file holds no normalisation, and none was done: "
            if said.beside:
                there = (
                    f"a mean and a std stand beside the net, and none was applied ({said.beside}): "
                )
            said.notes.append(
                f"{there}if the pixels were normalised outside the net, as many nets' are, give "
                "--mean and --std"
            )
        return None
    if said.dataset in PUBLISHED:
        name, origin = (
            said.dataset,
            f"the data set {said.dataset}, as the net's public trainer has it",
        )
    else:
        name = "cifar100" if num_classes == 100 else "cifar10"
        origin = f"the {num_classes} classes: {name}'s"
        said.notes.append(
            f"its normalisation was taken to be {name}'s by its {num_classes} classes: name the "
            "data set, or give --mean and --std, where it is another's"
        )
    mean, std = PUBLISHED[name]
    return Constants(torch.tensor(mean), torch.tensor(std), origin)


def named(net: nn.Module, arch: str, said: Said) -> str:
    """The name of what a pre-activation ResNet's keys show; notes on what they leave open."""
    if not isinstance(net, PreActResNet18):
        return arch
    found = next((name for name, v in VARIANTS.items() if v == net.variant), arch)
    if said.is_ours:
        return found
    if net.variant.final_bn:
        other = "prn-18-v1-bn" if found == "prn-18" else "prn-18"
        said.notes.append(
            f"its keys are those of prn-18 and of prn-18-v1-bn, which differ in what a block's "
            f"shortcut takes: {found} was taken, for {other} say --arch {other}"
        )
    elif arch != found:
        said.notes.append(
            f"without bn.* it is a prn-18-v1, whose shortcuts take a block's raw input: loaded as "
            f"that and not as {arch}"
        )
    return found


def refuse_misfit(net: nn.Module, weights: Weights, path: Path, arch: str, hint: str = "") -> None:
    """UserError that names at most five keys where a state dict is not this net's.

    BatchNorm's `num_batches_tracked`, which old files lack, moves nothing here and may be absent.
    """
    own = net.state_dict()
    wrong = [
        key
        for key, value in own.items()
        if getattr(weights.get(key), "shape", None) != value.shape
        and not (key not in weights and key.endswith("num_batches_tracked"))
    ]
    foreign = [key for key in weights if key not in own]
    if wrong:
        said = f"{some(wrong + foreign)} do not fit {arch}{hint}"
        raise UserError(f"{path} is of another net: {said}")
    if foreign:
        raise UserError(
            f"{path} holds what is no part of a {arch}: {some(foreign)}: if it was never used, "
            f"leave it out of the state dict{hint}"
        )


def some(keys: list[str]) -> str:
    """At most five of them."""
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return ", ".join(map(legible, keys[:5])) + more


def load_weights(net: nn.Module, weights: Any, path: Path, arch: str, hint: str = "") -> None:
    """Fit a state dict; UserError where it does not, which ends in the hint."""
    if not isinstance(weights, Mapping):
        raise UserError(f"{path} holds no state dict")
    refuse_misfit(net, dict(weights), path, arch, hint)
    for key, own in net.state_dict().items():
        kind = weights[key].dtype if key in weights else own.dtype
        if kind.is_complex or own.is_floating_point() > kind.is_floating_point:
            raise UserError(
                f"{path} holds {legible(key)} as {str(kind).removeprefix('torch.')}, which no "
                f"weight of a {arch} is: store it as float32"
            )
    counters = {k: v for k, v in net.state_dict().items() if k.endswith("num_batches_tracked")}
    try:
        net.load_state_dict({**counters, **weights})
    except RuntimeError as error:  # of a dtype or device that cannot be copied
        raise UserError(f"{path} holds weights of {arch} that cannot be copied") from error


def oddities(net: nn.Module) -> list[str]:
    """A note for each kind of values that no working net has."""
    state = {k: v for k, v in net.state_dict().items() if v.is_floating_point()}
    infinite = [key for key, value in state.items() if not value.isfinite().all()]
    negative = [k for k, v in state.items() if k.endswith("running_var") and (v < 0).any()]
    notes = []
    if infinite:
        notes.append(f"it holds weights that are not finite: {some(infinite)}")
    if negative:
        notes.append(f"it holds negative variances: {some(negative)}")
    return notes
