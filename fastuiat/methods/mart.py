"""MART (Wang et al. 2020): more weight on samples that are misclassified as they are."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fastuiat.attacks import pgd
from fastuiat.config import AttackConfig, not_negative
from fastuiat.losses import boosted_cross_entropy, kl_between, wide
from fastuiat.methods.base import Method, StepOutput, accuracy, register
from fastuiat.methods.trades import normal_start
from fastuiat.network import Model, TrainingBatch, training_region


def mart_loss(
    net: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """BCE(f(x̂), y) + β·KL(f(x) ‖ f(x̂))·(1.0000001 − p_y(x)), nothing detached, and both logits."""
    logits = net(x)
    logits_adv = net(x_adv)
    log_p = torch.log_softmax(wide(logits), dim=1).gather(1, y[:, None])[:, 0]
    doubt = 1e-7 - torch.expm1(log_p)  # without the cancellation of 1 − p_y at p_y near 1
    terms = boosted_cross_entropy(logits_adv, y) + beta * kl_between(logits, logits_adv) * doubt
    return terms.mean(), logits, logits_adv


@register("mart")
class MART(Method):
    """BCE(f(x̂), y) + β·KL(f(x) ‖ f(x̂))·(1 − p_y(x)), x̂ by PGD on CE.

    BCE and weight have the constants of the authors' code (`boosted_cross_entropy`, `mart_loss`).
    Two things of it are not here: 1e-12 inside the logarithm of the KL term, which moves what lies
    near p̂_k = 1e-12 alone, and an unclipped start (`starting_point`).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        attack: AttackConfig = field(default_factory=normal_start)
        beta: float = 5.0
        """Weight of the KL term."""

        def __post_init__(self) -> None:
            not_negative(beta=self.beta)

    def loss(self, model: Model, batch: TrainingBatch) -> StepOutput:
        x_adv = pgd(
            model, batch.x, batch.y, noise=batch.noise("attack"), **self.config.attack.kwargs()
        )
        loss, logits, logits_adv = training_region(model, mart_loss)(
            batch.x, x_adv, batch.y, self.config.beta
        )
        metrics = {
            "natural_accuracy": accuracy(logits, batch.y),
            "robust_accuracy": accuracy(logits_adv, batch.y),
        }
        return StepOutput(loss, metrics)
