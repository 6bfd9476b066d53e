"""ResNet-18 for 32×32 images (He et al. 2016): 3×3 stem, no max-pooling."""

from __future__ import annotations

from torch import Tensor, nn

from fastuiat.models.blocks import ACTIVATIONS, Classifier, conv1x1, pooled
from fastuiat.models.convolution import Conv3x3
from fastuiat.models.registry import register


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int, activation: str) -> None:
        super().__init__()
        self.act = ACTIVATIONS[activation]
        self.conv1 = Conv3x3(inputs, planes, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = Conv3x3(planes, planes)
        self.bn2 = nn.BatchNorm2d(planes)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != planes:
            self.shortcut = nn.Sequential(conv1x1(inputs, planes, stride), nn.BatchNorm2d(planes))

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(x)))
        return self.act(self.bn2(self.conv2(out)) + self.shortcut(x))


@register("resnet-18")
class ResNet18(Classifier):
    head = "linear"

    def __init__(self, num_classes: int = 10, activation: str = "relu") -> None:
        super().__init__()
        self.act = ACTIVATIONS[activation]
        self.conv1 = Conv3x3(3, 64)
        self.bn1 = nn.BatchNorm2d(64)
        inputs = 64
        for stage, planes in enumerate((64, 128, 256, 512), start=1):
            stride = 1 if stage == 1 else 2
            blocks = [
                BasicBlock(inputs, planes, stride, activation),
                BasicBlock(planes, planes, 1, activation),
            ]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            inputs = planes
        self.linear = nn.Linear(512, num_classes)
        self.initialise()

    def features(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(self.conv1(x)))
        for stage in range(1, 5):
            out = getattr(self, f"layer{stage}")(out)
        return pooled(out)
