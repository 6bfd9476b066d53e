"""Gradients with respect to images, so computed that half precision does not weaken an attack.

In fp32 and fp64 they are autograd's of the loss as it stands. Where a network's outputs are bf16 or
fp16 the backward is seeded at the outputs instead: the seeds are made in fp32 and scaled first,
since −log p_y of a confident sample has a gradient that half precision rounds to 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastuiat.losses import AttackLoss, attack_cross_entropy, attack_kl, wide

HALF = (torch.bfloat16, torch.float16)
Seed = Callable[[Tensor, Tensor, Any], Tensor]


def leaf(x: Tensor) -> Tensor:
    """x as what a gradient can be taken of: itself where it is that already.

    Callers of a compiled region call it outside: PyTorch 2.11 cannot trace `requires_grad_`.
    """
    return x if x.requires_grad and x.is_leaf else x.detach().requires_grad_()


def in_layout_of(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient with x's strides: a net with NCHW weights hands back NCHW gradients."""
    if grad.stride() == x.stride():
        return grad
    return torch.empty_like(x, dtype=grad.dtype).copy_(grad)


def cross_entropy_seed(logits: Tensor, y: Tensor, target_probs: Tensor | None) -> Tensor:
    """(p − onehot(y)) / max|p − onehot(y)| per sample, (B, K).

    The largest entry is p_y − 1 = −Σ_{k≠y} p_k, so the others are the softmax over the wrong
    classes alone: nothing cancels and nothing underflows at any margin.
    """
    wrong = torch.softmax(logits.scatter(1, y[:, None], float("-inf")), dim=1)
    return wrong.scatter(1, y[:, None], -1.0)


def kl_seed(logits: Tensor, y: Tensor, target_probs: Tensor) -> Tensor:
    """(q − p) / max|q − p| per sample, (B, K), with q = softmax(logits); 0 where q = p."""
    difference = torch.softmax(logits, dim=1) - target_probs.to(logits.dtype)
    largest = difference.abs().amax(dim=1, keepdim=True)
    return difference / largest.clamp_min(torch.finfo(logits.dtype).tiny)


UNIT_SEEDS: dict[AttackLoss, Seed] = {
    attack_cross_entropy: cross_entropy_seed,
    attack_kl: kl_seed,
}
"""Per loss, its gradient with respect to the logits, scaled per sample to a largest entry of 1.

The margin loss needs none: its gradients are ±1 as they are.
"""


def power_of_two_scale(seeds: Sequence[Tensor]) -> Tensor:
    """The power of two, fp32 (), that brings the largest entry of all seeds into [1, 2)."""
    largest = torch.stack([seed.abs().amax() for seed in seeds]).amax()
    # By the exponent's bits: exact on every device, where exp2 and log2 are not.
    exponent = largest.to(torch.float32).view(torch.int32) >> 23
    return ((254 - exponent).clamp(1, 253) << 23).view(torch.float32)


def gradient_through(outputs: Sequence[Tensor], loss: Callable[..., Tensor], x: Tensor) -> Tensor:
    """∂loss(*outputs)/∂x for outputs that a network computed from x; `loss` works in fp32.

    Through a half-precision network the backward runs at one power-of-two scale for the whole
    batch, taken out again at the end.
    """
    if outputs[0].dtype not in HALF:
        return torch.autograd.grad(loss(*outputs), x)[0]
    wide_outputs = [wide(output.detach()) for output in outputs]
    # By torch.func: an output becomes no leaf in a graph (see `leaf`).
    seeds = torch.func.grad(loss, argnums=tuple(range(len(outputs))))(*wide_outputs)
    scale = power_of_two_scale(seeds)
    scaled = [(s * scale).to(out.dtype) for s, out in zip(seeds, outputs, strict=True)]
    (grad,) = torch.autograd.grad(outputs, x, scaled)
    return grad / scale.to(grad.dtype)


def input_gradient(
    net: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    target_probs: Tensor | None,
    loss: AttackLoss,
    sign_per_sample: bool = False,
    stem: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """∂loss/∂x (B, C, H, W) in x's layout; `loss` is a sum over the batch.

    With a `stem`, the net is what stands behind it, and the gradient is that of what it makes of x.

    With `sign_per_sample` only the signs count and no sample touches another's gradient (BatchNorm
    in eval mode), so a half-precision network may be given seeds of unit size per sample: the
    result is then the gradient times a positive factor of each sample's own.
    """
    with torch.enable_grad():
        x = leaf(x) if stem is None else stem(leaf(x))
        logits = net(x)
        if sign_per_sample and logits.dtype in HALF and loss in UNIT_SEEDS:
            seed = UNIT_SEEDS[loss](wide(logits.detach()), y, target_probs)
            (grad,) = torch.autograd.grad(logits, x, seed.to(logits.dtype))
        else:
            grad = gradient_through((logits,), lambda z: loss(z, y, target_probs), x)
    return in_layout_of(x, grad)
