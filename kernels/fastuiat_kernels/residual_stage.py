"""The blocks of one resolution in a frozen ResNet as one operator, with a backward of its own.

    block: h = max(conv(x, w₁) + s₁, 0)        out = max(conv(h, w₂) + s₂ + x, 0)

Autograd adds a shortcut's gradient outside of both convolutions and masks it there; here each of
these is a part of the launch that makes it. A stage may begin with the second half of a block whose
first half strides: out₀ = max(conv(x, w₀) + s₀ + residual, 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastuiat_kernels.conv3x3 import conv3x3, conv3x3_backward


@torch.library.custom_op("fastuiat::residual_stage", mutates_args=())
def _forward(
    x: Tensor,
    residual: Tensor | None,
    weights: list[Tensor],
    backward_weights: list[Tensor],
    shifts: list[Tensor],
) -> list[Tensor]:
    """Every activation, the stage's output last."""
    made: list[Tensor] = []
    layers = list(zip(weights, shifts, strict=True))
    if residual is not None:
        made.append(_layer(x, *layers.pop(0), residual))
    for first, second in zip(layers[::2], layers[1::2], strict=True):
        block = made[-1] if made else x
        made.append(_layer(block, *first))
        made.append(_layer(made[-1], *second, block))
    return made


def _layer(x: Tensor, weight: Tensor, shift: Tensor, residual: Tensor | None = None) -> Tensor:
    out = conv3x3(x, weight, shift, residual=residual, relu=True)
    assert isinstance(out, Tensor)
    return out


@_forward.register_fake
def _(x, residual, weights, backward_weights, shifts):  # type: ignore[no-untyped-def]
    return [torch.empty_like(x) for _ in weights]


@torch.library.custom_op("fastuiat::residual_stage_backward", mutates_args=())
def _backward(grad: Tensor, made: list[Tensor], weights: list[Tensor], head: bool) -> list[Tensor]:
    """The gradients of the first sum's inputs from that of the last sum: of the head's x, where
    there is a head, and of what its blocks begin with, where there are any."""
    for i in reversed(range(int(head), len(weights), 2)):
        inner = conv3x3_backward(grad, weights[i + 1], mask=made[i], masked="product")
        before = made[i - 1] if i else None
        grad = conv3x3_backward(inner, weights[i], mask=before, residual=grad)
    through = [grad] if len(weights) > int(head) else []
    return [conv3x3_backward(grad, weights[0]), *through] if head else through


@_backward.register_fake
def _(grad, made, weights, head):  # type: ignore[no-untyped-def]
    return [torch.empty_like(grad) for _ in range(int(head) + (len(weights) > int(head)))]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    _, residual, _, backward_weights, _ = inputs
    ctx.head, ctx.layers = residual is not None, len(output)
    ctx.save_for_backward(*output, *backward_weights)


def _differentiate(ctx: Any, gradients: list[Tensor]) -> tuple[Any, ...]:
    made = list(ctx.saved_tensors[: ctx.layers])
    weights = list(ctx.saved_tensors[ctx.layers :])
    # Outside of the operator, so that a compiler can join it to what made the gradient.
    grad = torch.where(made[-1] > 0, gradients[-1], 0.0)
    grads = _backward(grad, made, weights, ctx.head)
    of_residual = (grads[1] if len(grads) > 1 else grad) if ctx.head else None
    nothing = [None] * ctx.layers
    return grads[0], of_residual, nothing, nothing, nothing


_forward.register_autograd(_differentiate, setup_context=_keep)


def residual_stage(
    x: Tensor,
    weights: Sequence[Tensor],
    backward_weights: Sequence[Tensor],
    shifts: Sequence[Tensor],
    *,
    residual: Tensor | None = None,
) -> Tensor:
    """Blocks of two layers, one after another; with `residual` behind a layer that adds it.

    x, residual (B, C, H, W) channels-last; a layer's weight packed for either direction by
    `pack_conv3x3`, its shift (C,); as many of each as there are layers, two for each block.
    Differentiable in x and residual, once, and in nothing else: the weights are frozen. Which
    shapes go by the kernel `conv3x3` says. ValueError on other numbers of layers.
    """
    layers = len(weights) - (residual is not None)
    if not len(weights) == len(backward_weights) == len(shifts) or not weights or layers % 2:
        raise ValueError(
            f"got {len(weights)} weights, {len(backward_weights)} backward weights and "
            f"{len(shifts)} shifts: a block has two of each, and a residual comes with one more"
        )
    made = _forward(x, residual, list(weights), list(backward_weights), list(shifts))
    return made[-1]
