"""The blocks of a frozen pre-activation ResNet as one operator, with a backward of its own.

    block: h = max(conv(a, w₁) + s₁, 0)     x' = conv(h, w₂) + r     a' = max(scale·x' + shift, 0)

x is the sum that goes on from block to block, a its activation by the BatchNorm that comes next,
the following block's first or the net's last. r is x, or conv1×1(a, v) + t where the block halves
the image. Where a block activates, its scale stands in front of w₁ and v in the backward weights:
that of the gradient of x. A block is two launches forward and two backward, and so is one that
strides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastuiat_kernels import checks
from fastuiat_kernels.conv3x3 import conv3x3, conv3x3_backward
from fastuiat_kernels.conv3x3_kernel import empty_image
from fastuiat_kernels.residual_blocks import check_blocks, empty_blocks
from fastuiat_kernels.strided3x3 import strided3x3, strided3x3_backward


@torch.library.custom_op("fastuiat::preactivation_blocks", mutates_args=())
def _forward(
    x: Tensor,
    active: Tensor,
    strides: list[int],
    weights: list[Tensor],
    backward_weights: list[Tensor],
    shifts: list[Tensor],
    scales: list[Tensor],
    next_shifts: list[Tensor],
) -> list[Tensor]:
    """h and a' of every block."""
    made: list[Tensor] = []
    layers, others = iter(weights), iter(shifts)
    for stride, *second in zip(strides, scales, next_shifts, strict=True):
        if stride == 1:
            inner = conv3x3(active, next(layers), next(others), relu=True)
            residual = x
        else:
            first = next(layers), next(others)
            inner, residual = strided3x3(active, *first, next(layers), next(others))
        assert isinstance(inner, Tensor)
        x, active = conv3x3(inner, next(layers), residual=residual, second=(second[0], second[1]))
        made += [inner, active]
    return made


@_forward.register_fake
def _(x, active, strides, weights, backward_weights, shifts, scales, next_shifts):  # type: ignore[no-untyped-def]
    return empty_blocks(x, strides, weights)


@torch.library.custom_op("fastuiat::preactivation_blocks_backward", mutates_args=())
def _backward(
    grad: Tensor, strides: list[int], active: Tensor, made: list[Tensor], weights: list[Tensor]
) -> Tensor:
    """The gradient of x from that of the last sum; it may be that tensor's own memory no more."""
    weights = list(weights)
    for place in reversed(range(len(strides))):
        before = made[2 * place - 1] if place else active
        inner = conv3x3_backward(grad, weights.pop(), mask=made[2 * place], masked="product")
        if strides[place] == 1:
            first = weights.pop()
            grad = conv3x3_backward(inner, first, mask=before, residual=grad, masked="product")
        else:
            shortcut, first = weights.pop(), weights.pop()
            grad = strided3x3_backward(inner, grad, first, shortcut, before)
    return grad


@_backward.register_fake
def _(grad, strides, active, made, weights):  # type: ignore[no-untyped-def]
    return empty_image(grad, *active.shape[1:])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _, active, ctx.strides, _, backward_weights, _, scales, _ = inputs
    ctx.layers = len(backward_weights)
    ctx.save_for_backward(active, scales[-1], *output, *backward_weights)


def _differentiate(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    active, scale, *kept = ctx.saved_tensors
    made, weights = kept[: -ctx.layers], kept[-ctx.layers :]
    # Outside of the operator, so that a compiler can join it to what made the gradient.
    scaled = (gradients[-1] * scale[:, None, None]).to(gradients[-1].dtype)
    grad = _backward(torch.where(made[-1] > 0, scaled, 0.0), ctx.strides, active, made, weights)
    blocks, layers = len(ctx.strides), ctx.layers
    shifts = [None] * (layers - blocks)
    return grad, None, None, [None] * layers, [None] * layers, shifts, *[[None] * blocks] * 2


_forward.register_autograd(_differentiate, setup_context=_keep)


def preactivation_blocks(
    x: Tensor,
    active: Tensor,
    strides: Sequence[int],
    weights: Sequence[Tensor],
    backward_weights: Sequence[Tensor],
    shifts: Sequence[Tensor],
    scales: Sequence[Tensor],
    next_shifts: Sequence[Tensor],
) -> Tensor:
    """Blocks of stride 1 or 2, one after another: the activation behind the last.

    x (B, C, H, W) channels-last, and `active` its activation, max(scale·x + shift, 0). Weights are
    as `residual_blocks` has them; those of a block's first convolution and of its shortcut have in
    `backward_weights` that scale in front of the gradient of their input. Shifts are of the layers
    that have one: a block's first, and its shortcut's. `scales` and `next_shifts`, (K,) fp32 on a
    GPU, are of the activation behind each block. Differentiable in x, once, and in nothing else;
    what x does by way of `active` is part of its gradient. ValueError as `residual_blocks`.
    """
    check_blocks(x, strides, weights, backward_weights)
    blocks = len(strides)
    if len(shifts) != len(weights) - blocks or not len(scales) == len(next_shifts) == blocks:
        raise ValueError(
            f"{blocks} blocks of {len(weights)} layers have {len(weights) - blocks} shifts and "
            f"{blocks} scales, got {len(shifts)}, {len(scales)} and {len(next_shifts)} next shifts"
        )
    if active.shape != x.shape:
        raise ValueError(f"active must be {tuple(x.shape)}, got {tuple(active.shape)}")
    checks.only_channels_last(x=x, active=active)
    lists = (strides, weights, backward_weights, shifts, scales, next_shifts)
    return _forward(x, active.detach(), *map(list, lists))[-1]
