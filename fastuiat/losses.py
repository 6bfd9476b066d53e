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


def attack_kl(logits: Tensor, y: Tensor, target_probs: Tensor | None) -> Tensor:
    """Σ KL(p ‖ f(x')) with p = target_probs (B, K) (TRADES; Zhang et al. 2019)."""
    if target_probs is None:
        raise ValueError("loss='kl' needs target_probs")
    return kl_divergence(target_probs, logits).sum()


def kl_divergence(p: Tensor, logits: Tensor) -> Tensor:
    """KL(p ‖ softmax(logits)) per sample, (B,), with 0·log 0 = 0; p (B, K) are probabilities."""
    log_q = torch.log_softmax(wide(logits), dim=1)
    return (torch.xlogy(p, p) - p * log_q).sum(dim=1)


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
