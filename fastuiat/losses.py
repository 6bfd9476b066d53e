"""Losses as pure functions of tensors, computed in at least fp32.

Attack losses are sums over the batch: a mean underflows in half precision.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

AttackLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def wide(logits: Tensor) -> Tensor:
    """The logits in fp32, or as they are in fp64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def attack_cross_entropy(logits: Tensor, y: Tensor, target_probs: Tensor | None) -> Tensor:
    return F.cross_entropy(wide(logits), y, reduction="sum")


def attack_margin(logits: Tensor, y: Tensor, target_probs: Tensor | None) -> Tensor:
    """Σ max_{k≠y} z_k − z_y: above 0 where the sample is misclassified (Carlini, Wagner 2017)."""
    logits = wide(logits)
    own = logits.gather(1, y[:, None])[:, 0]
    others = logits.scatter(1, y[:, None], float("-inf"))
    return (others.amax(dim=1) - own).sum()


def logits_ratio(logits: Tensor, y: Tensor) -> Tensor:
    """DLR per sample, (B,): −(z_y − max_{k≠y} z_k)/(z_1st − z_3rd) (Croce, Hein 2020, eq. 6)."""
    order, ranks = logits.sort(dim=1)
    others = torch.where(ranks[:, -1] == y, order[:, -2], order[:, -1])
    own = logits.gather(1, y[:, None])[:, 0]
    return -(own - others) / (order[:, -1] - order[:, -3] + 1e-12)


def targeted_logits_ratio(
    logits: Tensor, y: Tensor, target: Tensor, relative: Tensor | None = None
) -> Tensor:
    """Targeted DLR per sample, (B,): (z_t − z_y)/(z_1st − (z_3rd + z_4th)/2) (eq. 7 there).

    Where `relative`, a bool (), is given and false, z_t − z_y alone, which fewer than four classes
    have as well.
    """
    pair = logits.gather(1, torch.stack([target, y], dim=1))
    order = logits.sort(dim=1).values
    third, fourth = (order[:, -min(place, logits.shape[1])] for place in (3, 4))
    spread = order[:, -1] - 0.5 * (third + fourth) + 1e-12
    if relative is not None:
        spread = torch.where(relative, spread, 1.0)
    return (pair[:, 0] - pair[:, 1]) / spread


def attack_kl(logits: Tensor, y: Tensor, target_probs: Tensor | None) -> Tensor:
    """Σ KL(p ‖ f(x')) with p = target_probs (B, K) (TRADES; Zhang et al. 2019)."""
    if target_probs is None:
        raise ValueError("loss='kl' needs target_probs")
    return kl_divergence(target_probs, logits).sum()


def kl_divergence(p: Tensor, logits: Tensor) -> Tensor:
    """KL(p ‖ softmax(logits)) per sample, (B,), with 0·log 0 = 0; p (B, K) are probabilities.

    Differentiable in both; at p = 0, where the slope of p·log p is infinite, that term adds none.
    """
    log_q = torch.log_softmax(wide(logits), dim=1)
    return (p * torch.log(torch.where(p == 0, 1.0, p)) - p * log_q).sum(dim=1)


def kl_between(logits: Tensor, logits_adv: Tensor) -> Tensor:
    """KL(softmax(logits) ‖ softmax(logits_adv)) per sample, (B,), differentiable in both.

    From log-probabilities on both sides, so that a probability that underflows to 0 has gradient 0.
    """
    log_p = torch.log_softmax(wide(logits), dim=1)
    log_q = torch.log_softmax(wide(logits_adv), dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """−log p_y − log(1.0001 − max_{k≠y} p_k + 1e-12) per sample, (B,) (Wang et al. 2020).

    The constants are the authors' code's and move more than rounding: the second term ends at 9.2,
    and its gradient vanishes as 1 − p_k falls below 1e-4. Without them a confident error would be
    pulled twice as hard, once by each term. 1 − p_k is formed as the sum of the other
    probabilities, which cancels nothing.
    """
    logits = wide(logits)
    own = y[:, None]
    runner_up = logits.detach().scatter(1, own, float("-inf")).argmax(dim=1, keepdim=True)
    rest = torch.softmax(logits, dim=1).scatter(1, runner_up, 0.0).sum(dim=1)
    log_p = torch.log_softmax(logits, dim=1).gather(1, own)[:, 0]
    return -log_p - torch.log(rest + (1e-4 + 1e-12))


def misalignment(grad: Tensor, other: Tensor) -> Tensor:
    """1 − cos(grad, other), a mean over the samples whose gradients are both not zero; else 0.

    Gradients (B, C, H, W); differentiable in both (Andriushchenko and Flammarion 2020).
    """
    a, b = wide(grad).flatten(1), wide(other).flatten(1)
    a_square, b_square = a.square().sum(dim=1), b.square().sum(dim=1)
    real = (a_square > 0) & (b_square > 0)
    # The root of 0 has an infinite slope, so a left-out sample gets length 1 before it.
    lengths = torch.where(real, a_square, 1.0).sqrt() * torch.where(real, b_square, 1.0).sqrt()
    terms = torch.where(real, 1 - (a * b).sum(dim=1) / lengths, 0.0)
    return terms.sum() / real.sum().clamp(min=1)


ATTACK_LOSSES: dict[str, AttackLoss] = {
    "ce": attack_cross_entropy,
    "margin": attack_margin,
    "kl": attack_kl,
}


def inverse_loss(
    logits_inv: Tensor,
    y: Tensor,
    features_inv: Tensor,
    features: Tensor,
    features_adv: Tensor,
    *,
    beta: float,
) -> Tensor:
    """L_inv summed over the batch (paper eq. 4); L1 is a mean over the feature width.

    The feature term is written as its tangent at features_inv, with its own value: the same
    gradient, but one tensor of signs kept for the backward instead of two differences.
    """
    own = wide(features_inv)
    with torch.no_grad():
        near, far = own - wide(features), own - wide(features_adv)
        slope = (near.sign() - far.sign()) * (beta / own.shape[1])
        value = (near.abs() - far.abs()).mean(dim=1).sum() * beta
    tangent = (slope * own).sum()
    return attack_cross_entropy(logits_inv, y, None) + tangent + (value - tangent.detach())
