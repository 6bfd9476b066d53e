"""The folder of a run: made for its settings, and read for those it began with."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from fastuiat import machine
from fastuiat.config import UserError, changed_since, of_this_version
from fastuiat.files import write_json
from fastuiat.training.config import TrainConfig

FREE_ON_RESUME = {
    "workers", "loader", "log_every", "checkpoint_minutes", "out", "data_dir", "unchecked_data",
}  # fmt: skip
"""Settings that move no number; all others stay as the run began."""


def default_folder(config: TrainConfig) -> Path:
    if config.recipe:
        return Path("runs") / f"{config.recipe.replace('/', '-')}-s{config.seed}"
    return Path("runs") / f"{config.dataset}-{config.method}-{config.arch}-s{config.seed}"


def environment(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on beside the settings."""
    versions = {name: machine.versions()[name] for name in ("fastuiat", "platform")}
    return {**versions, **machine.summary(device), "command": sys.argv}


def refuse_folder(folder: Path) -> None:
    """UserError where a new run cannot go, before anything else is done; leaves no trace."""
    if (folder / "config.json").exists():
        raise UserError(f"{folder} already holds a run: --resume {folder}, or choose another --out")
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): choose --out") from error
    finally:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()


def open_folder(folder: Path, config: TrainConfig, device: torch.device) -> None:
    """Make the run folder with its settings; UserError where there is no room."""
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_json(folder / "environment.json", environment(device))
        write_json(folder / "config.json", config.to_json())
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}") from error


def stored_json(folder: Path) -> dict[str, Any]:
    """config.json as it was written; UserError where there is none."""
    path = folder / "config.json"
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{folder} is no run folder: it has no config.json") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(stored, dict):
        raise UserError(f"{path} holds no settings")
    return stored


def stored_config(folder: Path) -> dict[str, Any]:
    """The settings that a run began with, as they are called now; UserError where there is none."""
    stored = stored_json(folder)
    try:
        return of_this_version(stored)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} is not of this version: {error}") from error


def config_of(folder: Path) -> TrainConfig:
    """The settings that a run began with; UserError where there are none of this version."""
    try:
        return TrainConfig(**stored_config(folder))
    except TypeError as error:
        raise UserError(f"{folder / 'config.json'} is not of this version: {error}") from error


def refuse_other_mathematics(folder: Path) -> None:
    """UserError on a run whose rest would be trained by another loss than it began with."""
    if change := changed_since(stored_json(folder)):
        raise UserError(f"{folder} cannot go on: {change}; train it anew")


def refuse_changes(stored: dict[str, Any], config: TrainConfig) -> None:
    """UserError that names the first setting which differs from the run's own."""
    wanted = config.to_json()
    for name, value in stored.items():
        if name not in FREE_ON_RESUME and wanted.get(name) != value:
            new = wanted.get(name)
            while isinstance(value, dict) and isinstance(new, dict):
                name = next(k for k in value | new if value.get(k) != new.get(k))
                value, new = value.get(name), new.get(name)
            flag = name.replace("_", "-")
            raise UserError(
                f"--resume keeps the run's settings, but --{flag} is {value}, not {new}"
            )
