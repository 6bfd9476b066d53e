"""Networks by name: resnet-18, prn-18, wrn-D-W, and the DeepMind line's dm-prn-18, dm-wrn-D-W."""

from __future__ import annotations

import re

from fastuiat.config import UserError
from fastuiat.models.blocks import ACTIVATIONS, Classifier
from fastuiat.models.deepmind import DeepMindPreActResNet18, DeepMindWideResNet
from fastuiat.models.preact_resnet import VARIANTS, PreActResNet18
from fastuiat.models.resnet import ResNet18
from fastuiat.models.wide_resnet import WideResNet

__all__ = ["Classifier", "build_model"]

KNOWN = (
    "resnet-18, prn-18, wrn-D-W such as wrn-28-10 (D = 10, 16, 22, 28, 34 …), prn-18-v1, "
    "prn-18-v1-bn, dm-prn-18, dm-wrn-D-W"
)


def build_model(name: str, num_classes: int = 10, activation: str = "relu") -> Classifier:
    """A freshly initialised network for (B, 3, H, W) images in [0, 1], channels-last weights.

    prn-18-v1 is prn-18 with the shortcut on a block's raw input and no BatchNorm before the
    pooling, as RS-FGSM, N-FGSM and GradAlign train it (RobustBench's PreActBlock); prn-18-v1-bn has
    that BatchNorm. The dm- nets are those of Rebuffi et al. (2021) and normalise their input.
    UserError on an unknown name, an illegal depth or width, or an unknown activation.
    """
    if activation not in ACTIVATIONS:
        raise UserError(f"unknown activation '{activation}': choose from {', '.join(ACTIVATIONS)}")
    if name == "resnet-18":
        return ResNet18(num_classes, activation)
    if name in VARIANTS:
        return PreActResNet18(num_classes, activation, VARIANTS[name])
    if name == "dm-prn-18":
        return DeepMindPreActResNet18(num_classes, activation)
    match = re.fullmatch(r"(dm-)?wrn-(\d+)-(\d+)", name)
    if not match:
        raise UserError(f"unknown net '{name}': choose from {KNOWN}")
    depth, width = int(match[2]), int(match[3])
    if depth < 10 or (depth - 4) % 6 or width < 1:
        raise UserError(f"'{name}' has no legal depth and width: choose from {KNOWN}")
    kind = DeepMindWideResNet if match[1] else WideResNet
    return kind(depth, width, num_classes, activation)
