"""distill_loss: cross-entropy plus the pull towards a target distribution (paper eq. 7).

    mean over the batch of  −log q_y + lam·Σ_k p_k (log p_k − log q_k),   q = softmax(logits)

Shapes: logits (B, K), target_probs (B, K) detached, y int64 (B,). At least fp32 inside;
0·log 0 = 0, so target probabilities of exactly 0 are exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastuiat_kernels import checks


def distill_loss_reference(logits: Tensor, target_probs: Tensor, y: Tensor, lam: float) -> Tensor:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_q = torch.log_softmax(logits.to(dtype), dim=1)
    p = target_probs.detach().to(dtype)
    cross_entropy = -log_q.gather(1, y[:, None])[:, 0]
    divergence = (torch.xlogy(p, p) - p * log_q).sum(dim=1)
    return (cross_entropy + lam * divergence).mean()


def distill_loss(logits: Tensor, target_probs: Tensor, y: Tensor, *, lam: float) -> Tensor:
    """A scalar, differentiable in `logits`; no gradient reaches `target_probs`."""
    checks.floating(logits=logits, target_probs=target_probs)
    checks.same_device(logits=logits, target_probs=target_probs, y=y)
    if logits.shape != target_probs.shape:
        raise ValueError(
            f"target_probs has shape {tuple(target_probs.shape)}, logits {tuple(logits.shape)}"
        )
    checks.indices("y", y, logits.shape[1], logits.shape[0])
    return distill_loss_reference(logits, target_probs, y, lam)
