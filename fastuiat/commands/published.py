"""Options that say of a bare state dict what it does not say itself."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from fastuiat.config import UserError

Three = tuple[float, float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedOptions:
    """Of eval and export."""

    arch: str | None = None
    """Net of a bare state dict."""
    activation: Literal["relu", "silu"] | None = None
    """Its activation; by default SiLU for the dm- nets, else ReLU."""
    mean: Three | None = None
    """What was subtracted from its pixels in [0, 1] outside the net, by channel."""
    std: Three | None = None
    """What they were then divided by."""

    def described(self) -> dict[str, Any]:
        """As load_checkpoint takes it."""
        if (self.mean is None) != (self.std is None):
            raise UserError("--mean and --std go together")
        if self.std is not None and min(self.std) <= 0:
            raise UserError("--std must be above 0")
        normalise = None if self.mean is None else (self.mean, self.std)
        return {"arch": self.arch, "activation": self.activation, "normalise": normalise}
