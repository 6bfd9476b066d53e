"""HAT (Rade and Moosavi-Dezfooli 2022): helper examples against an excessive margin."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastuiat.config import AttackConfig, UserError, not_negative, positive
from fastuiat.losses import kl_between, wide
from fastuiat.methods.base import Method, StepOutput, accuracy, register
from fastuiat.methods.trades import kl_attack, normal_start
from fastuiat.network import FrozenNetwork, Model, TrainingBatch, frozen, training_region


def predicted(net: FrozenNetwork, x: Tensor) -> Tensor:
    """argmax f(x), int64 (B,)."""
    return net(x).argmax(dim=1)


def hat_loss(
    net: nn.Module,
    x: Tensor,
    x_adv: Tensor,
    x_help: Tensor,
    y: Tensor,
    y_help: Tensor,
    beta: float,
    gamma: float,
    smoothing: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """CE(f(x), y) + β·KL(f(x) ‖ f(x̂)) + γ·CE(f(x_help), y_help), and the first two logits.

    Only the first cross-entropy has smoothed labels.
    """
    logits, logits_adv, logits_help = net(x), net(x_adv), net(x_help)
    natural = F.cross_entropy(wide(logits), y, label_smoothing=smoothing)
    divergence = kl_between(logits, logits_adv).mean()
    helping = F.cross_entropy(wide(logits_help), y_help)
    return natural + beta * divergence + gamma * helping, logits, logits_adv


@register("hat")
class HAT(Method):
    """TRADES plus γ·CE(f(x + h·(x̂ − x)), y_h); y_h is what a naturally trained net sees in x̂.

    The authors' loop does not clip a normal start (`starting_point`), and leaves PyTorch's cycled
    momentum on, 0.95 to 0.85 and back, where recipes hold 0.9 (`--cycle-momentum`).
    """

    requires: ClassVar[dict[str, str]] = {"helper": "natural"}

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        attack: AttackConfig = field(default_factory=normal_start)
        beta: float = 2.5
        """Weight of the KL term."""
        gamma: float = 0.5
        """Weight of the helper examples."""
        h: float = 2.0
        """How far the helper example goes beyond the image, in units of x̂ − x."""
        label_smoothing: float = 0.0
        """Smoothing of the labels of the images as they are."""
        attack_bn: Literal["eval", "batch"] = "eval"
        """BatchNorm in the attack: running statistics, or the batch's own, not kept."""

        def __post_init__(self) -> None:
            not_negative(beta=self.beta, gamma=self.gamma)
            positive(h=self.h)
            if not 0 <= self.label_smoothing < 1:
                raise UserError(f"label-smoothing must be in [0, 1), got {self.label_smoothing:g}")

    def loss(self, model: Model, batch: TrainingBatch) -> StepOutput:
        c = self.config
        x_adv = kl_attack(model, batch, c.attack, c.attack_bn)
        with frozen(self.helper("helper")) as net, torch.no_grad():
            y_help = net.region(predicted)(net, x_adv)
        x_help = batch.x + c.h * (x_adv - batch.x)  # leaves the pixel range where it must
        loss, logits, logits_adv = training_region(model, hat_loss)(
            batch.x, x_adv, x_help, batch.y, y_help, c.beta, c.gamma, c.label_smoothing
        )
        metrics = {
            "natural_accuracy": accuracy(logits, batch.y),
            "robust_accuracy": accuracy(logits_adv, batch.y),
        }
        return StepOutput(loss, metrics)
