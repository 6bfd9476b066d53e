"""The frozen net's blocks as one operator of `fastuiat_kernels`, where that was measured faster.

A ResNet in eval mode is convolutions with a shift, a shortcut and a ReLU behind each: one launch a
layer, forward and backward, in place of a convolution of cuDNN and a pass over its result. A step
of an attack in eval mode (SAT, TRADES, MART, HAT, IAT, UIAT) is one launch with the gradient of the
first layer's input; not those of z, which sums gradients over a class, nor of an inverse image, nor
of attacks on batch statistics or in training mode. No net is fused by default: not before
`fastuiat bench step --providers fused cudnn` has a record of it.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastuiat.fast.folding import shared_copy
from fastuiat.fast.regions import Regions
from fastuiat.models.preact_resnet import PreActBlock, PreActResNet18
from fastuiat.models.resnet import BasicBlock, ResNet18
from fastuiat_kernels import (
    conv3x3_sign_step,
    pack_conv3x3,
    pack_image_gradient,
    pack_strided,
    preactivation_blocks,
    residual_blocks,
)
from fastuiat_kernels.residual_blocks import LAYERS

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


def takes_net(net: nn.Module) -> bool:
    """Whether there is an operator for its blocks."""
    if isinstance(net, PreActResNet18):
        variant = net.variant
        return net.act is F.relu and variant.final_bn and not variant.raw_shortcut
    return isinstance(net, ResNet18) and net.act is F.relu


def wanted(
    net: nn.Module, device: torch.device, dtype: torch.dtype
) -> TypeGuard[ResNet18 | PreActResNet18]:
    """Whether the frozen copy of the net shall be fused."""
    if not takes_net(net):
        return False
    if (way := _way.get()) is not None:
        return way
    if device.type != "cuda" or dtype not in HALVES:
        return False
    return (type(net).__name__, torch.cuda.get_device_capability(device)) in FASTER


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """What a BatchNorm in eval mode multiplies by, and adds then, (C,) each."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


class Layer(nn.Module):
    """A convolution and the BatchNorm behind it, if any, folded and packed for both directions.

    With `before`, the BatchNorm whose activation it takes, the gradient is that of what goes into
    this one.
    """

    forward_weight: Tensor
    backward_weight: Tensor
    shift: Tensor

    def __init__(
        self,
        conv: nn.Module,
        norm: nn.Module | None,
        dtype: torch.dtype,
        before: nn.Module | None = None,
    ) -> None:
        super().__init__()
        assert isinstance(conv, nn.Conv2d)
        self.conv, self.norm, self.before = conv, norm, before
        self._pack = pack_conv3x3 if conv.stride == (1, 1) else pack_strided
        for name, backward in (("forward_weight", False), ("backward_weight", True)):
            packed = self._pack(conv.weight.detach(), backward=backward)
            self.register_buffer(name, torch.empty_like(packed, dtype=dtype).contiguous())
        self.register_buffer("shift", conv.weight.new_zeros(conv.out_channels))

    def fold(self) -> None:
        """Of the weights and running statistics as they are now, in their dtype, rounded once."""
        weight = self.conv.weight
        if self.norm is not None:
            scale, shift = scale_and_shift(self.norm)
            weight = weight * scale[:, None, None, None]
            self.shift.copy_(shift)
        self.forward_weight.copy_(self._pack(weight))
        if self.before is not None:
            weight = weight * scale_and_shift(self.before)[0][None, :, None, None]
        self.backward_weight.copy_(self._pack(weight, backward=True))


class Activation(nn.Module):
    """A BatchNorm in eval mode and ReLU, where a pre-activation net has them."""

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.Module | None) -> None:
        super().__init__()
        assert isinstance(norm, nn.BatchNorm2d)
        self.norm = norm
        self.register_buffer("scale", torch.empty_like(norm.weight))
        self.register_buffer("shift", torch.empty_like(norm.bias))

    def fold(self) -> None:
        scale, shift = scale_and_shift(self.norm)
        self.scale.copy_(scale)
        self.shift.copy_(shift)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.scale[:, None, None] + self.shift[:, None, None]).relu().to(x.dtype)


def fold(parts: nn.ModuleList) -> Tensor:
    """All of them; what comes back says where it was done."""
    for part in parts:
        assert isinstance(part, Layer | Activation | Stem)
        part.fold()
    first = parts[0]
    assert isinstance(first, Layer)
    return first.shift.sum()


class Blocks(nn.Module):
    """All blocks of a frozen net that activates behind its shortcuts."""

    def __init__(self, strides: list[int], layers: list[Layer]) -> None:
        super().__init__()
        self.strides = strides
        self.weights = [layer.forward_weight for layer in layers]
        self.backward_weights = [layer.backward_weight for layer in layers]
        self.shifts = [layer.shift for layer in layers]

    def forward(self, x: Tensor) -> Tensor:
        lists = self.strides, self.weights, self.backward_weights, self.shifts
        return residual_blocks(x, *lists, activated=True)


class PreActBlocks(nn.Module):
    """All blocks of a frozen pre-activation net, and the activation behind them."""

    def __init__(self, strides: list[int], layers: list[Layer], active: list[Activation]) -> None:
        super().__init__()
        self.strides = strides
        self.weights = [layer.forward_weight for layer in layers]
        self.backward_weights = [layer.backward_weight for layer in layers]
        # A block's last convolution adds none: its sum goes on as it is.
        last = set(itertools.accumulate(LAYERS[stride] for stride in strides))
        self.shifts = [layer.shift for k, layer in enumerate(layers, 1) if k not in last]
        self.first = [active[0]]  # in a list: a part of another module already
        self.scales = [one.scale for one in active[1:]]
        self.next_shifts = [one.shift for one in active[1:]]

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            active = self.first[0](x)
        return preactivation_blocks(
            x,
            active,
            self.strides,
            self.weights,
            self.backward_weights,
            self.shifts,
            self.scales,
            self.next_shifts,
        )


class Stem(nn.Module):
    """The first convolution, of images with empty channels, and the BatchNorm and ReLU behind it,
    if any; from the gradient of what goes into the ReLU, the step of an attack."""

    backward_weight: Tensor

    def __init__(self, conv: nn.Conv2d, norm: nn.Module | None) -> None:
        super().__init__()
        self.conv, self.norm = conv, norm
        self.register_buffer("backward_weight", pack_image_gradient(conv.weight.detach()))

    def fold(self) -> None:
        """Of weight and running statistics as they are now."""
        weight = self.conv.weight
        if self.norm is not None:
            weight = weight * scale_and_shift(self.norm)[0][:, None, None, None]
        self.backward_weight.copy_(pack_image_gradient(weight))

    def forward(self, x: Tensor) -> Tensor:
        more = (0, 0, 0, 0, 0, STEM_CHANNELS - x.shape[1])
        weight = self.conv.weight
        out = F.conv2d(F.pad(x.to(weight.dtype), more), F.pad(weight, more), padding=1)
        return out if self.norm is None else F.relu(self.norm(out))

    def sign_step(self, x: Tensor, x_adv: Tensor, grad: Tensor, **how: Any) -> Tensor:
        return conv3x3_sign_step(x, x_adv, grad, self.backward_weight, **how)


STAGES = tuple(f"layer{number}" for number in range(1, 5))


def blocks_of(net: ResNet18 | PreActResNet18) -> list[Any]:
    """All of one kind, BasicBlock or PreActBlock."""
    return [block for stage in STAGES for block in getattr(net, stage)]


def layers_of(block: BasicBlock | PreActBlock, dtype: torch.dtype) -> list[Layer]:
    """Its convolutions as the operators want them: the shortcut's between the two others."""
    if isinstance(block, BasicBlock):
        before, behind_first, behind_second = None, block.bn1, block.bn2
    else:
        before, behind_first, behind_second = block.bn1, block.bn2, None
    shortcut = [] if block.shortcut is None else list(block.shortcut.children())
    layers = [Layer(block.conv1, behind_first, dtype, before)]
    if shortcut:
        norm = shortcut[1] if len(shortcut) > 1 else None
        layers.append(Layer(shortcut[0], norm, dtype, before))
    return [*layers, Layer(block.conv2, behind_second, dtype)]


class Fused:
    """`net`, a copy of `frozen` with its blocks in one; the rest is shared with it. `behind` is the
    same behind its `stem`.

    The factors come from `live`, in its dtype, at each `refresh`.
    """

    def __init__(
        self, live: ResNet18 | PreActResNet18, frozen: nn.Module, dtype: torch.dtype
    ) -> None:
        self.net = shared_copy(frozen)
        blocks = blocks_of(live)
        strides = [block.conv1.stride[0] for block in blocks]
        layers = [layer for block in blocks for layer in layers_of(block, dtype)]
        active: list[Activation] = []
        norm: nn.Module | None = None
        if isinstance(live, PreActResNet18):
            active = [Activation(norm) for norm in (*(block.bn1 for block in blocks), live.bn)]
            fused: nn.Module = PreActBlocks(strides, layers, active)
            setattr(self.net, "bn", None)  # noqa: B010  # the blocks end with it
        else:
            fused = Blocks(strides, layers)
            norm = self.net.get_submodule("bn1")
            for name in ("bn1", "act"):  # parts of the stem
                setattr(self.net, name, nn.Identity())
        assert isinstance(self.net.conv1, nn.Conv2d)
        self.stem = self.net.conv1 = Stem(self.net.conv1, norm)
        self.parts = nn.ModuleList([*layers, *active, self.stem])
        self.halves = math.prod(strides)
        setattr(self.net, STAGES[0], fused)
        for stage in STAGES[1:]:
            setattr(self.net, stage, nn.Identity())
        self.behind = copy.copy(self.net)
        self.behind._modules = self.net._modules | {"conv1": nn.Identity()}

    def takes(self, x: Tensor) -> bool:
        """Whether it is for images of this size: those that can be halved as often as it does."""
        return all(side % self.halves == 0 for side in x.shape[2:])

    def steps(self, x: Tensor) -> bool:
        """Whether the stem steps in such images."""
        return self.takes(x) and x.is_contiguous(memory_format=torch.channels_last)

    def refresh(self, regions: Regions) -> None:
        """Fold the live weights and running statistics as they are now."""
        # Compiled for a CPU it leaves NaN in bf16 weights: Inductor's transposition (PyTorch 2.14).
        on_cpu = self.stem.backward_weight.device.type == "cpu"
        with torch.no_grad():
            (fold if on_cpu else regions(fold, "fold"))(self.parts)
