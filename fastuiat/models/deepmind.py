"""The wide and pre-activation ResNets of Gowal et al. (2020) and Rebuffi et al. (2021).

They differ from this folder's others by more than names: inputs are normalised inside, a
convolution of stride 2 is padded at the right and bottom only, and dm-prn-18's shortcut is a 3×3
convolution of the block's raw input. So neither kind's weights can serve the other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastuiat.models.blocks import ACTIVATIONS, Classifier, conv1x1, pooled
from fastuiat.models.convolution import Conv3x3
from fastuiat.models.registry import register
from fastuiat.models.wide_resnet import is_wide

CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
CIFAR100 = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
PUBLISHED = {"cifar10": CIFAR10, "cifar100": CIFAR100, "svhn": HALF}
"""Mean and standard deviation of the pixels, as these nets are published with, by data set."""


class PaddedConv(nn.Conv2d):
    """A 3×3 convolution; of stride 2 it is padded at the right and bottom only."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 3, stride=stride, bias=False)
        self.pad = (1, 1, 1, 1) if stride == 1 else (0, 1, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, self.pad))


class NormalisedInside(Classifier):
    """A Classifier that begins with (x − mean) / std, kept as buffers (3, 1, 1).

    They are CIFAR-100's for 100 classes, else CIFAR-10's, until others are loaded.
    """

    mean: Tensor
    std: Tensor
    head = "logits"

    def __init__(self, num_classes: int, activation: str) -> None:
        super().__init__()
        self.act = ACTIVATIONS[activation]
        mean, std = CIFAR100 if num_classes == 100 else CIFAR10
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def normalised(self, x: Tensor) -> Tensor:
        # In fp32 whatever the input: the buffers keep their dtype where weights are cast.
        return ((x - self.mean) / self.std).to(x.dtype)


class WideBlock(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int, activation: str) -> None:
        super().__init__()
        self.act = ACTIVATIONS[activation]
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.conv_0 = PaddedConv(inputs, planes, stride)
        self.batchnorm_1 = nn.BatchNorm2d(planes)
        self.conv_1 = Conv3x3(planes, planes)
        self.shortcut = conv1x1(inputs, planes, stride) if inputs != planes else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.batchnorm_0(x))
        residual = x if self.shortcut is None else self.shortcut(out)
        return self.conv_1(self.act(self.batchnorm_1(self.conv_0(out)))) + residual


class WideGroup(nn.Module):
    def __init__(self, blocks: int, inputs: int, planes: int, stride: int, activation: str) -> None:
        super().__init__()
        first = WideBlock(inputs, planes, stride, activation)
        rest = (WideBlock(planes, planes, 1, activation) for _ in range(blocks - 1))
        self.block = nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


@register("dm-wrn-{depth}-{width}", legal=is_wide)
class DeepMindWideResNet(NormalisedInside):
    """dm-wrn-D-W."""

    def __init__(
        self, depth: int, width: int, num_classes: int = 10, activation: str = "silu"
    ) -> None:
        super().__init__(num_classes, activation)
        blocks = (depth - 4) // 6
        self.init_conv = Conv3x3(3, 16)
        self.layer = nn.Sequential(
            WideGroup(blocks, 16, 16 * width, 1, activation),
            WideGroup(blocks, 16 * width, 32 * width, 2, activation),
            WideGroup(blocks, 32 * width, 64 * width, 2, activation),
        )
        self.batchnorm = nn.BatchNorm2d(64 * width)
        self.logits = nn.Linear(64 * width, num_classes)
        self.initialise()

    def features(self, x: Tensor) -> Tensor:
        out = self.layer(self.init_conv(self.normalised(x)))
        return pooled(self.act(self.batchnorm(out)))


class PreActBlock(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int, activation: str) -> None:
        super().__init__()
        self.act = ACTIVATIONS[activation]
        self.batchnorm_0 = nn.BatchNorm2d(inputs)
        self.conv_2d_1 = PaddedConv(inputs, planes, stride)
        self.batchnorm_1 = nn.BatchNorm2d(planes)
        self.conv_2d_2 = Conv3x3(planes, planes)
        self.shortcut = PaddedConv(inputs, planes, stride) if inputs != planes else None

    def forward(self, x: Tensor) -> Tensor:
        residual = x if self.shortcut is None else self.shortcut(x)
        out = self.conv_2d_1(self.act(self.batchnorm_0(x)))
        return self.conv_2d_2(self.act(self.batchnorm_1(out))) + residual


@register("dm-prn-18")
class DeepMindPreActResNet18(NormalisedInside):
    """dm-prn-18."""

    def __init__(self, num_classes: int = 10, activation: str = "silu") -> None:
        super().__init__(num_classes, activation)
        self.conv_2d = Conv3x3(3, 64)
        inputs = 64
        for stage, planes in enumerate((64, 128, 256, 512)):
            first = PreActBlock(inputs, planes, 1 if stage == 0 else 2, activation)
            second = PreActBlock(planes, planes, 1, activation)
            setattr(self, f"layer_{stage}", nn.Sequential(first, second))
            inputs = planes
        self.batchnorm = nn.BatchNorm2d(512)
        self.logits = nn.Linear(512, num_classes)
        self.initialise()

    def features(self, x: Tensor) -> Tensor:
        out = self.conv_2d(self.normalised(x))
        for stage in range(4):
            out = getattr(self, f"layer_{stage}")(out)
        return pooled(self.act(self.batchnorm(out)))
