"""Convolutions in a profile: which layer an operator belongs to, and what it must compute."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import flop_registry

from fastuiat.bench.passes import Op, TensorSpec
from fastuiat.bench.timing import Plan, Provider, WallClock, interleaved

FORWARD = "convolution forward"
INPUT = "convolution input gradient"
WEIGHTS = "convolution weight gradient"
BOTH = "convolution input and weight gradient"

Shape = tuple[int, ...]
aten = torch.ops.aten


@dataclass(frozen=True)
class Layer:
    """A convolution by its shapes: x (N, C, H, W), its weight (K, C, …) and its result."""

    x: Shape
    weight: Shape
    out: Shape
    settings: tuple[Any, ...]
    """Stride, padding, dilation, transposed, output padding, groups."""

    @property
    def stride(self) -> Shape:
        return self.settings[0]

    def flops(self, kind: str) -> int:
        """Operations of one call, by the formulas that count a step's (bench/passes.py)."""
        if kind == FORWARD:
            formula = flop_registry[aten.convolution]
            return int(formula(self.x, self.weight, None, *self.settings, out_val=self.out))
        formula = flop_registry[aten.convolution_backward]
        mask = [kind in (INPUT, BOTH), kind in (WEIGHTS, BOTH), False]
        grads = [self.x, self.weight, None]
        return int(
            formula(self.out, self.x, self.weight, None, *self.settings, mask, out_val=grads)
        )

    def __str__(self) -> str:
        kernel = "×".join(map(str, self.weight[2:]))
        stride = "" if set(self.stride) == {1} else f", stride {self.stride[0]}"
        return f"{'×'.join(map(str, self.x))} → {self.out[1]}, {kernel}{stride}"


Found = tuple[str, Layer]
"""Which pass, and of which layer."""
Products = Mapping[tuple[Shape, Shape], Found]
"""What a product of two matrices is part of, by their shapes."""


def convolution(name: str, shapes: Sequence[Any], values: Sequence[Any]) -> Found | None:
    """What an operator computes, and of which layer; None for one that is no convolution.

    `shapes` has the sizes of the arguments that are tensors, `values` the others.
    """
    if name == "aten::convolution" and len(values) == 9:
        x, weight, settings = shapes[0], shapes[1], tuple(values[3:])
        return FORWARD, Layer(x, weight, _out(x, weight, settings), settings)
    if name == "aten::convolution_backward" and len(values) == 11:
        out, x, weight = shapes[:3]
        to_input, to_weights, _ = values[10]
        kind = BOTH if to_input and to_weights else INPUT if to_input else WEIGHTS
        return kind, Layer(x, weight, out, tuple(values[4:10]))
    return None


def _out(x: Shape, weight: Shape, settings: tuple[Any, ...]) -> Shape:
    stride, padding, dilation, transposed, extra, groups = settings
    spatial = []
    for i, (size, taps) in enumerate(zip(x[2:], weight[2:], strict=True)):
        reach = dilation[i] * (taps - 1)
        if transposed:
            spatial.append((size - 1) * stride[i] - 2 * padding[i] + reach + extra[i] + 1)
        else:
            spatial.append((size + 2 * padding[i] - reach - 1) // stride[i] + 1)
    return (x[0], weight[1] * groups if transposed else weight[0], *spatial)


def counted(op: Op) -> Found | None:
    """The same of an operation that was counted; None for a matrix product."""
    values = tuple(tuple(a) if isinstance(a, list | torch.Size) else a for a in op.args)
    shapes = [a.shape if isinstance(a, TensorSpec) else () for a in op.args]
    return convolution(f"aten::{op.function._overloadpacket.__name__}", shapes, values)


def products(ops: Iterable[Op]) -> Products:
    """The matrix products by which the step's convolutions may be computed instead.

    Those of `models.convolution.product_of_patches`: pixels × patches times patches × channels and,
    transposed, its gradients. A 1×1 kernel is left out: its forward has the shapes of its gradient.
    """
    found: dict[tuple[Shape, Shape], Found] = {}
    for _, layer in filter(None, map(counted, ops)):
        taps = math.prod(layer.weight[2:])
        *_, transposed, _, groups = layer.settings
        if taps == 1 or transposed or groups != 1:
            continue
        pixels = layer.out[0] * math.prod(layer.out[2:])
        channels, length = layer.weight[0], taps * layer.weight[1]
        found[(pixels, length), (length, channels)] = FORWARD, layer
        found[(pixels, channels), (channels, length)] = INPUT, layer
        found[(length, pixels), (pixels, channels)] = WEIGHTS, layer
        found[(channels, pixels), (pixels, length)] = WEIGHTS, layer
    return found


def input_share(layer: Layer, dtype: torch.dtype) -> float:
    """The input gradient's part of a backward to input and weights, on the CPU.

    There both are one operator, within which the profiler sees nothing: each is timed alone.
    """
    out, x, weight = (
        torch.randn(shape).to(dtype, memory_format=torch.channels_last)
        for shape in (layer.out, layer.x, layer.weight)
    )

    def backward(*mask: bool) -> Callable[[], object]:
        return functools.partial(
            aten.convolution_backward, out, x, weight, None, *layer.settings, [*mask, False]
        )

    ways = [
        Provider("input", lambda: backward(True, False)),
        Provider("weights", lambda: backward(False, True)),
    ]
    to_input, to_weights = interleaved(ways, clock=WallClock(), plan=Plan(rounds=3))
    for measured in (to_input, to_weights):
        if measured.error:
            raise RuntimeError(f"{layer}: {measured.error}")
    total = to_input.spread.median + to_weights.spread.median
    return to_input.spread.median / total
