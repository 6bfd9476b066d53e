"""The folder of a run: made for its settings, and read for those it began with."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastuiat import machine
from fastuiat.bounds import parsed_json, plain_text
from fastuiat.config import UserError, changed_since, of_this_version
from fastuiat.data import label_of
from fastuiat.file_kinds import reason_of
from fastuiat.files import json_in, write_json
from fastuiat.sealed import Damaged
from fastuiat.training.checkpoint import read
from fastuiat.training.config import TrainConfig, plain

FREE_ON_RESUME = {
    "workers", "loader", "log_every", "checkpoint_minutes", "out", "data_dir", "unchecked_data",
}  # fmt: skip
"""Settings that move no number; all others stay as the run began."""
ALWAYS = ("dataset", "data_dir", "arch", "method", "epochs", "seed")
"""Settings that the config.json of every version holds."""
MOST_THREADS = 4096
THREADS_ADVICE = (
    'write {"threads": N} there, N being those that the run began with: another number sums in '
    "another order"
)


def default_folder(config: TrainConfig) -> Path:
    if config.recipe:
        return Path("runs") / f"{config.recipe.replace('/', '-')}-s{config.seed}"
    name = f"{label_of(config.dataset)}-{config.method}-{config.arch}-s{config.seed}"
    return Path("runs") / re.sub("[/:]+", "-", name)  # of another library's nets


def environment(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on beside the settings."""
    versions = {name: machine.versions()[name] for name in ("fastuiat", "platform")}
    return {**versions, **machine.summary(device), "command": sys.argv}


def refuse_run(folder: Path) -> None:
    """UserError where a folder holds a run already, or cannot be one."""
    try:
        taken = holds_run(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be a folder: {error.strerror}") from error
    if taken:
        raise UserError(f"{folder} already holds a run: --resume {folder}, or choose another --out")


def holds_run(folder: Path) -> bool:
    """Whether a run was begun in it; its config.json may be lost."""
    return (folder / "config.json").exists() or last_checkpoint(folder).exists()


def last_checkpoint(folder: Path) -> Path:
    """Where a run goes on from, once it has one."""
    return folder / "checkpoints" / "last.pt"


def refuse_folder(folder: Path) -> None:
    """UserError where a new run cannot go, before anything else is done; leaves no trace."""
    refuse_run(folder)
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): choose --out") from error
    finally:
        for parent in made:
            remove_empty(parent)


def remove_empty(folder: Path) -> None:
    """Remove it unless there is something in it."""
    with contextlib.suppress(OSError):
        folder.rmdir()


def open_folder(
    folder: Path, config: TrainConfig, device: torch.device, world: int = 1, start: Any = None
) -> None:
    """Make the run folder with its settings, for its only writer; `start` is what it begins with.

    UserError where there is no room, or somebody has made a run there meanwhile.
    """
    refuse_run(folder)
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        begun = {"init": dataclasses.asdict(start)} if start else {}
        known = {**environment(device), "ranks": world, **begun}
        write_json(folder / "environment.json", known)
        write_json(folder / "config.json", config.to_json())
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}") from error


class Lost(UserError):
    """config.json is missing from a run."""


def stored_json(folder: Path) -> dict[str, Any]:
    """config.json as it was written; UserError where there is none."""
    path, last = folder / "config.json", last_checkpoint(folder)
    anew = f"fastuiat train --resume {folder} writes it anew, where the checkpoint carries it"
    advice = f"remove it, and {anew}" if last.exists() else "train anew into another --out"
    try:
        stored = json_in(path)
    except FileNotFoundError as error:
        if last.exists():
            raise Lost(f"{path} is missing: {anew}") from error
        raise UserError(f"{folder} is no run folder: it has no config.json") from error
    except Damaged as error:
        raise UserError(f"{path} cannot be read ({error}){since(folder)}: {advice}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}): {advice}") from error
    if not isinstance(stored, dict):
        raise UserError(f"{path} holds no settings: {advice}")
    if missing := [name for name in ALWAYS if name not in stored]:
        raise UserError(f"{path} lacks {', '.join(missing)}: {advice}")
    return stored


def since(folder: Path) -> str:
    """What config.json says otherwise than the checkpoint, in words; nothing where none tells."""
    try:
        carried = read(last_checkpoint(folder))["settings"]
        there = parsed_json(plain_text(folder / "config.json"))  # only its checksum is wrong
        name = next(n for n in carried if n not in FREE_ON_RESUME and carried[n] != there.get(n))
        return f"; it says {name} is {there.get(name)}, the checkpoint {carried[name]}"
    except (UserError, OSError, ValueError, LookupError, TypeError, AttributeError, StopIteration):
        return ""


def current(stored: dict[str, Any], source: Path) -> dict[str, Any]:
    """Settings of a run by the names of now; UserError that names the file they come from."""
    try:
        return of_this_version(stored)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{source} is not of this version: {error}") from error


def made_of(stored: dict[str, Any], source: Path) -> TrainConfig:
    """Settings by the names of now, completed and checked."""
    try:
        return TrainConfig(**stored)
    except (TypeError, ValueError) as error:
        raise UserError(f"{source} is not of this version: {error}") from error


def stored_config(folder: Path) -> dict[str, Any]:
    """The settings that a run began with, as they are called now; UserError where there is none."""
    return current(stored_json(folder), folder / "config.json")


def begun_with(folder: Path) -> dict[str, Any]:
    """`stored_config`, or where config.json is missing what the checkpoint carries."""
    try:
        return stored_config(folder)
    except Lost:
        last = last_checkpoint(folder)
        carried = read(last).get("settings") if last.is_file() else None
        if not isinstance(carried, dict):
            raise
        return current(carried, last)


def config_of(folder: Path) -> TrainConfig:
    """The settings that a run began with; UserError where there are none of this version."""
    return made_of(begun_with(folder), folder / "config.json")


def match_checkpoint(
    folder: Path, state: dict[str, Any] | None, say: Callable[[str], object]
) -> None:
    """Hold config.json against the settings that the checkpoint carries.

    Where it is missing it is written anew, and said; UserError on another difference than
    FREE_ON_RESUME allows. A checkpoint of an older version carries none and is believed.
    """
    carried = (state or {}).get("settings")
    if carried is None:
        return
    path, last = folder / "config.json", last_checkpoint(folder)
    if not isinstance(carried, dict):
        raise UserError(f"{last} is no whole checkpoint: its settings are none")
    try:
        stored = stored_config(folder)
    except Lost:
        write_json(path, carried | {"out": str(folder)})
        say(f"{path} was missing: it is written anew as {last} carries it")
        return
    trained = plain(made_of(current(carried, last), last))
    change = first_change(trained, plain(made_of(stored, path)))
    if change:
        name, value, new = change
        raise UserError(
            f"{path} says {name} is {new}, but the run was trained with {value}, as {last} carries "
            f"it: put {value} back, or train anew into another --out"
        )


def refuse_other_mathematics(folder: Path) -> None:
    """UserError on a run whose rest would be trained by another loss than it began with."""
    if change := changed_since(stored_json(folder)):
        raise UserError(f"{folder} cannot go on: {change}; train it anew")


def first_change(stored: dict[str, Any], wanted: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """(name, its value, the other) of the first setting that differs and may not."""
    for name, value in stored.items():
        if name not in FREE_ON_RESUME and wanted.get(name) != value:
            new = wanted.get(name)
            while isinstance(value, dict) and isinstance(new, dict):
                name = next(k for k in value | new if value.get(k) != new.get(k))
                value, new = value.get(name), new.get(name)
            return name, value, new
    return None


def refuse_changes(stored: dict[str, Any], config: TrainConfig) -> None:
    """UserError that names the first setting which differs from the run's own."""
    if change := first_change(stored, config.to_json()):
        name, value, new = change
        flag = name.replace("_", "-")
        raise UserError(f"--resume keeps the run's settings, but --{flag} is {value}, not {new}")


def threads_in(folder: Path) -> int:
    """The number of threads that a run began with; UserError where nothing says it."""
    path = folder / "environment.json"
    try:
        told = json_in(path)
        threads = told.get("threads") if isinstance(told, dict) else None
    except FileNotFoundError:
        threads = None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {reason_of(error)}; {THREADS_ADVICE}") from error
    if type(threads) is not int or not 1 <= threads <= MOST_THREADS:
        raise UserError(f"{path} names no number of threads: {THREADS_ADVICE}")
    return threads


def other_ranks(folder: Path, world: int, config: TrainConfig) -> str | None:
    """What changes where a run goes on with another number of ranks than it began with."""
    try:
        begun = json_in(folder / "environment.json").get("ranks", 1)
    except (OSError, ValueError, AttributeError):
        return None
    if begun == world:
        return None
    local = " and BatchNorm's statistics are of other parts of a batch"
    return (
        f"the run began with {begun} ranks and goes on with {world}: sums are made in another "
        f"order{local if config.batchnorm == 'local' else ''}"
    )
