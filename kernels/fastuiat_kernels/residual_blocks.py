"""The blocks of a frozen ResNet as one operator, with a backward of its own.

    block: h = max(conv(x, w₁) + s₁, 0)        out = max(conv(h, w₂) + s₂ + r, 0)

r is x, or conv1×1(x, v) + t where the block halves the image. Autograd adds a shortcut's gradient
outside of both convolutions and masks it there; here each of these is a part of the launch that
makes it: a block is two launches forward and two backward, and so is one that strides.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastuiat_kernels.conv3x3 import conv3x3, conv3x3_backward
from fastuiat_kernels.conv3x3_kernel import empty_image
from fastuiat_kernels.strided3x3 import strided3x3, strided3x3_backward

LAYERS = {1: 2, 2: 3}
"""Convolutions of a block by its stride: the shortcut's between the two others."""


@torch.library.custom_op("fastuiat::residual_blocks", mutates_args=())
def _forward(
    x: Tensor,
    strides: list[int],
    weights: list[Tensor],
    backward_weights: list[Tensor],
    shifts: list[Tensor],
    activated: bool,
) -> list[Tensor]:
    """h and out of every block."""
    made: list[Tensor] = []
    layers = iter(zip(weights, shifts, strict=True))
    for stride in strides:
        if stride == 1:
            inner, residual = _relu(x, *next(layers)), x
        else:
            inner, residual = strided3x3(x, *next(layers), *next(layers))
        x = _relu(inner, *next(layers), residual)
        made += [inner, x]
    return made


def _relu(x: Tensor, weight: Tensor, shift: Tensor, residual: Tensor | None = None) -> Tensor:
    out = conv3x3(x, weight, shift, residual=residual, relu=True)
    assert isinstance(out, Tensor)
    return out


@_forward.register_fake
def _(x, strides, weights, backward_weights, shifts, activated):  # type: ignore[no-untyped-def]
    return empty_blocks(x, strides, weights)


@torch.library.custom_op("fastuiat::residual_blocks_backward", mutates_args=())
def _backward(
    grad: Tensor, strides: list[int], made: list[Tensor], weights: list[Tensor], x: Tensor | None
) -> Tensor:
    """The gradient of x from that of the last sum, which its ReLU has let through already; given x,
    that of what went into its ReLU."""
    weights = list(weights)
    for place in reversed(range(len(strides))):
        before = made[2 * place - 1] if place else x
        inner = conv3x3_backward(grad, weights.pop(), mask=made[2 * place], masked="product")
        if strides[place] == 1:
            grad = conv3x3_backward(inner, weights.pop(), mask=before, residual=grad)
        else:
            shortcut, first = weights.pop(), weights.pop()
            grad = strided3x3_backward(inner, grad, first, shortcut, before)
    return grad


@_backward.register_fake
def _(grad, strides, made, weights, x):  # type: ignore[no-untyped-def]
    height, width = grad.shape[2:]
    for stride in strides:
        height, width = height * stride, width * stride
    return empty_image(grad, weights[0].shape[1], height, width)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, ctx.strides, _, backward_weights, _, activated = inputs
    ctx.layers = len(backward_weights)
    ctx.save_for_backward(x if activated else None, *output, *backward_weights)


def _differentiate(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    x, *made = ctx.saved_tensors[: -ctx.layers]
    weights = ctx.saved_tensors[-ctx.layers :]
    # Outside of the operator, so that a compiler can join it to what made the gradient.
    grad = torch.where(made[-1] > 0, gradients[-1], 0.0)
    nothing = [None] * ctx.layers
    grad = _backward(grad, ctx.strides, made, list(weights), x)
    return grad, None, nothing, nothing, nothing, None


_forward.register_autograd(_differentiate, setup_context=_keep)


def residual_blocks(
    x: Tensor,
    strides: Sequence[int],
    weights: Sequence[Tensor],
    backward_weights: Sequence[Tensor],
    shifts: Sequence[Tensor],
    *,
    activated: bool = False,
) -> Tensor:
    """Blocks of stride 1 or 2, one after another.

    x (B, C, H, W) channels-last. Of a block of stride 1 there are two weights, packed for either
    direction by `pack_conv3x3`; of one of stride 2 three: that of the first convolution and of the
    shortcut by `pack_strided`, and that of the second. Shifts are (K,), one for each.
    `activated` says that x is what a ReLU gave: then its gradient is that of what went into this.
    Differentiable in x, once, and in nothing else: the weights are frozen. ValueError on other
    strides, another number of layers, and sides of x that the strides do not halve evenly.
    """
    check_blocks(x, strides, weights, backward_weights)
    if len(shifts) != len(weights):
        raise ValueError(f"{len(weights)} layers have as many shifts, got {len(shifts)}")
    lists = list(strides), list(weights), list(backward_weights), list(shifts)
    return _forward(x, *lists, activated)[-1]


def check_blocks(
    x: Tensor, strides: Sequence[int], weights: Sequence[Tensor], backward: Sequence[Tensor]
) -> None:
    """ValueError where these cannot be an image, its blocks and their weights."""
    if not strides or set(strides) - set(LAYERS):
        raise ValueError(f"strides must be of 1 and 2, at least one, got {list(strides)}")
    wanted = sum(LAYERS[stride] for stride in strides)
    if not len(weights) == len(backward) == wanted:
        raise ValueError(
            f"blocks of strides {list(strides)} have {wanted} layers, got {len(weights)} weights "
            f"and {len(backward)} backward weights"
        )
    halved = math.prod(strides)
    if x.ndim != 4 or x.shape[2] % halved or x.shape[3] % halved:
        raise ValueError(
            f"x must be (B, C, H, W) with sides that {halved} divides, got {tuple(x.shape)}"
        )


def empty_blocks(x: Tensor, strides: Sequence[int], weights: Sequence[Tensor]) -> list[Tensor]:
    """Two images of each block: in its inner and outer shape, which are one."""
    made, layer = [], 0
    height, width = x.shape[2:]
    for stride in strides:
        layer += LAYERS[stride]
        height, width = height // stride, width // stride
        filters = weights[layer - 1].shape[1]
        made += [empty_image(x, filters, height, width) for _ in range(2)]
    return made
