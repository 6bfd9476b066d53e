"""fastuiat: adversarially robust image classifiers by Universal Inverse Adversarial Training."""

__version__ = "0.1.0"

from fastuiat.models import build_model
from fastuiat.training.checkpoint import load_checkpoint

__all__ = ["build_model", "load_checkpoint"]
