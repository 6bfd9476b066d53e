"""Where a run's weights come from where they are not random, and the head that learns first."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastuiat.config import UserError
from fastuiat.data import DatasetInfo
from fastuiat.models import build_model
from fastuiat.models.entries import constants_beside
from fastuiat.models.heads import head_keys
from fastuiat.models.interchange import load_published, load_weights, oddities, some
from fastuiat.models.libraries import OWN, at_size, is_of_library, refuse_images
from fastuiat.models.normalised import Normalised, behind, inner, like
from fastuiat.training.checkpoint import content_of, is_own, net_of, refuse_broken
from fastuiat.training.checkpoint_file import locate
from fastuiat.training.config import TrainConfig


@dataclass(frozen=True)
class Start:
    """What is said of the weights that a run begins with."""

    path: str
    sha256: str
    taken: str
    """A line."""
    notes: list[str]


@dataclass(frozen=True)
class Source:
    """A net in a file: its entries by the names of now, and what it is in words."""

    state: dict[str, Tensor]
    arch: str
    words: str
    notes: list[str]
    constants: tuple[Tensor, Tensor] | None = None
    """Mean and std (3,) of a normalisation that it stands behind."""


def refuse_settings(config: TrainConfig) -> None:
    """UserError where the head is to learn first on what is random."""
    if config.freeze_epochs and config.init is None:
        raise UserError(
            "--freeze-epochs holds the weights that --init takes, and without it they are random: "
            "add --init, or leave it out"
        )


def net_info_of(
    config: TrainConfig, info: DatasetInfo, image_shape: tuple[int, int, int]
) -> dict[str, Any]:
    """What checkpoints say of the run's net, and of the images that it knows.

    UserError on another library's net that does not take images of the shape.
    """
    arch = at_size(config.arch, image_shape[-1])
    activation: str = OWN if is_of_library(arch) else config.activation
    if is_of_library(arch):
        make = partial(build_model, arch, info.num_classes)
        refuse_images(make, arch, info.num_classes, image_shape)
    known = {
        "arch": arch,
        "activation": activation,
        "num_classes": info.num_classes,
        "dataset": config.dataset,
        "classes": list(info.classes),
        "resolution": image_shape[-1],
    }
    return known | ({"split_seed": config.seed} if info.is_split_by_seed else {})


def source_in(file: Path, net_info: dict[str, Any]) -> tuple[Source, str]:
    """(the net of a checkpoint or of a published file, SHA-256)."""
    content, sha256, described, _ = content_of(file)
    if is_own(content):
        refuse_broken(content, file)
        return own_source(content, net_info), sha256
    net, info = load_published(
        content, file, net_info["arch"],
        activation=net_info["activation"], dataset=net_info["dataset"], is_ours=True,
    )  # fmt: skip
    notes = info["notes"]
    if info["normalisation"] is None and "arch" not in described:
        beside = constants_beside(content)
        notes.append(
            "the run gives its net pixels in [0, 1]: where these weights were trained on "
            f"normalised ones{f' ({beside})' if beside else ''}, its first layer sees others"
        )
    nest = "" if info["nest"] is None else f"{info['nest']}, "
    words = f"{nest}the {info['weights']} weights"
    return behind_what(net.state_dict(), info["arch"], words, notes), sha256


def own_source(content: dict[str, Any], net_info: dict[str, Any]) -> Source:
    """The averaged net of a run's checkpoint, where there is one, else its raw one."""
    net = net_of(content)
    averaged = content.get("averaged")
    words = f"the {'averaged' if averaged else 'raw'} weights, {net['dataset']} epoch "
    notes = [
        f"they are of a net with {name} {net[name]}, the run's has {net_info[name]}"
        for name in ("arch", "activation")
        if net[name] != net_info[name]
    ]
    state = averaged or content["model"]
    return behind_what(dict(state), net["arch"], f"{words}{content['epoch']}", notes)


def behind_what(state: dict[str, Tensor], arch: str, words: str, notes: list[str]) -> Source:
    """The source, of the net itself where that stands behind a normalisation."""
    own = inner(state)
    if own is None:
        return Source(state, arch, words, notes)
    constants = state["mean"].flatten(), state["std"].flatten()
    return Source(own, arch, f"{words}, behind their normalisation", notes, constants)


def begun(
    init: Path | None, net: nn.Module, net_info: dict[str, Any], state: dict[str, Any] | None
) -> tuple[nn.Module, Start | None]:
    """(the net with the weights of `init`, what is said of them).

    Its head stays as it is where that of the file is of other classes, and a normalisation that
    stands in the file stands before it from then on: also where it goes on from a checkpoint's
    `state`, which is still to be loaded. UserError on a file that is no net of this kind: which
    entries, at most five.
    """
    if state is not None:  # of a run, or of what is found not to be one later
        return like(net, state.get("model", {})), None
    if init is None:
        return net, None
    file = locate(init)
    source, sha256 = source_in(file, net_info)
    own, head = net.state_dict(), head_of(net_info)
    theirs = {key: source.state[key].shape for key in head if key in source.state}
    fits = theirs == {key: own[key].shape for key in head}
    given = source.state
    if not fits:
        given = {k: v for k, v in given.items() if k not in head} | {k: own[k] for k in head}
    hint = "" if source.arch == net_info["arch"] else f"; it is of a {source.arch}"
    load_weights(net, given, file, net_info["arch"], hint)
    if broken := oddities(net):
        raise UserError(f"--init {file} cannot be trained from: {broken[0]}")
    counted, new = len(own), "nothing is new"
    if not fits:
        counts = {shape[head[key]] for key, shape in theirs.items() if len(shape) > head[key]}
        instead = f" in place of {counts.pop()}" if len(counts) == 1 else ""
        counted = len(own) - len(head)
        new = f"new: {some(list(head))}, of {net_info['num_classes']} classes{instead}"
    taken = f"{counted} of {len(own)} entries taken from {file} ({source.words}); {new}"
    start = Start(str(file), sha256, taken, source.notes)
    return (net if source.constants is None else behind(net, *source.constants)), start


def head_of(net_info: dict[str, Any]) -> dict[str, int]:
    """`head_keys` of the run's net."""
    make = partial(build_model, net_info["arch"], activation=net_info["activation"])
    return head_keys(make, net_info["num_classes"])


class HeadFirst:
    """The head alone learns in the first `epochs` epochs; what is below it is held as it came.

    Held is in evaluation mode: BatchNorm keeps the statistics that came with the weights, and
    nothing is dropped out. The attack still goes through all of it.
    """

    def __init__(self, net: nn.Module, head: Collection[str], epochs: int) -> None:
        self.net, self.head, self.epochs = net, set(head), epochs
        self.trained = {name for name, p in net.named_parameters() if p.requires_grad}

    def begin(self, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        """Before the first step of an epoch, or of what is left of it."""
        held = epoch <= self.epochs
        for name, parameter in self.net.named_parameters():
            if name in self.trained:
                parameter.requires_grad_(not held or name in self.head)
        self.net.train()
        if held:
            learning = {key.rpartition(".")[0] for key in self.head}
            for name, module in self.net.named_modules():
                module.training = name == "" or name in learning
        else:
            fill_momenta(optimizer)


def head_first(epochs: int, net: nn.Module, net_info: dict[str, Any]) -> HeadFirst | None:
    """What --freeze-epochs asks for."""
    if not epochs:
        return None
    front = "net." if isinstance(net, Normalised) else ""
    return HeadFirst(net, [front + key for key in head_of(net_info)], epochs)


def fill_momenta(optimizer: torch.optim.Optimizer) -> None:
    """A momentum of 0 for parameters that had no step yet, beside others that had.

    Fused SGD takes all or none; a first step from 0 is what it makes where it has none.
    """
    if not optimizer.state:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"] if group.get("momentum") else ():
            if parameter.requires_grad and not optimizer.state[parameter]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
