"""Universal Inverse Adversarial Training (the paper's Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastuiat.attacks import pgd
from fastuiat.config import AttackConfig, UserError
from fastuiat.methods.base import Method, StepOutput, accuracy, register
from fastuiat.network import Model, TrainingBatch, training_region
from fastuiat.targets import (
    InverseConfig,
    MomentumTarget,
    Pull,
    Target,
    UniversalTarget,
    checked_epoch,
    default_momentum_epoch,
    pulled_towards,
)
from fastuiat_kernels import distill_loss


def distilled_loss(
    net: nn.Module, x_adv: Tensor, pull: Pull, y: Tensor, lam: float
) -> tuple[Tensor, Tensor, Tensor]:
    """CE(f(x̂), y) + λ·KL(p ‖ f(x̂)) (eq. 7), the logits f(x̂), and p.

    Where p is predicted here the KL is differentiated on both sides.
    """
    p = pulled_towards(net, pull)
    logits = net(x_adv)
    return distill_loss(logits, p, y, lam=lam), logits, p


LEAST_PROBABILITY = 1e-30
"""What 0 is taken for in a margin."""


def margin(p: Tensor, y: Tensor) -> Tensor:
    """Mean of log p_y − max log p_k, k ≠ y: of a softmax, the margin of its logits."""
    logs = p.detach().float().clamp_min(LEAST_PROBABILITY).log()
    of_class = logs.gather(1, y[:, None])
    return (of_class - logs.scatter(1, y[:, None], -torch.inf).amax(dim=1, keepdim=True)).mean()


def metrics_of(logits: Tensor, p: Tensor, y: Tensor) -> dict[str, Tensor]:
    """What the run's log says of f(x̂) and of what it is pulled towards."""
    return {
        "robust_accuracy": accuracy(logits, y),
        "target_accuracy": accuracy(p, y),
        "target_confidence": p.gather(1, y[:, None]).float().mean(),
        "target_margin": margin(p, y),
    }


class TargetMethod(Method):
    """CE(f(x̂), y) + λ·KL(p ‖ f(x̂)): PGD on CE, and a target for p (eq. 7)."""

    target: Target

    @dataclass(frozen=True, kw_only=True)
    class Config(InverseConfig, Method.Config):
        attack: AttackConfig = field(default_factory=AttackConfig)

    def loss(self, model: Model, batch: TrainingBatch) -> StepOutput:
        x_adv = pgd(
            model, batch.x, batch.y, noise=batch.noise("attack"), **self.config.attack.kwargs()
        )
        pull = self.target(model, batch, x_adv)
        loss, logits, p = training_region(model, distilled_loss)(
            x_adv, pull, batch.y, self.config.lam
        )
        self.target.remember(batch, p)
        return StepOutput(loss, metrics_of(logits, p, batch.y) | self.target.metrics())


@register("uiat")
class UIAT(TargetMethod):
    """Pull f(x̂) towards f(x̌), x̌ = x + z[y] moved by the class gradients of the inverse loss."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TargetMethod.Config):
        gamma: float = 0.9
        """Momentum of the target probabilities from epoch T on (eq. 8); 0 for none."""
        momentum_epoch: int | None = None
        """T; by default ceil(0.75·epochs)."""

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 <= self.gamma <= 1:
                raise UserError(f"--gamma must be in [0, 1], got {self.gamma:g}")

    def __init__(self, config: Any, **shape: Any) -> None:
        super().__init__(config, **shape)
        start = checked_epoch(
            "momentum-epoch",
            config.momentum_epoch,
            default_momentum_epoch(self.epochs),
            self.epochs,
        )
        universal = UniversalTarget(config, self.num_classes, self.image_shape, self.seed)
        self.target = MomentumTarget(
            universal, self.num_samples, self.num_classes, gamma=config.gamma, start_epoch=start
        )
