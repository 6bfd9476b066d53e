"""What f(x̂) is pulled towards: `target(model, batch, x_adv) -> p`, detached, (B, K).

Calling a target advances its state (z, P) once, as one training step does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fastuiat.attacks import BatchNormMode, frozen, in_layout_of, region, starting_point
from fastuiat.config import Radius, UserError, parse_radius, positive
from fastuiat.losses import inverse_loss, wide
from fastuiat.memory import ProbabilityMemory, UniversalBank
from fastuiat_kernels import sign_step


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
    inverse_bn: Literal["eval", "train"] = "eval"
    """BatchNorm in the forward that gives p; train spends one more, tracked forward."""

    def __post_init__(self) -> None:
        for name in ("inverse_eps", "inverse_alpha"):
            object.__setattr__(self, name, parse_radius(getattr(self, name)))
        positive(inverse_eps=self.inverse_eps, inverse_alpha=self.inverse_alpha)
        if not (self.lam >= 0 and self.beta >= 0):
            raise UserError("lam and beta must not be negative")


def inverse_gradient(
    net: Any, x: Tensor, x_adv: Tensor, x_inv: Tensor, y: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """∂L_inv/∂x̌ (B, C, H, W) and f(x̌) (B, K), eq. 4; the gradient passes straight through clips."""
    with torch.enable_grad():
        x_inv = x_inv.detach().requires_grad_()
        logits, features_inv = net(x_inv, return_features=True)
        if beta == 0:
            features = features_adv = features_inv.detach()
        else:
            with torch.no_grad():
                _, features = net(x, return_features=True)
                _, features_adv = net(x_adv, return_features=True)
        loss = inverse_loss(logits, y, features_inv, features, features_adv, beta=beta)
        (grad,) = torch.autograd.grad(loss, x_inv)
    return in_layout_of(x_inv, grad), logits.detach()


def probabilities(model: Any, x: Tensor, bn: BatchNormMode) -> Tensor:
    """softmax(f(x)), no gradient; `train` uses and updates the batch statistics."""
    with torch.no_grad():
        if bn == "train":
            return torch.softmax(wide(model(x)), dim=1)
        with frozen(model, bn) as net:
            return torch.softmax(wide(net(x)), dim=1)


def features_of(net: Any, x: Tensor) -> Tensor:
    """F(x), (B, D)."""
    return net(x, return_features=True)[1]


def instance_step(
    net: Any,
    x: Tensor,
    x_inv: Tensor,
    y: Tensor,
    features: Tensor | None,
    features_adv: Tensor | None,
    beta: float,
    alpha: float,
    eps: float,
) -> Tensor:
    """One step of x̌ down L_inv inside the ball around x (eq. 3); no features where beta is 0."""
    with torch.enable_grad():
        point = x_inv.detach().requires_grad_()
        logits, features_inv = net(point, return_features=True)
        own = features_inv.detach()
        loss = inverse_loss(
            logits,
            y,
            features_inv,
            own if features is None else features,
            own if features_adv is None else features_adv,
            beta=beta,
        )
        (grad,) = torch.autograd.grad(loss, point)
    return sign_step(x, x_inv, in_layout_of(x_inv, grad), alpha=alpha, eps=eps, ascend=False)


class InstanceTarget(nn.Module):
    """IAT's target (Algorithm 2): p = softmax(f(x̌)), x̌ found for each sample on its own."""

    def __init__(self, config: InverseConfig, steps: int) -> None:
        super().__init__()
        self.config = config
        self.steps = steps

    def forward(self, model: Any, batch: Any, x_adv: Tensor) -> Tensor:
        c = self.config
        x, y = batch.x, batch.y
        x_inv = starting_point(x, "normal", c.inverse_eps, batch.noise("inverse"))
        with frozen(model) as net, torch.no_grad():
            features = features_adv = None
            if c.beta:
                forward = region(net, features_of)
                features, features_adv = forward(net, x), forward(net, x_adv)
            step = region(net, instance_step)
            for _ in range(self.steps):
                x_inv = step(
                    net,
                    x,
                    x_inv,
                    y,
                    features,
                    features_adv,
                    c.beta,
                    c.inverse_alpha,
                    c.inverse_eps,
                )
        return probabilities(model, x_inv, c.inverse_bn)


class UniversalTarget(nn.Module):
    """Steps 2–5 of UIAT: the universal inverse example moves z and gives p."""

    def __init__(
        self, config: InverseConfig, num_classes: int, image_shape: tuple[int, int, int], seed: int
    ) -> None:
        super().__init__()
        self.config = config
        self.bank = UniversalBank(num_classes, image_shape, seed)

    def forward(self, model: Any, batch: Any, x_adv: Tensor) -> Tensor:
        c = self.config
        x_inv = self.bank.apply_to(batch.x, batch.y)
        with frozen(model) as net:
            gradient = region(net, inverse_gradient)
            grad, logits = gradient(net, batch.x, x_adv, x_inv, batch.y, c.beta)
        self.bank.step(grad, batch.y, alpha=c.inverse_alpha, eps=c.inverse_eps)
        if c.inverse_bn == "train":
            return probabilities(model, x_inv, "train")
        return torch.softmax(wide(logits), dim=1)


class MomentumTarget(nn.Module):
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
        self.universal = universal
        self.memory = ProbabilityMemory(num_samples, num_classes)
        self.gamma = gamma
        self.start_epoch = start_epoch

    def forward(self, model: Any, batch: Any, x_adv: Tensor) -> Tensor:
        p = self.universal(model, batch, x_adv)
        if self.gamma == 0 or batch.epoch < self.start_epoch - 1:
            return p
        gamma = self.gamma if batch.epoch >= self.start_epoch else 0.0
        return self.memory.update(batch.index, p, gamma=gamma)


class OneOffTarget(nn.Module):
    """The one-off target (eq. 10): f(x) before epoch T', universal in it, its memory after it."""

    def __init__(
        self, universal: UniversalTarget, num_samples: int, num_classes: int, *, epoch: int
    ) -> None:
        super().__init__()
        self.universal = universal
        self.memory = ProbabilityMemory(num_samples, num_classes)
        self.epoch = epoch
        self._host_seen: Tensor | None = None
        self.register_load_state_dict_post_hook(lambda module, _: module._forget_host())

    def _forget_host(self) -> None:
        self._host_seen = None

    def _all_seen(self, batch: Any) -> bool:
        """Whether P holds the whole batch, from a mirror on the host: the GPU is never asked."""
        if batch.host_index is None:
            return False
        if self._host_seen is None:
            self._host_seen = self.memory.seen.to("cpu", copy=True)
        known = bool(self._host_seen[batch.host_index].all())
        self._host_seen[batch.host_index] = True
        return known

    def forward(self, model: Any, batch: Any, x_adv: Tensor) -> Tensor:
        bn = self.universal.config.inverse_bn
        if batch.epoch < self.epoch:
            return probabilities(model, batch.x, bn)
        if batch.epoch == self.epoch:
            p = self.universal(model, batch, x_adv)
            return self.memory.update(batch.index, p, gamma=0.0)
        stored, seen = self.memory.recall(batch.index)
        if self._all_seen(batch):
            return stored
        # A sample that epoch T' did not visit: z stays as it is, P is filled on the first visit.
        x_inv = self.universal.bank.apply_to(batch.x, batch.y)
        p = torch.where(seen[:, None], stored, probabilities(model, x_inv, bn).float())
        return self.memory.update(batch.index, p, gamma=0.0)


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
