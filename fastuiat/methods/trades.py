"""TRADES (Zhang et al. 2019): natural accuracy against the distance to the adversarial output."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional as F

from fastuiat.attacks import pgd
from fastuiat.config import AttackConfig, not_negative
from fastuiat.losses import kl_between, wide
from fastuiat.methods.base import Method, StepOutput, accuracy, register
from fastuiat.network import BatchNormMode, Model, TrainingBatch, training_region
from fastuiat.targets import probabilities


def normal_start() -> AttackConfig:
    """PGD from x + 0.001·N(0, 1): at x itself KL(f(x) ‖ f(x')) has no gradient."""
    return AttackConfig(start="normal")


def kl_attack(
    model: Model, batch: TrainingBatch, attack: AttackConfig, bn: BatchNormMode = "eval"
) -> Tensor:
    """x̂ by PGD on KL(f(x) ‖ f(x')), the clean probabilities computed once."""
    clean = probabilities(model, batch.x, bn)
    return pgd(
        model,
        batch.x,
        batch.y,
        loss="kl",
        target_probs=clean,
        bn=bn,
        noise=batch.noise("attack"),
        **attack.kwargs(),
    )


def trades_loss(
    net: nn.Module, x: Tensor, x_adv: Tensor, y: Tensor, beta: float
) -> tuple[Tensor, Tensor, Tensor]:
    """CE(f(x), y) + β·KL(f(x) ‖ f(x̂)), nothing detached, and both logits."""
    logits = net(x)
    logits_adv = net(x_adv)
    divergence = kl_between(logits, logits_adv).mean()
    return F.cross_entropy(wide(logits), y) + beta * divergence, logits, logits_adv


@register("trades")
class TRADES(Method):
    """CE(f(x), y) + β·KL(f(x) ‖ f(x̂)), x̂ by PGD on that KL.

    The authors' loop differs in two things. It forwards x in training mode once more, after x̂: the
    same loss for a third forward, and running statistics that are of clean images to 67% where
    here they are to 47% (BatchNorm's momentum 0.1). And it does not clip the start
    (`starting_point`).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        attack: AttackConfig = field(default_factory=normal_start)
        beta: float = 6.0
        """Weight of the KL term."""

        def __post_init__(self) -> None:
            not_negative(beta=self.beta)

    def loss(self, model: Model, batch: TrainingBatch) -> StepOutput:
        x_adv = kl_attack(model, batch, self.config.attack)
        loss, logits, logits_adv = training_region(model, trades_loss)(
            batch.x, x_adv, batch.y, self.config.beta
        )
        metrics = {
            "natural_accuracy": accuracy(logits, batch.y),
            "robust_accuracy": accuracy(logits_adv, batch.y),
        }
        return StepOutput(loss, metrics)
