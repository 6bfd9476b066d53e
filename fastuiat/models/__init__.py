"""Networks by name: a file in this folder that registers a net is all one takes."""

from __future__ import annotations

import importlib
import pkgutil

from fastuiat.models.blocks import Classifier
from fastuiat.models.registry import build_model, register

__all__ = ["Classifier", "build_model", "register"]

for _file in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_file.name}")
