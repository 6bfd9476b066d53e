"""What a training method is: settings, state, and a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from fastuiat.config import UserError
from fastuiat.network import Model, TrainingBatch

REGISTRY: dict[str, type[Method]] = {}
M = TypeVar("M", bound="type[Method]")


def register(name: str) -> Callable[[M], M]:
    """Make the class below known under `name`, to the CLI, checkpoints, bench and tests."""

    def add(cls: M) -> M:
        cls.name = name
        REGISTRY[name] = cls
        return cls

    return add


@dataclass
class StepOutput:
    """What one step gives: a scalar to differentiate, and metrics that stay on the device."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Helpers(dict[str, Model]):
    """Nets by role that a method asks but does not train; copies of the method share them."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Helpers:
        return self


class Method(nn.Module):
    """A loss with state: buffers (z, P) travel with `.to()` and in the checkpoint.

    `loss(model, batch)` advances that state exactly once per call. `model` is a network or the
    trainer's view of one; BatchNorm is in training mode at the call.
    """

    name: ClassVar[str]
    chosen_by: ClassVar[tuple[str, str]] = ("robust", "natural")
    """Which validation accuracies choose the best checkpoint, the second where the first ties."""
    requires: ClassVar[dict[str, str]] = {}
    """Other nets the method needs: role to the method that trains it.

    Whoever makes the method puts them into `helpers`, as networks or views, before the first loss.
    They are no part of its state dict.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of the method."""

        def __post_init__(self) -> None:
            """UserError on values that make no sense."""

    def __init__(
        self,
        config: Any,
        *,
        num_classes: int,
        num_samples: int,
        image_shape: tuple[int, int, int],
        epochs: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.config = config
        self.num_classes = num_classes
        self.num_samples = num_samples
        self.image_shape = image_shape
        self.epochs = epochs
        self.seed = seed
        self.helpers = Helpers()

    def helper(self, role: str) -> Model:
        """The net that plays a role in `requires`; UserError where nobody has put it there."""
        if role not in self.helpers:
            raise UserError(
                f"{self.name} needs a net trained by {self.requires[role]}: give it as "
                f"helpers={{'{role}': net}}"
            )
        return self.helpers[role]

    @property
    def uses_features(self) -> bool:
        """Whether it asks the network for features beside the logits."""
        parts = (module for module in self.modules() if module is not self)
        return any(getattr(part, "uses_features", False) for part in parts)

    def loss(self, model: Model, batch: TrainingBatch) -> StepOutput:
        """The training loss of a Batch, a mean over it."""
        raise TypeError(f"{type(self).__name__} has no loss")


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Share of correct predictions, a scalar on the device."""
    return (logits.detach().argmax(dim=1) == y).float().mean()
