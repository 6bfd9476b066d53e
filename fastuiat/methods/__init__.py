"""Training methods by name. A file in this folder that registers a Method is all one takes."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from typing import Any

from fastuiat.config import UserError, refuse_other_choices, refuse_other_types
from fastuiat.methods.base import REGISTRY, Method, StepOutput, register

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")

__all__ = ["Method", "StepOutput", "create", "get", "names", "register"]


def names() -> list[str]:
    return sorted(REGISTRY)


def get(name: str) -> type[Method]:
    """The class of a method; UserError with the known names otherwise."""
    if name not in REGISTRY:
        raise UserError(f"unknown method '{name}': choose from {', '.join(names())}")
    return REGISTRY[name]


def configure(cls: type, settings: dict[str, Any]) -> Any:
    """A (nested) settings dataclass from plain values; UserError on a setting it does not have."""
    fields = {f.name: f for f in dataclasses.fields(cls)}
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if key not in fields:
            raise UserError(f"no setting '{key}': choose from {', '.join(fields) or 'none'}")
        factory: Any = fields[key].default_factory
        default = None if factory is dataclasses.MISSING else factory()
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            if isinstance(value, dict):
                value = dataclasses.replace(default, **_known(type(default), value))
            elif not isinstance(value, type(default)):
                raise UserError(f"{key} must be names with values, not {value!r}")
        values[key] = value
    refuse_other_types(cls, values)
    made = cls(**values)
    refuse_other_choices(made)
    return made


def _known(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    known = [f.name for f in dataclasses.fields(cls)]
    for name in values:
        if name not in known:
            choices = ", ".join(known)
            raise UserError(f"no setting '{name}' in {cls.__name__}: choose from {choices}")
    refuse_other_types(cls, values)
    return values


def create(
    name: str,
    *,
    num_classes: int,
    num_samples: int,
    image_shape: tuple[int, int, int] = (3, 32, 32),
    epochs: int = 100,
    seed: int = 0,
    helpers: dict[str, Any] | None = None,
    **config: Any,
) -> Method:
    """A method ready to train, with settings that differ from its own defaults.

    `num_samples` counts every sample index that a batch may carry. Nested settings are dicts.
    `epochs` sets T and T'. `helpers` are the nets of `requires`, by role. UserError on an unknown
    method, setting or role.

    >>> import fastuiat
    >>> method = fastuiat.create_method(
    ...     "uiat", num_classes=10, num_samples=50_000, lam=3.0, attack={"eps": "8/255", "steps": 5}
    ... )
    >>> method.config.lam, method.config.attack.steps
    (3.0, 5)
    """
    cls = get(name)
    method = cls(
        configure(cls.Config, config),
        num_classes=num_classes,
        num_samples=num_samples,
        image_shape=image_shape,
        epochs=epochs,
        seed=seed,
    )
    for role, net in (helpers or {}).items():
        if role not in cls.requires:
            raise UserError(f"{name} needs no net as '{role}'")
        method.helpers[role] = net
    return method
