"""fastuiat: adversarially robust image classifiers by Universal Inverse Adversarial Training."""

__version__ = "0.1.0"

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
