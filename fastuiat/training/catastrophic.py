"""Catastrophic overfitting: a single-step method learns its own step and no other (Wong et al.)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

COLLAPSE = 0.5
"""Validation accuracy under PGD below this share of its best is a collapse."""
ABOVE_CHANCE = 2.0
"""The best has to have been this many times chance: a fall from next to nothing is noise."""
LEARNT = 0.5
"""Accuracy on the training's own x̂ from which a net has learnt its attack."""
UNSHARED = 0.25
"""A net that withstands PGD on less than this share of what it withstands of its own attack has
learnt that attack alone. (Of 19 runs of nine methods on a part of CIFAR-10 none was below 0.39.)"""


class CatastrophicWatch:
    """Says in which epoch PGD accuracy collapsed while accuracy on the training's own x̂ rose.

    Or, of a run that never withstood PGD, in which epoch it had learnt its own attack alone.
    Training accuracy is a mean over the epoch's steps, kept on the device until the epoch ends.
    A run reports once.
    """

    def __init__(self, num_classes: int, device: torch.device) -> None:
        self.threshold = ABOVE_CHANCE / num_classes
        self.device = device
        self.total = torch.zeros((), device=device)
        self.steps = 0
        self.best = 0.0
        self.last_train: float | None = None
        self.epoch: int | None = None

    def see(self, metrics: dict[str, Tensor]) -> None:
        """Count one training step, if its method attacks."""
        if "robust_accuracy" in metrics:
            self.total = self.total + metrics["robust_accuracy"].detach()
            self.steps += 1

    def judge(self, epoch: int, val_robust: float | None) -> bool:
        """At an epoch's end: whether this is the epoch in which it happened."""
        if self.steps == 0 or val_robust is None:
            return False
        train = self.total.item() / self.steps
        rises = self.last_train is not None and train > self.last_train
        collapsed = self.best >= self.threshold and val_robust < COLLAPSE * self.best
        never_robust = train >= LEARNT and val_robust < UNSHARED * train
        self.best, self.last_train = max(self.best, val_robust), train
        self.total, self.steps = torch.zeros_like(self.total), 0
        if (never_robust or (rises and collapsed)) and self.epoch is None:
            self.epoch = epoch
            return True
        return False

    def state(self) -> dict[str, Any]:
        return {
            "total": self.total,
            "steps": self.steps,
            "best": self.best,
            "last_train": self.last_train,
            "epoch": self.epoch,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.total = state["total"].to(self.device)
        self.steps, self.best = state["steps"], state["best"]
        self.last_train, self.epoch = state["last_train"], state["epoch"]
