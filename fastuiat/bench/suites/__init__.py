"""Bench suites by name. A file in this folder that registers a Suite is all one takes."""

from __future__ import annotations

import importlib
import pkgutil

from fastuiat.bench.suite import REGISTRY, Suite, register
from fastuiat.config import UserError

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")

__all__ = ["Suite", "get", "names", "of", "register"]


def names() -> list[str]:
    """In the order in which they are shown."""
    return sorted(REGISTRY, key=lambda name: (REGISTRY[name].rank, name))


def get(name: str) -> Suite:
    """UserError with the known names where there is no such suite."""
    if name not in REGISTRY:
        raise UserError(f"unknown suite '{name}': choose from {', '.join(names())}")
    return REGISTRY[name]


def of(name: str) -> Suite:
    """The suite that records name; what this version does not have is shown as the plainest is."""
    return REGISTRY.get(name) or Suite(name)
