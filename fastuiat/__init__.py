"""fastuiat: adversarially robust image classifiers by Universal Inverse Adversarial Training."""

__version__ = "0.1.0"

from fastuiat.config import OptimizerConfig
from fastuiat.models import build_model
from fastuiat.training.checkpoint import load_checkpoint

__all__ = ["OptimizerConfig", "build_model", "load_checkpoint"]
