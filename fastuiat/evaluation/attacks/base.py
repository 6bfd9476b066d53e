"""What an attack of an evaluation is: settings, a perturbation, and the name of its record."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from fastuiat.config import radius_text
from fastuiat.data import ImageSet
from fastuiat.distributed import ALONE, Ranks
from fastuiat.evaluation.accuracy import Progress, Say, correct_under
from fastuiat_kernels import Noise

REGISTRY: dict[str, type[Attack]] = {}
A = TypeVar("A", bound="type[Attack]")


def register(name: str) -> Callable[[A], A]:
    """Make the class below known under `name`, to `fastuiat eval` and to the library."""

    def add(cls: A) -> A:
        for other in REGISTRY.values():
            shared = cls.settings().items() & other.settings().items()
            if len(shared) < len(cls.settings().keys() & other.settings().keys()):
                raise TypeError(f"{name} and {other.name} share a setting of two defaults")
        cls.name = name
        REGISTRY[name] = cls
        return cls

    return add


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What all attacks of one evaluation share."""

    model: nn.Module
    images: ImageSet
    seed: int
    batch_size: int
    device: torch.device
    progress: Progress | None = None
    say: Say | None = None
    ranks: Ranks = ALONE
    """Those that share it out; each gets the whole outcome."""


class Outcome(NamedTuple):
    """What an attack found: `correct` bool (N,) on the CPU, and what its record says of it."""

    correct: Tensor
    seconds: float
    settings: dict[str, Any]

    @property
    def accuracy(self) -> float:
        """The share that is still right."""
        return int(self.correct.sum()) / len(self.correct)


class Attack:
    """One attack with its settings; `perturb` is what most have to say.

    A field `restarts` of its Config makes so many attempts, each sample counting by its worst.
    """

    name: ClassVar[str]
    has_radius: ClassVar[bool] = True
    """Whether its outcome depends on eps."""
    has_inverse: ClassVar[bool] = True
    """Whether a negative eps means something: the inverse attack, which helps the sample."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        """Settings of the attack; each is a flag of `fastuiat eval`."""

        def __post_init__(self) -> None:
            """UserError on values that make no sense."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def settings(cls) -> dict[str, Any]:
        """Its settings with their defaults."""
        return {f.name: f.default for f in dataclasses.fields(cls.Config)}

    def label(self) -> str:
        """The attack with what is unusual of it, as the name of a record begins."""
        unusual = [
            f"_{name}{getattr(self.config, name)}"
            for name, usual in self.settings().items()
            if getattr(self.config, name) != usual
        ]
        return self.name + "".join(unusual).replace("/", "over")

    def described(self) -> dict[str, Any]:
        """Its settings as a record has them."""
        return dataclasses.asdict(self.config)

    def perturb(
        self, model: nn.Module, x: Tensor, y: Tensor, *, eps: float, noise: Noise
    ) -> Tensor:
        """The images (B, C, H, W) in [0, 1] that the net is tried on; eps is never 0 here.

        `noise` is what random starts are drawn from, as fastuiat.attacks.pgd takes it.
        """
        raise TypeError(f"{type(self).__name__} does not say how it perturbs")

    def correct(
        self,
        model: nn.Module,
        images: ImageSet,
        *,
        eps: float,
        seed: int = 0,
        batch_size: int = 200,
        device: torch.device,
        progress: Callable[[int, int], None] | None = None,
        restart: int = 0,
        rows: np.ndarray | None = None,
        ranks: Ranks = ALONE,
    ) -> Tensor:
        """Which samples the net still gets right after one attempt; as correct_under says."""

        def perturb(model: nn.Module, x: Tensor, y: Tensor, noise: Noise) -> Tensor:
            return self.perturb(model, x, y, eps=eps, noise=noise)

        return correct_under(
            model, images, perturb if eps and self.has_radius else None, seed=seed,
            batch_size=batch_size, device=device, stream=f"eval-{self.name}", restart=restart,
            rows=rows, progress=progress, ranks=ranks,
        )  # fmt: skip

    def measure(self, evaluation: Evaluation, eps: float, state: Path | None = None) -> Outcome:
        """The outcome over all images of an evaluation; a state file, to go on from, is optional.

        The worst case over restarts, so a sample that fell is not attacked again. Of the inverse
        attack (eps < 0), which helps the sample, it is the best case: right after any restart.
        """
        began = time.monotonic()
        eps = eps if self.has_radius else 0.0
        correct = torch.full((len(evaluation.images.labels),), eps >= 0)
        accuracy = []
        for restart in range(getattr(self.config, "restarts", 1) if eps else 1):
            rows = np.flatnonzero(correct.numpy() == (eps >= 0))
            if len(rows):
                correct[torch.from_numpy(rows)] = self.correct(
                    evaluation.model, evaluation.images, eps=eps, seed=evaluation.seed,
                    batch_size=evaluation.batch_size, device=evaluation.device,
                    progress=self.shown(evaluation.progress, eps), restart=restart, rows=rows,
                    ranks=evaluation.ranks,
                )  # fmt: skip
            accuracy.append(int(correct.sum()) / len(correct))
        settings = self.described()
        if self.has_radius:
            settings |= {"inverse": eps < 0, "restart_accuracy": accuracy}
        return Outcome(correct, time.monotonic() - began, settings)

    def shown(self, progress: Progress | None, eps: float) -> Callable[[int, int], None] | None:
        """The progress under the attack's name, each radius of a sweep with its own."""
        if progress is None:
            return None
        name = f"{self.label()} {radius_text(eps)}" if self.has_radius else self.name
        return lambda done, total: progress(name, done, total)
