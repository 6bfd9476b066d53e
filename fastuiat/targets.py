"""What f(x̂) is pulled towards: `target(model, batch, x_adv)` gives the Pull of a training step.

Calling a target moves z; `remember(batch, p)`, after the training forward, stores a p that was only
known then. Together they advance z and P exactly once per step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastuiat.attacks import starting_point
from fastuiat.config import Radius, UserError, parse_radius, positive
from fastuiat.gradients import gradient_through, in_layout_of, leaf
from fastuiat.losses import attack_cross_entropy, inverse_loss, wide
from fastuiat.memory import ProbabilityMemory, UniversalBank
from fastuiat.network import BatchNormMode, FrozenNetwork, Model, TrainingBatch, frozen
from fastuiat_kernels import sign_step

InverseForward = Literal["eval", "train", "attached"]


class Pull(NamedTuple):
    """p as a training forward takes it: a constant, or what that forward predicts itself.

    `probs` (B, K) is p, where there are no `images`. From `images` (B, C, H, W) the training
    forward predicts p = softmax(f(images)), with its gradient; where `share` (B, 1) is given too,
    p = share·probs + (1 − share)·softmax(f(images)), `probs` a constant.
    """

    probs: Tensor | None = None
    images: Tensor | None = None
    share: Tensor | None = None

    @property
    def constant(self) -> Tensor:
        """p where it is known before the training forward."""
        assert self.images is None and self.probs is not None
        return self.probs


def pulled_towards(net: nn.Module, pull: Pull) -> Tensor:
    """p (B, K), at least fp32. Call it before the forward of x̂: x̌ comes first."""
    if pull.images is None:
        return pull.constant
    p = torch.softmax(wide(net(pull.images)), dim=1)
    if pull.share is None or pull.probs is None:
        return p
    return pull.share * pull.probs + (1 - pull.share) * p


@dataclass(frozen=True, kw_only=True)
class InverseConfig:
    """The inverse side of UIAT: how the bank moves and where its predictions come from."""

    lam: float = 3.5
    """Weight of KL(p ‖ f(x̂))."""
    beta: float = 1.0
    """Weight of the feature term in the inverse loss (eq. 4); 0 leaves its two forwards out."""
    inverse_eps: Radius = 4 / 255
    """Radius of z, in pixel units."""
    inverse_alpha: Radius = 4 / 255
    """Step size of z, in pixel units."""
    inverse_forward: InverseForward = "train"
    """The forward that gives p, which the paper leaves open. eval: with running statistics, of uiat
    the one that moves z; train: with the batch's, tracked; attached: that, with its gradient."""

    def __post_init__(self) -> None:
        for name in ("inverse_eps", "inverse_alpha"):
            object.__setattr__(self, name, parse_radius(getattr(self, name)))
        positive(inverse_eps=self.inverse_eps, inverse_alpha=self.inverse_alpha)
        if not (0 <= self.lam < math.inf and 0 <= self.beta < math.inf):
            raise UserError("--lam and --beta must be finite and not negative")


def features_of(net: FrozenNetwork, x: Tensor, x_adv: Tensor) -> tuple[Tensor, Tensor]:
    """F(x) and F(x̂), (B, D), no gradient: the constants of eq. 4."""
    # Two forwards of B: one of 2B is not clearly faster (resnet-18, B = 32, fp32, one CPU core:
    # median 3.3 s against 3.6 s, least 3.1 s against 2.9 s) and takes more memory.
    with torch.no_grad():
        return net.with_features(x)[1], net.with_features(x_adv)[1]


def inverse_gradient(
    net: FrozenNetwork,
    x_inv: Tensor,
    y: Tensor,
    constants: tuple[Tensor, Tensor] | None,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """∂L_inv/∂x̌ (B, C, H, W) and f(x̌) (B, K), eq. 4; the gradient passes straight through clips.

    `constants` are F(x) and F(x̂), or None where β is 0.
    """
    with torch.enable_grad():
        x_inv = leaf(x_inv)
        if constants is None:
            logits = net(x_inv)
            grad = gradient_through((logits,), lambda z: attack_cross_entropy(z, y, None), x_inv)
        else:
            logits, features_inv = net.with_features(x_inv)
            features, features_adv = constants
            grad = gradient_through(
                (logits, features_inv),
                lambda z, f: inverse_loss(z, y, f, features, features_adv, beta=beta),
                x_inv,
            )
    return in_layout_of(x_inv, grad), logits.detach()


def universal_gradient(
    net: FrozenNetwork, x: Tensor, x_adv: Tensor, x_inv: Tensor, y: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """`inverse_gradient` with its constants, as one region: what moves z, and f(x̌)."""
    constants = features_of(net, x, x_adv) if beta else None
    return inverse_gradient(net, x_inv, y, constants, beta)


def instance_step(
    net: FrozenNetwork,
    x: Tensor,
    x_inv: Tensor,
    y: Tensor,
    constants: tuple[Tensor, Tensor] | None,
    beta: float,
    alpha: float,
    eps: float,
) -> Tensor:
    """One step of x̌ down L_inv inside the ball around x (eq. 3)."""
    grad, _ = inverse_gradient(net, x_inv, y, constants, beta)
    return sign_step(x, x_inv, grad, alpha=alpha, eps=eps, ascend=False)


def class_probabilities(net: FrozenNetwork, x: Tensor) -> Tensor:
    """softmax(f(x)), at least fp32 (B, K), no gradient."""
    with torch.no_grad():
        return torch.softmax(wide(net(x)), dim=1)


def probabilities(model: Model, x: Tensor, bn: BatchNormMode) -> Tensor:
    """softmax(f(x)), no gradient; `train` uses and updates the batch statistics."""
    with frozen(model, bn) as net:
        return net.region(class_probabilities)(net, x)


class Target(nn.Module):
    """What p is, at each step of a run."""

    config: InverseConfig

    def forward(self, model: Model, batch: TrainingBatch, x_adv: Tensor) -> Pull:
        raise TypeError(f"{type(self).__name__} has no forward")

    def remember(self, batch: TrainingBatch, p: Tensor) -> None:
        """Take the p (B, K) that the training forward ended with."""

    def metrics(self) -> dict[str, Tensor]:
        """What the run's log says of the last step's target."""
        return {}

    @property
    def uses_features(self) -> bool:
        return self.config.beta > 0

    @property
    def attached(self) -> bool:
        return self.config.inverse_forward == "attached"

    @property
    def bn(self) -> BatchNormMode:
        """BatchNorm of a forward that gives p as a constant, as for samples that T' did not visit
        in every reading."""
        return "eval" if self.config.inverse_forward == "eval" else "train"

    def predicted(self, model: Model, x: Tensor) -> Pull:
        """p = softmax(f(x)), by the forward that is set."""
        return Pull(images=x) if self.attached else Pull(probabilities(model, x, self.bn))


class InstanceTarget(Target):
    """IAT's target (Algorithm 2): p = softmax(f(x̌)), x̌ found for each sample on its own."""

    def __init__(self, config: InverseConfig, steps: int) -> None:
        super().__init__()
        self.config = config
        self.steps = steps

    def forward(self, model: Model, batch: TrainingBatch, x_adv: Tensor) -> Pull:
        c = self.config
        x, y = batch.x, batch.y
        x_inv = starting_point(x, "normal", c.inverse_eps, batch.noise("inverse"))
        with frozen(model) as net, torch.no_grad():
            constants = net.region(features_of)(net, x, x_adv) if c.beta else None
            step = net.region(instance_step)
            for _ in range(self.steps):
                point = leaf(x_inv)
                x_inv = step(net, x, point, y, constants, c.beta, c.inverse_alpha, c.inverse_eps)
        return self.predicted(model, x_inv)


class UniversalTarget(Target):
    """Steps 2–5 of UIAT: the universal inverse example moves z and gives p."""

    def __init__(
        self, config: InverseConfig, num_classes: int, image_shape: tuple[int, int, int], seed: int
    ) -> None:
        super().__init__()
        self.config = config
        self.bank = UniversalBank(num_classes, image_shape, seed)

    def forward(self, model: Model, batch: TrainingBatch, x_adv: Tensor) -> Pull:
        c = self.config
        x_inv = self.bank.apply_to(batch.x, batch.y)
        with frozen(model) as net:
            gradient = net.region(universal_gradient)
            grad, logits = gradient(net, batch.x, x_adv, leaf(x_inv), batch.y, c.beta)
        self.bank.step(grad, batch.y, alpha=c.inverse_alpha, eps=c.inverse_eps)
        if c.inverse_forward == "eval":
            return Pull(torch.softmax(wide(logits), dim=1))
        return self.predicted(model, x_inv)

    def metrics(self) -> dict[str, Tensor]:
        return self.bank.metrics()


class MomentumTarget(Target):
    """UIAT's target: the universal one, mixed with P from epoch T on (eq. 8), filled from T − 1."""

    def __init__(
        self,
        universal: UniversalTarget,
        num_samples: int,
        num_classes: int,
        *,
        gamma: float,
        start_epoch: int,
    ) -> None:
        super().__init__()
        self.config = universal.config
        self.universal = universal
        self.memory = ProbabilityMemory(num_samples, num_classes)
        self.gamma = gamma
        self.start_epoch = start_epoch

    def remembers(self, batch: TrainingBatch) -> bool:
        return self.gamma > 0 and batch.epoch >= self.start_epoch - 1

    def forward(self, model: Model, batch: TrainingBatch, x_adv: Tensor) -> Pull:
        pull: Pull = self.universal(model, batch, x_adv)
        if not self.remembers(batch):
            return pull
        gamma = self.gamma if batch.epoch >= self.start_epoch else 0.0
        if not self.attached:
            return Pull(self.memory.update(batch.index, pull.constant, gamma=gamma))
        if gamma == 0:
            return pull
        stored, seen = self.memory.recall(batch.index)
        return pull._replace(probs=stored, share=gamma * seen[:, None].to(stored.dtype))

    def remember(self, batch: TrainingBatch, p: Tensor) -> None:
        if self.attached and self.remembers(batch):
            self.memory.update(batch.index, p, gamma=0.0)

    def metrics(self) -> dict[str, Tensor]:
        return self.universal.metrics()


class OneOffTarget(Target):
    """The one-off target (eq. 10): f(x) before epoch T', universal in it, its memory after it."""

    def __init__(
        self, universal: UniversalTarget, num_samples: int, num_classes: int, *, epoch: int
    ) -> None:
        super().__init__()
        self.config = universal.config
        self.universal = universal
        self.memory = ProbabilityMemory(num_samples, num_classes)
        self.epoch = epoch
        self._host_seen: np.ndarray | None = None
        self._asked: tuple[Tensor | None, bool] = (None, False)
        self.register_load_state_dict_post_hook(lambda module, _: module._forget_host())

    def _forget_host(self) -> None:
        self._host_seen = None

    def _all_seen(self, batch: TrainingBatch) -> bool:
        """Whether P holds the whole batch, from a mirror on the host: the GPU is never asked.

        Of a batch in parts all of them, so that no part makes another forward than the others.
        """
        if batch.host_whole is None:
            return False
        of, known = self._asked
        if of is batch.host_whole:
            return known
        if self._host_seen is None:
            self._host_seen = self.memory.seen.cpu().numpy().copy()
        index = batch.host_whole.numpy()
        known = bool(self._host_seen[index].all())
        self._host_seen[index] = True
        self._asked = batch.host_whole, known
        return known

    def forward(self, model: Model, batch: TrainingBatch, x_adv: Tensor) -> Pull:
        if batch.epoch < self.epoch:
            return self.predicted(model, batch.x)
        if batch.epoch == self.epoch:
            pull: Pull = self.universal(model, batch, x_adv)
            if self.attached:
                return pull
            return Pull(self.memory.update(batch.index, pull.constant, gamma=0.0))
        stored, seen = self.memory.recall(batch.index)
        if self._all_seen(batch):
            return Pull(stored)
        # A sample that epoch T' did not visit: z stays as it is, P is filled on the first visit.
        x_inv = self.universal.bank.apply_to(batch.x, batch.y)
        p = torch.where(seen[:, None], stored, probabilities(model, x_inv, self.bn).float())
        return Pull(self.memory.update(batch.index, p, gamma=0.0))

    def remember(self, batch: TrainingBatch, p: Tensor) -> None:
        if self.attached and batch.epoch == self.epoch:
            self.memory.update(batch.index, p, gamma=0.0)


def default_momentum_epoch(epochs: int) -> int:
    return max(1, math.ceil(0.75 * epochs))


def default_oneoff_epoch(epochs: int) -> int:
    return max(1, round(0.8 * epochs))


def checked_epoch(flag: str, value: int | None, default: int, epochs: int) -> int:
    """The epoch given, which must exist, or the default."""
    if value is None:
        return default
    if not 1 <= value <= epochs:
        raise UserError(f"--{flag} {value} is outside the run's epochs 1…{epochs}")
    return value
