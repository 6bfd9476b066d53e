"""Inverse Adversarial Training, instance-wise (the paper's Algorithm 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastuiat.config import Radius, positive
from fastuiat.methods.base import register
from fastuiat.methods.uiat import TargetMethod
from fastuiat.targets import InstanceTarget


@register("iat")
class IAT(TargetMethod):
    """Pull f(x̂) towards f(x̌), x̌ found for each sample by steps down the inverse loss."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TargetMethod.Config):
        inverse_eps: Radius = 4 / 255
        """Radius of the ball around x that x̌ stays in, in pixel units."""
        inverse_alpha: Radius = 2 / 255
        """Step size of x̌, in pixel units."""
        inverse_steps: int = 5
        """Number of steps of x̌."""

        def __post_init__(self) -> None:
            super().__post_init__()
            positive(inverse_steps=self.inverse_steps)

    def __init__(self, config: Any, **shape: Any) -> None:
        super().__init__(config, **shape)
        self.target = InstanceTarget(config, config.inverse_steps)
