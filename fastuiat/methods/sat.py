"""Standard adversarial training, PGD-AT (Madry et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastuiat.attacks import pgd
from fastuiat.config import AttackConfig
from fastuiat.methods.base import Method, StepOutput, accuracy, register
from fastuiat.methods.natural import cross_entropy_loss
from fastuiat.network import Model, TrainingBatch, training_region


@register("sat")
class SAT(Method):
    """CE(f(x̂), y), x̂ by PGD on CE."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        attack: AttackConfig = field(default_factory=AttackConfig)

    def loss(self, model: Model, batch: TrainingBatch) -> StepOutput:
        x_adv = pgd(
            model, batch.x, batch.y, noise=batch.noise("attack"), **self.config.attack.kwargs()
        )
        loss, logits = training_region(model, cross_entropy_loss)(x_adv, batch.y)
        return StepOutput(loss, {"robust_accuracy": accuracy(logits, batch.y)})
