"""fastuiat: adversarially robust image classifiers by Universal Inverse Adversarial Training."""

import importlib
import importlib.util
import pkgutil
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from fastuiat.attacks import pgd
    from fastuiat.config import OptimizerConfig
    from fastuiat.data.batch import Batch
    from fastuiat.evaluation.arrays import autoattack, evaluate
    from fastuiat.methods import create as create_method
    from fastuiat.models import build_model
    from fastuiat.recipes import config as recipe_config
    from fastuiat.training.checkpoint import load_checkpoint
    from fastuiat.training.config import TrainConfig
    from fastuiat.training.run import train
    from fastuiat.training.step import TrainingStep

__all__ = [
    "Batch",
    "OptimizerConfig",
    "TrainConfig",
    "TrainingStep",
    "autoattack",
    "build_model",
    "create_method",
    "evaluate",
    "load_checkpoint",
    "pgd",
    "recipe_config",
    "train",
]

_HOMES = {
    "Batch": "data.batch:Batch",
    "OptimizerConfig": "config:OptimizerConfig",
    "TrainConfig": "training.config:TrainConfig",
    "TrainingStep": "training.step:TrainingStep",
    "autoattack": "evaluation.arrays:autoattack",
    "build_model": "models:build_model",
    "create_method": "methods:create",
    "evaluate": "evaluation.arrays:evaluate",
    "load_checkpoint": "training.checkpoint:load_checkpoint",
    "pgd": "attacks:pgd",
    "recipe_config": "recipes:config",
    "train": "training.run:train",
}
"""Where each public name is; there it is imported from when it is first asked for: PyTorch and
Triton take seconds and 600 MB, which a command that only reads records does without."""


def __getattr__(name: str) -> Any:
    """A public name, or a module of this package."""
    if name in _HOMES:
        value = pkgutil.resolve_name(f"{__name__}.{_HOMES[name]}")
        globals()[name] = value
        return value
    if (
        name.isidentifier()
        and not name.startswith("_")
        and importlib.util.find_spec(f"{__name__}.{name}")
    ):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
