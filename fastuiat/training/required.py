"""The nets that a method requires beside its own: taken from a checkpoint, or trained first.

Either way they end up in the run folder, under their role, and the run depends on nothing outside.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from fastuiat import methods
from fastuiat.config import UserError
from fastuiat.distributed import ALONE, Ranks
from fastuiat.files import write_atomically
from fastuiat.methods import Method
from fastuiat.models.interchange import oddities
from fastuiat.models.libraries import is_of_library
from fastuiat.training.checkpoint import open_checkpoint
from fastuiat.training.checkpoint_file import locate
from fastuiat.training.config import TrainConfig

WHICH = "last"
"""`best` is chosen by accuracy under attack, which a naturally trained net has by chance only."""


def fitting(path: Path, config: TrainConfig, num_classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """(net, info) of a checkpoint; UserError where it is of another net or data set than the run.

    So it is where a weight is not finite.
    """
    net, info = open_checkpoint(path, config.arch, which=WHICH, dataset=config.dataset)
    dataset = info.get("dataset")
    if dataset is None:  # a bare state dict says neither its data set nor its activation
        dataset = config.dataset
        if not info["arch"].startswith("dm-") and not is_of_library(config.arch):
            net, info = open_checkpoint(
                path, config.arch, which=WHICH, activation=config.activation
            )
    if dataset != config.dataset:
        raise UserError(f"--helper {path} is of {dataset}, the run is of {config.dataset}")
    if info["num_classes"] != num_classes:
        raise UserError(
            f"--helper {path} has {info['num_classes']} classes, {config.dataset} has {num_classes}"
        )
    if not all(value.isfinite().all() for value in net.state_dict().values()):
        raise UserError(f"--helper {path} cannot serve: {oddities(net)[0]}")
    return net, info


def check(config: TrainConfig, num_classes: int) -> None:
    """UserError, before anything is written, where --helper cannot serve the method."""
    requires = methods.get(config.method).requires
    if config.helper is None:
        return
    if len(requires) != 1:
        raise UserError(f"--helper: {config.method} needs no other net")
    fitting(config.helper, config, num_classes)


def config_for(role: str, config: TrainConfig) -> TrainConfig:
    """The run that trains the net of a role: the same settings, with the other method."""
    name = methods.get(config.method).requires[role]
    assert config.out is not None
    return dataclasses.replace(
        config,
        method=name,
        settings=methods.get(name).Config(),
        out=config.out / role,
        recipe=None,
        helper=None,
    )


def provide(
    method: Method,
    config: TrainConfig,
    num_classes: int,
    *,
    train: Callable[[TrainConfig], Any],
    say: Callable[[str], None],
    ranks: Ranks = ALONE,
) -> None:
    """Fill `method.helpers`, copying or training (with `train`, which also resumes) as needed.

    Killed at any moment and called again it goes on where it was.
    """
    for role, name in method.requires.items():
        own = config_for(role, config)
        assert own.out is not None
        finished = own.out / "checkpoints" / f"{WHICH}.pt"
        if config.helper is None:
            say(f"{config.method} needs a net trained by {name}: {own.out}, or give --helper")
            train(own)
        else:
            with ranks.agreed():
                if ranks.is_first and not finished.is_file():
                    copy_checkpoint(locate(config.helper, WHICH), finished)
        method.helpers[role], info = fitting(own.out, config, num_classes)
        if config.helper is not None:
            for line in (info["taken"], *info["notes"]):
                say(line)


def copy_checkpoint(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(source, "rb") as content:
        write_atomically(target, lambda file: shutil.copyfileobj(content, file))
