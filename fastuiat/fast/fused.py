"""The frozen net's blocks as one operator of `fastuiat_kernels`, where that was measured faster.

A ResNet in eval mode is convolutions with a shift, a shortcut and a ReLU behind each: one launch a
layer, forward and backward, in place of a convolution of cuDNN and a pass over its result. No net
is fused by default: not before `fastuiat bench step --providers fused cudnn` has a record of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastuiat.fast.folding import shared_copy
from fastuiat.fast.regions import Regions
from fastuiat.models.resnet import BasicBlock, ResNet18
from fastuiat_kernels import pack_conv3x3, pack_strided, residual_blocks

FASTER: frozenset[tuple[str, tuple[int, int]]] = frozenset()
"""(net, compute capability) of those of which benchmarks/results has a record that says so."""
STEM_CHANNELS = 8
"""Channels that tensor cores take: for three, cuDNN turns the image around and does without them,
42 µs for what moves 17 MB (128 images, H100)."""
HALVES = (torch.bfloat16, torch.float16)
_way: ContextVar[bool | None] = ContextVar("fused", default=None)


@contextmanager
def instead(way: bool) -> Iterator[None]:
    """Nets that are viewed meanwhile are fused, or are not, whatever was measured: the two sides of
    a bench."""
    token = _way.set(way)
    try:
        yield
    finally:
        _way.reset(token)


def wanted(net: nn.Module, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the frozen copy of the net shall be fused."""
    if not isinstance(net, ResNet18) or net.act is not F.relu:
        return False
    if (way := _way.get()) is not None:
        return way
    if device.type != "cuda" or dtype not in HALVES:
        return False
    return (type(net).__name__, torch.cuda.get_device_capability(device)) in FASTER


class Layer(nn.Module):
    """A convolution and the BatchNorm behind it, folded and packed for both directions."""

    forward_weight: Tensor
    backward_weight: Tensor
    shift: Tensor

    def __init__(self, conv: nn.Module, norm: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        self.conv, self.norm = conv, norm
        self._pack = pack_conv3x3 if conv.stride == (1, 1) else pack_strided
        for name, backward in (("forward_weight", False), ("backward_weight", True)):
            packed = self._pack(conv.weight.detach(), backward=backward)
            self.register_buffer(name, torch.empty_like(packed, dtype=dtype).contiguous())
        self.register_buffer("shift", torch.empty_like(norm.bias))

    def fold(self) -> None:
        """Of the weights and running statistics as they are now, in their dtype, rounded once."""
        norm = self.norm
        assert norm.running_mean is not None and norm.running_var is not None
        factor = norm.weight * (norm.running_var + norm.eps).rsqrt()
        weight = self.conv.weight * factor[:, None, None, None]
        self.forward_weight.copy_(self._pack(weight))
        self.backward_weight.copy_(self._pack(weight, backward=True))
        self.shift.copy_(norm.bias - norm.running_mean * factor)


def fold(layers: nn.ModuleList) -> Tensor:
    """All of them; what comes back says where it was done."""
    for layer in layers:
        assert isinstance(layer, Layer)
        layer.fold()
    first = layers[0]
    assert isinstance(first, Layer)
    return first.shift.sum()


class Blocks(nn.Module):
    """All blocks of a frozen net."""

    def __init__(self, strides: list[int], layers: list[Layer]) -> None:
        super().__init__()
        self.strides = strides
        self.weights = [layer.forward_weight for layer in layers]
        self.backward_weights = [layer.backward_weight for layer in layers]
        self.shifts = [layer.shift for layer in layers]

    def forward(self, x: Tensor) -> Tensor:
        return residual_blocks(x, self.strides, self.weights, self.backward_weights, self.shifts)


class Stem(nn.Module):
    """The first convolution, of images with empty channels."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        more = (0, 0, 0, 0, 0, STEM_CHANNELS - x.shape[1])
        return F.conv2d(F.pad(x, more), F.pad(self.conv.weight, more), padding=1)


class Fused:
    """`net`, a copy of `frozen` with its blocks in one; the rest is shared with it.

    The factors come from `live`, in its dtype, at each `refresh`.
    """

    def __init__(self, live: ResNet18, frozen: nn.Module, dtype: torch.dtype) -> None:
        self.net = shared_copy(frozen)
        strides, layers = [], []
        stages = [f"layer{number}" for number in range(1, 5)]
        for block in (block for stage in stages for block in getattr(live, stage)):
            assert isinstance(block, BasicBlock)
            pairs: list[tuple[nn.Module, nn.Module]] = [(block.conv1, block.bn1)]
            if len(block.shortcut):
                pairs.append((block.shortcut[0], block.shortcut[1]))
            pairs.append((block.conv2, block.bn2))
            layers += [Layer(conv, norm, dtype) for conv, norm in pairs]
            strides.append(block.conv1.stride[0])
        self.layers, self.halves = nn.ModuleList(layers), math.prod(strides)
        assert isinstance(self.net.conv1, nn.Conv2d)
        self.net.conv1 = Stem(self.net.conv1)
        setattr(self.net, stages[0], Blocks(strides, layers))
        for stage in stages[1:]:
            setattr(self.net, stage, nn.Identity())

    def takes(self, x: Tensor) -> bool:
        """Whether it is for images of this size: those that can be halved as often as it does."""
        return x.shape[2] % self.halves == x.shape[3] % self.halves == 0

    def refresh(self, regions: Regions) -> None:
        """Fold the live weights and running statistics as they are now."""
        with torch.no_grad():
            regions(fold, "fold")(self.layers)
