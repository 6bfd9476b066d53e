"""Training on the images as they are."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fastuiat.losses import wide
from fastuiat.methods.base import Method, StepOutput, accuracy, register
from fastuiat.network import Model, TrainingBatch, training_region


def cross_entropy_loss(net: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """CE(f(x), y), a mean over the batch, and the logits."""
    logits = net(x)
    return F.cross_entropy(wide(logits), y), logits


@register("natural")
class Natural(Method):
    """CE(f(x), y)."""

    # It has next to no accuracy under attack, and most of that before it has learned anything.
    chosen_by = ("natural", "robust")

    def loss(self, model: Model, batch: TrainingBatch) -> StepOutput:
        loss, logits = training_region(model, cross_entropy_loss)(batch.x, batch.y)
        return StepOutput(loss, {"natural_accuracy": accuracy(logits, batch.y)})
