"""Pre-activation ResNet-18 for 32×32 images (He et al. 2016b)."""

from __future__ import annotations

from torch import Tensor, nn

from fastuiat.models.blocks import ACTIVATIONS, Classifier, conv1x1, conv3x3, pooled


class PreActBlock(nn.Module):
    def __init__(self, inputs: int, planes: int, stride: int, activation: str) -> None:
        super().__init__()
        self.act = ACTIVATIONS[activation]
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = conv3x3(planes, planes)
        self.shortcut: nn.Module | None = None
        if stride != 1 or inputs != planes:
            self.shortcut = nn.Sequential(conv1x1(inputs, planes, stride))

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(x))
        residual = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        return self.conv2(self.act(self.bn2(out))) + residual


class PreActResNet18(Classifier):
    head = "linear"

    def __init__(self, num_classes: int = 10, activation: str = "relu") -> None:
        super().__init__()
        self.act = ACTIVATIONS[activation]
        self.conv1 = conv3x3(3, 64)
        inputs = 64
        for stage, planes in enumerate((64, 128, 256, 512), start=1):
            stride = 1 if stage == 1 else 2
            blocks = [
                PreActBlock(inputs, planes, stride, activation),
                PreActBlock(planes, planes, 1, activation),
            ]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            inputs = planes
        self.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, num_classes)
        self.initialise()

    def features(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        for stage in range(1, 5):
            out = getattr(self, f"layer{stage}")(out)
        return pooled(self.act(self.bn(out)))
