"""GradAlign (Andriushchenko and Flammarion 2020): gradients alike all over the ball."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastuiat.config import not_negative
from fastuiat.gradients import input_gradient, leaf
from fastuiat.losses import attack_cross_entropy, misalignment, wide
from fastuiat.methods.base import register
from fastuiat.methods.rs_fgsm import SingleStepMethod
from fastuiat.network import Model, TrainingBatch, frozen
from fastuiat_kernels import random_start, sign_step


def alignment_weight(eps: float) -> float:
    """μ(eps) = exp(eps·255·ln 10 / 8 + ln 0.02): 0.2 at 8/255."""
    return math.exp(eps * 255 * math.log(10) / 8 + math.log(0.02))


def aligned_loss(
    net: nn.Module, x_adv: Tensor, x_noisy: Tensor, grad: Tensor, y: Tensor, mu: float
) -> tuple[Tensor, Tensor]:
    """CE(f(x̂), y) + μ·(1 − cos(grad, ∇ₓl(x_noisy))), and f(x̂).

    The gradient at x_noisy is differentiated in turn, which a compiler can follow only inside one
    graph, and only where x_noisy comes in as a leaf that requires grad.
    """
    loss = attack_cross_entropy(net(x_noisy), y, None)
    (other,) = torch.autograd.grad(loss, x_noisy, create_graph=True)
    logits = net(x_adv)
    return F.cross_entropy(wide(logits), y) + mu * misalignment(grad, other), logits


@register("gradalign")
class GradAlign(SingleStepMethod):
    """CE(f(x̂), y) + μ·(1 − cos(∇ₓl(x), ∇ₓl(x + U(−eps, eps)))), x̂ one step of 1.25·eps from x.

    The step and the alignment share the gradient at x, which is a constant. The noisy point is not
    clipped to the pixel range.

    The authors' code differs in two things. It takes the gradient at x through a clamp, which
    halves it where a pixel is 0 or 1, 14% of them in padded CIFAR-10 crops: x̂ is the same, and the
    gradient of the alignment moved by 26% (of a wrn-10-1 after 100 steps). And its forwards are x,
    x̂, noisy, here x, noisy, x̂: x̂ has 37% of the running statistics in place of 33%, and noisy the
    other way round.
    """

    objective = staticmethod(aligned_loss)

    @dataclass(frozen=True, kw_only=True)
    class Config(SingleStepMethod.Config):
        mu: float | None = None
        """Weight of the alignment; by default exp(eps·255·ln 10 / 8 + ln 0.02)."""

        def __post_init__(self) -> None:
            if self.mu is not None:
                not_negative(mu=self.mu)

    @property
    def mu(self) -> float:
        set_to = self.config.mu
        return alignment_weight(self.config.attack.eps) if set_to is None else set_to

    def of_objective(self, model: Model, *inputs: Any) -> Any:
        # PyTorch's fast attention cannot be differentiated twice.
        with sdpa_kernel(SDPBackend.MATH):
            return super().of_objective(model, *inputs)

    def inputs(self, model: Model, batch: TrainingBatch) -> tuple[Any, ...]:
        x, y, eps = batch.x.detach(), batch.y, self.config.attack.eps
        with frozen(model, "train") as net, torch.no_grad():
            grad = net.region(input_gradient)(net, leaf(x), y, None, attack_cross_entropy)
        x_adv = sign_step(x, x, grad, alpha=self.alpha, eps=eps)
        key, index = batch.noise("alignment")
        x_noisy = random_start(x, index, key, eps=eps, lo=-math.inf, hi=math.inf)
        return x_adv, x_noisy.requires_grad_(), grad, y, self.mu
