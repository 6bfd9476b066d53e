"""`<single-step method>+uiat`: any of them pulled towards the one-off target (appendix B.3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from fastuiat.losses import kl_divergence
from fastuiat.methods.base import StepOutput, register
from fastuiat.methods.gradalign import GradAlign
from fastuiat.methods.n_fgsm import NFGSM
from fastuiat.methods.rs_fgsm import RSFGSM, SingleStepMethod
from fastuiat.methods.uiat import metrics_of
from fastuiat.network import Model, TrainingBatch
from fastuiat.targets import (
    InverseConfig,
    OneOffTarget,
    Pull,
    UniversalTarget,
    checked_epoch,
    default_oneoff_epoch,
    pulled_towards,
)


def pulled(objective: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Any]:
    """objective + λ·KL(p ‖ f(x̂)) as a function of (net, pull, lam, *inputs), f(x̂), and p."""

    def pulled_loss(
        net: nn.Module, pull: Pull, lam: float, *inputs: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        p = pulled_towards(net, pull)
        loss, logits = objective(net, *inputs)
        return loss + lam * kl_divergence(p, logits).mean(), logits, p

    return pulled_loss


def with_uiat(base: type[SingleStepMethod]) -> type[SingleStepMethod]:
    """The method `base` with the one-off target: its attack and loss stay as they are."""

    class WithUIAT(base):  # type: ignore[valid-type,misc]
        objective = staticmethod(pulled(base.objective))

        @dataclass(frozen=True, kw_only=True)
        class Config(InverseConfig, base.Config):  # type: ignore[name-defined]
            beta: float = 0.0
            """Weight of the feature term in the inverse loss (eq. 4); the paper leaves it out."""
            oneoff_epoch: int | None = None
            """T'; by default round(0.8·epochs)."""

            def __post_init__(self) -> None:
                super().__post_init__()
                base.Config.__post_init__(self)

        def __init__(self, config: Any, **shape: Any) -> None:
            super().__init__(config, **shape)
            epoch = checked_epoch(
                "oneoff-epoch", config.oneoff_epoch, default_oneoff_epoch(self.epochs), self.epochs
            )
            universal = UniversalTarget(config, self.num_classes, self.image_shape, self.seed)
            self.target = OneOffTarget(universal, self.num_samples, self.num_classes, epoch=epoch)

        def loss(self, model: Model, batch: TrainingBatch) -> StepOutput:
            inputs = self.inputs(model, batch)
            pull = self.target(model, batch, inputs[0])
            loss, logits, p = self.of_objective(model, pull, self.config.lam, *inputs)
            self.target.remember(batch, p)
            return StepOutput(loss, metrics_of(logits, p, batch.y))

    WithUIAT.__name__ = WithUIAT.__qualname__ = f"{base.__name__}WithUIAT"
    WithUIAT.__doc__ = f"{base.__name__}'s loss + λ·KL(p ‖ f(x̂)), p from the one-off target."
    return register(f"{base.name}+uiat")(WithUIAT)


for _base in (RSFGSM, NFGSM, GradAlign):
    with_uiat(_base)
