"""What the networks share: the activation and the head that can also hand out features."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "silu": F.silu}


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)


class Classifier(nn.Module):
    """A network whose forward gives logits (B, K), or (logits, features (B, D)) on request.

    Features are the input of the last linear layer, after pooling.
    """

    head: str
    """Attribute name of the last linear layer."""

    def features(self, x: Tensor) -> Tensor:
        raise TypeError(f"{type(self).__name__} does not say how it makes features")

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        features = self.features(x)
        logits = getattr(self, self.head)(features)
        return (logits, features) if return_features else logits

    def initialise(self) -> None:
        """He-normal convolutions over their outputs, unit BatchNorm, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        self.to(memory_format=torch.channels_last)


def pooled(x: Tensor) -> Tensor:
    """Global average over the pixels: (B, D, H, W) to (B, D)."""
    return x.mean(dim=(2, 3))
