"""TRADES as Rebuffi et al. (2021) train it with generated images."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn import functional as F

from fastuiat.attacks import pgd
from fastuiat.config import AttackConfig, UserError, not_negative
from fastuiat.losses import kl_between, wide
from fastuiat.methods.base import Method, StepOutput, accuracy, register
from fastuiat.network import Model, TrainingBatch


@register("rebuffi")
class Rebuffi(Method):
    """Smoothed CE(f(x), y) + β·KL(f(x) ‖ f(x̂)), the attack under the batch's own statistics.

    The attack sees the network as the training forward does, so one clean forward serves both.
    The weight averaging that belongs to it is the run's setting.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        attack: AttackConfig = field(default_factory=AttackConfig)
        beta: float = 6.0
        """Weight of the KL term."""
        label_smoothing: float = 0.1
        """Smoothing of the labels of the images as they are."""

        def __post_init__(self) -> None:
            not_negative(beta=self.beta)
            if not 0 <= self.label_smoothing < 1:
                raise UserError(f"label-smoothing must be in [0, 1), got {self.label_smoothing:g}")

    def loss(self, model: Model, batch: TrainingBatch) -> StepOutput:
        c = self.config
        logits = model(batch.x)  # alive across the attack, so no training_region
        x_adv = pgd(
            model,
            batch.x,
            batch.y,
            loss="kl",
            target_probs=torch.softmax(wide(logits.detach()), dim=1),
            bn="batch",
            noise=batch.noise("attack"),
            **c.attack.kwargs(),
        )
        logits_adv = model(x_adv)
        natural = F.cross_entropy(wide(logits), batch.y, label_smoothing=c.label_smoothing)
        loss = natural + c.beta * kl_between(logits, logits_adv).mean()
        metrics = {
            "natural_accuracy": accuracy(logits, batch.y),
            "robust_accuracy": accuracy(logits_adv, batch.y),
        }
        return StepOutput(loss, metrics)
