"""Training on the images as they are."""

from __future__ import annotations

from typing import Any

from torch.nn import functional as F

from fastuiat.losses import wide
from fastuiat.methods.base import Method, StepOutput, accuracy, register


@register("natural")
class Natural(Method):
    """CE(f(x), y)."""

    def loss(self, model: Any, batch: Any) -> StepOutput:
        logits = model(batch.x)
        loss = F.cross_entropy(wide(logits), batch.y)
        return StepOutput(loss, {"natural_accuracy": accuracy(logits, batch.y)})
