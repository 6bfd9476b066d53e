"""Pre-activation ResNet-18 for 32×32 images (He et al. 2016b), in its published variants."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from fastuiat.models.blocks import ACTIVATIONS, Classifier, conv1x1, pooled
from fastuiat.models.convolution import Conv3x3
from fastuiat.models.registry import register


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a published pre-activation ResNet-18 may differ from another."""

    raw_shortcut: bool = False
    """The shortcut takes the block's input as it is, not its activation."""
    shortcut_bn: bool = False
    """The shortcut's convolution is followed by a BatchNorm."""
    final_bn: bool = True
    """A BatchNorm and activation stand before the pooling."""


VARIANTS = {
    "prn-18": Variant(),
    "prn-18-v1": Variant(raw_shortcut=True, final_bn=False),
    "prn-18-v1-bn": Variant(raw_shortcut=True),
}
"""Those that are built by a name; others are met in published files only."""


class PreActBlock(nn.Module):
    def __init__(
        self, inputs: int, planes: int, stride: int, activation: str, variant: Variant
    ) -> None:
        super().__init__()
        self.act = ACTIVATIONS[activation]
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = Conv3x3(inputs, planes, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv2 = Conv3x3(planes, planes)
        self.shortcut: nn.Module | None = None
        self.raw_shortcut = variant.raw_shortcut
        if stride != 1 or inputs != planes:
            bn = [nn.BatchNorm2d(planes)] if variant.shortcut_bn else []
            self.shortcut = nn.Sequential(conv1x1(inputs, planes, stride), *bn)

    def forward(self, x: Tensor) -> Tensor:
        out = self.act(self.bn1(x))
        residual = x
        if self.shortcut is not None:
            residual = self.shortcut(x if self.raw_shortcut else out)
        out = self.conv1(out)
        return self.conv2(self.act(self.bn2(out))) + residual


class PreActResNet18(Classifier):
    head = "linear"

    def __init__(
        self, num_classes: int = 10, activation: str = "relu", variant: Variant | None = None
    ) -> None:
        super().__init__()
        self.variant = variant or Variant()
        self.act = ACTIVATIONS[activation]
        self.conv1 = Conv3x3(3, 64)
        inputs = 64
        for stage, planes in enumerate((64, 128, 256, 512), start=1):
            stride = 1 if stage == 1 else 2
            blocks = [
                PreActBlock(inputs, planes, stride, activation, self.variant),
                PreActBlock(planes, planes, 1, activation, self.variant),
            ]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            inputs = planes
        self.bn = nn.BatchNorm2d(512) if self.variant.final_bn else None
        self.linear = nn.Linear(512, num_classes)
        self.initialise()

    def features(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        for stage in range(1, 5):
            out = getattr(self, f"layer{stage}")(out)
        return pooled(out if self.bn is None else self.act(self.bn(out)))


for _name, _variant in VARIANTS.items():
    register(_name)(partial(PreActResNet18, variant=_variant))
