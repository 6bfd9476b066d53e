"""Projected sign-gradient attacks from random starts: PGD and CW as published tables have them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from fastuiat.attacks import pgd
from fastuiat.config import Radius, parse_radius, positive, radius_text
from fastuiat.evaluation.attacks.base import Attack, register
from fastuiat_kernels import Noise

ALPHA, STEPS = 2 / 255, 20
"""PGD-20 and CW-20 of the published tables."""


class GradientAttack(Attack):
    """Steps along the sign of a loss's gradient; a negative eps descends it inside |eps|."""

    loss: ClassVar[str]

    @dataclass(frozen=True, kw_only=True)
    class Config(Attack.Config):
        alpha: Radius = ALPHA
        """Step size of pgd and cw."""
        steps: int = STEPS
        """Steps of pgd and cw."""
        restarts: int = 1
        """Random starts of pgd and cw; a sample counts by its worst."""

        def __post_init__(self) -> None:
            object.__setattr__(self, "alpha", parse_radius(self.alpha))
            positive(alpha=self.alpha, steps=self.steps, restarts=self.restarts)

    def label(self) -> str:
        config = self.config
        alpha = radius_text(config.alpha).replace("/", "over")
        step = "" if config.alpha == ALPHA else f"_alpha{alpha}"
        restarts = "" if config.restarts == 1 else f"_r{config.restarts}"
        return f"{self.name}-{config.steps}{step}{restarts}"

    def described(self) -> dict[str, Any]:
        settings = {"alpha": radius_text(self.config.alpha), "steps": self.config.steps}
        return settings | {
            "loss": self.loss,
            "start": "uniform",
            "restarts": self.config.restarts,
        }

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, *, eps: float, noise: Noise
    ) -> Tensor:
        return pgd(
            model, x, y, eps=abs(eps), alpha=self.config.alpha, steps=self.config.steps,
            loss=self.loss, targeted=eps < 0, noise=noise,
        )  # fmt: skip


@register("pgd")
class PGD(GradientAttack):
    """Cross-entropy (Madry et al. 2018)."""

    loss = "ce"


@register("cw")
class CW(GradientAttack):
    """The margin of logits (Carlini and Wagner 2017) by PGD's steps."""

    loss = "margin"
