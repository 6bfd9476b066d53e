"""RS-FGSM (Wong et al. 2020), and what the single-step methods share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from fastuiat.attacks import pgd, starting_point
from fastuiat.config import RandomStepConfig, SingleStepConfig
from fastuiat.methods.base import Method, StepOutput, accuracy, register
from fastuiat.methods.natural import cross_entropy_loss
from fastuiat.network import Model, TrainingBatch, training_region


class SingleStepMethod(Method):
    """An objective on x̂ made by one gradient step, every forward of it in training mode.

    So BatchNorm's running statistics follow the attack's forward as well.
    """

    objective: ClassVar[Callable[..., tuple[Tensor, Tensor]]] = staticmethod(cross_entropy_loss)
    """The function of `training_region`: (net, *inputs) to (loss, f(x̂))."""
    alpha_ratio: ClassVar[float] = 1.25
    """Step size over eps, where alpha is not set."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        attack: SingleStepConfig = field(default_factory=SingleStepConfig)

    @property
    def alpha(self) -> float:
        attack = self.config.attack
        return self.alpha_ratio * attack.eps if attack.alpha is None else attack.alpha

    def inputs(self, model: Model, batch: TrainingBatch) -> tuple[Any, ...]:
        """What `objective` is called with after the net, x̂ first."""
        raise TypeError(f"{type(self).__name__} has no attack")

    def of_objective(self, model: Model, *inputs: Any) -> Any:
        """What `objective` gives of the model, in its training region."""
        return training_region(model, self.objective)(*inputs)

    def loss(self, model: Model, batch: TrainingBatch) -> StepOutput:
        inputs = self.inputs(model, batch)
        loss, logits = self.of_objective(model, *inputs)
        return StepOutput(loss, {"robust_accuracy": accuracy(logits, batch.y)})


class RandomStepMethod(SingleStepMethod):
    """CE(f(x̂), y), x̂ = the step from a random point."""

    noise_ratio: ClassVar[float] = 1.0
    """Half-width of the uniform start over eps."""
    project: ClassVar[bool] = True
    """Whether x̂ is kept in the ball; it is kept in the pixel range anyway."""

    @dataclass(frozen=True, kw_only=True)
    class Config(SingleStepMethod.Config):
        attack: RandomStepConfig = field(default_factory=RandomStepConfig)

    def inputs(self, model: Model, batch: TrainingBatch) -> tuple[Any, ...]:
        attack = self.config.attack
        half_width = self.noise_ratio * attack.eps
        x_adv = pgd(
            model,
            batch.x,
            batch.y,
            eps=attack.eps,
            alpha=self.alpha,
            steps=1,
            start=starting_point(batch.x, attack.start, half_width, batch.noise("attack")),
            project=self.project,
            bn="train",
        )
        return x_adv, batch.y


@register("rs-fgsm")
class RSFGSM(RandomStepMethod):
    """CE(f(x̂), y), x̂ one step of 1.25·eps from U(−eps, eps), clipped to the ball."""
