"""Wide ResNet wrn-D-W for 32×32 images (Zagoruyko and Komodakis 2016), D = 6n + 4."""

from __future__ import annotations

from torch import Tensor, nn

from fastuiat.models.blocks import ACTIVATIONS, Classifier, conv1x1, pooled
from fastuiat.models.convolution import Conv3x3
from fastuiat.models.registry import register


class WideBlock(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int, activation: str) -> None:
        super().__init__()
        self.act = ACTIVATIONS[activation]
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = Conv3x3(inputs, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = Conv3x3(planes, planes)
        self.convShortcut = conv1x1(inputs, planes, stride) if inputs != planes else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(x))
        residual = x if self.convShortcut is None else self.convShortcut(out)
        out = self.conv2(self.act(self.bn2(self.conv1(out))))
        return out + residual


class WideGroup(nn.Module):
    """The blocks of one resolution; only the first strides and widens."""

    def __init__(self, blocks: int, inputs: int, planes: int, stride: int, activation: str) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            *(
                WideBlock(inputs if i == 0 else planes, planes, stride if i == 0 else 1, activation)
                for i in range(blocks)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def is_wide(depth: int, width: int) -> bool:
    """Whether there is a wide ResNet of this depth and width: depth 10, 16, 22, 28, 34 …"""
    return depth >= 10 and (depth - 4) % 6 == 0 and width >= 1


@register("wrn-{depth}-{width}", legal=is_wide, example="wrn-28-10 (D = 10, 16, 22, 28, 34 …)")
class WideResNet(Classifier):
    head = "fc"

    def __init__(
        self, depth: int, width: int, num_classes: int = 10, activation: str = "relu"
    ) -> None:
        super().__init__()
        blocks = (depth - 4) // 6
        widths = (16, 16 * width, 32 * width, 64 * width)
        self.act = ACTIVATIONS[activation]
        self.conv1 = Conv3x3(3, widths[0])
        self.block1 = WideGroup(blocks, widths[0], widths[1], 1, activation)
        self.block2 = WideGroup(blocks, widths[1], widths[2], 2, activation)
        self.block3 = WideGroup(blocks, widths[2], widths[3], 2, activation)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.fc = nn.Linear(widths[3], num_classes)
        self.initialise()

    def features(self, x: Tensor) -> Tensor:
        out = self.block3(self.block2(self.block1(self.conv1(x))))
        return pooled(self.act(self.bn1(out)))
