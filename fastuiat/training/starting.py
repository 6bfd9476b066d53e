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
from fastuiat.models import build_model
from fastuiat.models.entries import constants_beside
from fastuiat.models.heads import head_keys
from fastuiat.models.interchange import load_published, load_weights, oddities, some
from fastuiat.training.checkpoint import content_of, is_own, locate, net_of, refuse_broken
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
    words: str
    notes: list[str]
    hint: str = ""
    """What a misfit ends in."""


def refuse_settings(config: TrainConfig) -> None:
    """UserError where the head is to learn first on what is random."""
    if config.freeze_epochs and config.init is None:
        raise UserError(
            "--freeze-epochs holds the weights that --init takes, and without it they are random: "
            "add --init, or leave it out"
        )


def source_in(file: Path, config: TrainConfig) -> tuple[Source, str]:
    """(the net of a checkpoint or of a published file, SHA-256)."""
    content, sha256, described, _ = content_of(file)
    if is_own(content):
        refuse_broken(content, file)
        return own_source(content, config), sha256
    net, info = load_published(
        content, file, config.arch,
        activation=config.activation, dataset=config.dataset, is_ours=True,
    )  # fmt: skip
    if info["normalisation"] and not info["arch"].startswith("dm-"):
        raise UserError(
            f"--init {file} holds a normalisation of its own, and the nets of a run take pixels in "
            "[0, 1]: no weights behind it can be taken"
        )
    notes = info["notes"]
    if info["normalisation"] is None and "arch" not in described:
        beside = constants_beside(content)
        notes.append(
            "the run gives its net pixels in [0, 1]: where these weights were trained on "
            f"normalised ones{f' ({beside})' if beside else ''}, its first layer sees others"
        )
    nest = "" if info["nest"] is None else f"{info['nest']}, "
    return Source(net.state_dict(), f"{nest}the {info['weights']} weights", notes), sha256


def own_source(content: dict[str, Any], config: TrainConfig) -> Source:
    """The averaged net of a run's checkpoint, where there is one, else its raw one."""
    net = net_of(content)
    averaged = content.get("averaged")
    words = f"the {'averaged' if averaged else 'raw'} weights, {net['dataset']} epoch "
    notes = [
        f"they are of a net with {name} {net[name]}, the run's has {getattr(config, name)}"
        for name in ("arch", "activation")
        if net[name] != getattr(config, name)
    ]
    hint = "" if net["arch"] == config.arch else f"; it is of a {net['arch']}"
    state = averaged or content["model"]
    return Source(dict(state), f"{words}{content['epoch']}", notes, hint)


def start_of(config: TrainConfig, net: nn.Module, num_classes: int) -> Start | None:
    """Give the net what `--init` has; its head stays as it is where that is of other classes.

    UserError on a file that is no net of this kind: which entries, at most five.
    """
    if config.init is None:
        return None
    file = locate(config.init)
    source, sha256 = source_in(file, config)
    own = net.state_dict()
    head = head_of(config, num_classes)
    theirs = {key: source.state[key].shape for key in head if key in source.state}
    fits = theirs == {key: own[key].shape for key in head}
    given = source.state
    if not fits:
        given = {k: v for k, v in given.items() if k not in head} | {k: own[k] for k in head}
    load_weights(net, given, file, config.arch, source.hint)
    if broken := oddities(net):
        raise UserError(f"--init {file} cannot be trained from: {broken[0]}")
    counted = len(own) if fits else len(own) - len(head)
    new = "nothing is new"
    if not fits:
        counts = {shape[head[key]] for key, shape in theirs.items() if len(shape) > head[key]}
        instead = f" in place of {counts.pop()}" if len(counts) == 1 else ""
        new = f"new: {some(list(head))}, of {num_classes} classes{instead}"
    taken = f"{counted} of {len(own)} entries taken from {file} ({source.words}); {new}"
    return Start(str(file), sha256, taken, source.notes)


def head_of(config: TrainConfig, num_classes: int) -> dict[str, int]:
    """`head_keys` of the run's net."""
    make = partial(build_model, config.arch, activation=config.activation)
    return head_keys(make, num_classes)


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


def head_first(config: TrainConfig, net: nn.Module, num_classes: int) -> HeadFirst | None:
    """What --freeze-epochs asks for."""
    if not config.freeze_epochs:
        return None
    return HeadFirst(net, head_of(config, num_classes), config.freeze_epochs)


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
