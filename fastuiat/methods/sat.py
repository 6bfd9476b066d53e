"""Standard adversarial training, PGD-AT (Madry et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch.nn import functional as F

from fastuiat.attacks import pgd
from fastuiat.config import AttackConfig
from fastuiat.losses import wide
from fastuiat.methods.base import Method, StepOutput, accuracy, register


@register("sat")
class SAT(Method):
    """CE(f(x̂), y), x̂ by PGD on CE."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        attack: AttackConfig = field(default_factory=AttackConfig)

    def loss(self, model: Any, batch: Any) -> StepOutput:
        x_adv = pgd(
            model, batch.x, batch.y, noise=batch.noise("attack"), **self.config.attack.kwargs()
        )
        logits = model(x_adv)
        loss = F.cross_entropy(wide(logits), batch.y)
        return StepOutput(loss, {"robust_accuracy": accuracy(logits, batch.y)})
