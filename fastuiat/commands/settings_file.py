"""Settings of a run out of a file: JSON or TOML, a run's own config.json for one."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastuiat import methods, recipes
from fastuiat.config import OptimizerConfig, UserError, legible, nearest
from fastuiat.origins import Layer
from fastuiat.training.folder import ALWAYS, current

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_BYTES = 1 << 20
OF_A_RUN = {*ALWAYS, "recipe", "out", "settings"}
"""What the config.json of a run of any version names; a file of the user's own need not."""


def read(path: Path) -> dict[str, Any]:
    """The names and values of a file, or of the config.json of a run folder.

    UserError on what cannot be read, or is neither JSON nor TOML.
    """
    if path.is_dir():
        path = path / "config.json"
    try:
        with open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"--config {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--config {path} is no text, and so neither JSON nor TOML") from error
    if len(content) > MOST_BYTES:
        raise UserError(f"--config {path} is too large to be a file of settings")
    is_json = path.suffix == ".json" or text.lstrip().startswith("{")
    try:
        values = json.loads(text) if is_json else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        kind = "JSON" if is_json else "TOML"
        raise UserError(f"--config {path} is no {kind}: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"--config {path} must hold names with values")
    return values


class Placed:
    """The settings of a file, each where it belongs: `run` flat, `settings` nested."""

    def __init__(self, path: Path, method: str) -> None:
        self.path, self.method = path, method
        self.run: dict[str, Any] = {}
        self.settings: dict[str, Any] = {}
        groups = {"optimizer", "settings"}
        self.of_run = set(recipes.RUN_SETTINGS) - groups | {"recipe"}
        self.of_run |= {field.name for field in dataclasses.fields(OptimizerConfig)}
        self.of_method = recipes.places_of(methods.get(method).Config)
        self.groups = groups | {name for place in self.of_method.values() for name in place}

    def add(self, values: Mapping[str, Any]) -> None:
        """UserError on a name that no setting has, and on one that stands there twice.

        Names may be written as flags are: max-lr.
        """
        for written, value in values.items():
            name = written.replace("-", "_")
            if name in self.groups:
                if not isinstance(value, dict | None):
                    raise UserError(f"--config {self.path}: {name} must be names with values")
                self.add(value or {})
            elif name in self.of_run:
                self._put(self.run, name, value)
            elif name in self.of_method:
                inside = self.settings
                for group in self.of_method[name]:
                    inside = inside.setdefault(group, {})
                self._put(inside, name, value)
            else:
                known = [*self.of_run, *self.of_method]
                raise UserError(
                    f"--config {self.path}: no setting '{legible(written)}' of a run by "
                    f"{self.method}; the nearest are {nearest(name, known)}"
                )

    def _put(self, inside: dict[str, Any], name: str, value: Any) -> None:
        if name in inside:
            raise UserError(f"--config {self.path} has {name} twice")
        inside[name] = value


def is_of_run(path: Path) -> bool:
    """Whether a file is what a run wrote down of itself: its `out` is then that run's own."""
    beside = (path.with_name(name) for name in ("environment.json", "checkpoints"))
    return path.name == "config.json" and any(other.exists() for other in beside)


def layer_of(path: Path, recipe: str | None, method: str | None) -> tuple[str | None, Layer]:
    """(the recipe beneath, the file's settings); `recipe` and `method` are those that flags name.

    UserError on a file that cannot be read, on names that no setting has, and on two recipes.
    """
    values = read(path)
    if path.is_dir():
        path = path / "config.json"
    if values.keys() >= OF_A_RUN:
        values = current(values, path)
    if recipe and "recipe" in values and values["recipe"] != recipe:
        raise UserError(
            f"--recipe {recipe} would lie beneath the settings of {path}, which have "
            f"{legible(values['recipe'] or 'none')} beneath them: leave --recipe out"
        )
    recipe = recipe or values.get("recipe")
    if not isinstance(recipe, str | None):
        raise UserError(f"--config {path}: recipe must be words, got {legible(recipe)}")
    named = values.get("method") or (recipes.get(recipe).run.get("method") if recipe else method)
    placed = Placed(path, str(named or recipes.DEFAULTS["method"]))
    placed.add(values)
    placed.run.pop("recipe", None)
    if is_of_run(path):
        placed.run.pop("out", None)
    return recipe, Layer(str(path), placed.run, placed.settings)
