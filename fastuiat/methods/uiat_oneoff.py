"""UIAT with inverse examples made in one epoch only (paper, appendix B.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastuiat.methods.base import register
from fastuiat.methods.uiat import TargetMethod
from fastuiat.targets import (
    OneOffTarget,
    UniversalTarget,
    checked_epoch,
    default_oneoff_epoch,
)


@register("uiat-oneoff")
class UIATOneOff(TargetMethod):
    """p = f(x) before epoch T', f(x̌) in it, what it remembered after it (eq. 10)."""

    @dataclass(frozen=True, kw_only=True)
    class Config(TargetMethod.Config):
        oneoff_epoch: int | None = None
        """T'; by default round(0.8·epochs)."""

    def __init__(self, config: Any, **shape: Any) -> None:
        super().__init__(config, **shape)
        epoch = checked_epoch(
            "oneoff-epoch", config.oneoff_epoch, default_oneoff_epoch(self.epochs), self.epochs
        )
        universal = UniversalTarget(config, self.num_classes, self.image_shape, self.seed)
        self.target = OneOffTarget(universal, self.num_samples, self.num_classes, epoch=epoch)
