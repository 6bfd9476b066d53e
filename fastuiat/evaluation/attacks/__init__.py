"""The attacks of an evaluation, by name: a file in this folder that registers one is all it takes.

`fastuiat eval --attacks`, its flags and their help, the names of records, sweeps and restarts
follow from the registry.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from fastuiat.config import UserError
from fastuiat.evaluation.attacks.base import REGISTRY, Attack, Evaluation, Outcome, register

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")

__all__ = [
    "Attack", "Evaluation", "Outcome", "chosen", "configs", "create", "get", "names", "owners",
    "register",
]  # fmt: skip


def names() -> list[str]:
    """Clean accuracy first, then as they are listed."""
    return sorted(REGISTRY, key=lambda name: REGISTRY[name].has_radius)


def get(name: str) -> type[Attack]:
    """The class of an attack; UserError with the known names otherwise."""
    if name not in REGISTRY:
        raise UserError(f"unknown attack '{name}': choose from {', '.join(names())}")
    return REGISTRY[name]


def create(name: str, **settings: Any) -> Attack:
    """An attack ready to run: `create("pgd", steps=50)`; UserError on a setting it lacks."""
    cls = get(name)
    for setting in settings:
        if setting not in cls.settings():
            known = ", ".join(cls.settings()) or "none"
            raise UserError(f"{name} has no setting '{setting}': choose from {known}")
    return cls(cls.Config(**settings))


def owners(setting: str) -> list[str]:
    """The attacks that have a setting."""
    return [name for name in names() if setting in REGISTRY[name].settings()]


def chosen(attacks: Sequence[str], settings: Mapping[str, Any]) -> list[Attack]:
    """The attacks named, each with those of the settings that it has.

    UserError on none, on an unknown attack and on a setting that none of them has.
    """
    if not attacks:
        raise UserError(f"no attack is named: choose from {', '.join(names())}")
    classes = {name: get(name) for name in attacks}
    for setting in settings:
        if not any(setting in cls.settings() for cls in classes.values()):
            having = ", ".join(owners(setting)) or "no attack"
            raise UserError(
                f"{setting} does nothing for {', '.join(classes)}: it is a setting of {having}"
            )
    return [
        create(name, **{k: v for k, v in settings.items() if k in cls.settings()})
        for name, cls in classes.items()
    ]


def configs() -> list[type]:
    """The settings classes of all attacks, without those that another one extends."""
    found = list(dict.fromkeys(cls.Config for cls in REGISTRY.values()))
    return [c for c in found if not any(o is not c and issubclass(o, c) for o in found)]
