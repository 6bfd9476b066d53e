"""What ranks of a run must have in common, refused before the first step where they have not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from fastuiat import machine
from fastuiat.config import UserError
from fastuiat.distributed import Ranks
from fastuiat.training.config import TrainConfig, plain
from fastuiat.writer import LOCK

MACHINES_OWN = {"workers", "loader", "data_dir"}
"""Settings that move no number, nor what the ranks do together."""
SEEN_WITHIN = 30.0
"""Seconds in which one machine sees what another has written to a network's disk."""


def refuse_uneven(config: TrainConfig, ranks: Ranks) -> None:
    """UserError where a batch cannot be cut into parts of one size."""
    if config.batch_size % (ranks.world * config.accumulate):
        raise UserError(
            f"--batch-size {config.batch_size} does not divide by {ranks.world} ranks of "
            f"{config.accumulate} parts"
        )


def refuse_unlike_ranks(config: TrainConfig, ranks: Ranks) -> None:
    """UserError where a rank would train by other settings or another version than rank 0."""
    settings = {k: v for k, v in plain(config).items() if k not in MACHINES_OWN}
    versions = {"PyTorch": torch.__version__, "fastuiat": machine.versions()["fastuiat"]}
    ranks.refuse_differences(versions | dict(flags(settings)))


def refuse_unlike_data(known_by: dict[str, Any], ranks: Ranks) -> None:
    """UserError where a rank has other data than rank 0, by their fingerprints."""
    names = {"train": "training set", "extra": "--extra-data", "split": "split of the training set"}
    ranks.refuse_differences(
        {
            name: known_by[part]["sha256"][:12] if known_by[part] else None
            for part, name in names.items()
        }
    )


def flags(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(flag, value) of all settings, those of the method and its attack among them."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from flags(value)
        else:
            yield f"--{name.replace('_', '-')}", value


def refuse_unseen(folder: Path, ranks: Ranks) -> None:
    """UserError where a rank does not see the run folder that rank 0 has locked."""
    if ranks.world == 1:
        return
    told = ranks.of_all(signature(folder) if ranks.is_first else None)[0]
    until = time.monotonic() + SEEN_WITHIN
    while (seen := signature(folder) == told) is False and time.monotonic() < until:
        time.sleep(0.2)
    blind = [f"rank {rank}" for rank, sees in enumerate(ranks.of_all(seen)) if not sees]
    if blind:
        raise UserError(
            f"{' and '.join(blind)} cannot see the run folder {folder} of rank 0: put it "
            "where all machines find it by that name"
        )


def signature(folder: Path) -> str | None:
    """Who has locked the folder, as it stands there."""
    try:
        return (folder / LOCK).read_text()
    except OSError:
        return None
