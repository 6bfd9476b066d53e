"""3×3 convolutions, as a product of matrices where a CPU is faster at that."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastuiat.fast.torch_internals import cpu_has

MATRIX_UNITS = cpu_has("amx_tile")
"""Whether this CPU multiplies bf16 matrices in units of their own."""


class Conv3x3(nn.Conv2d):
    """`nn.Conv2d` with a padding of 1 and no bias, (B, C, H, W) to (B, K, H/stride, W/stride).

    In a compiled bf16 region on a CPU with matrix units, wide layers are products of matrices. The
    sums are the same, in fp32, in another order.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__(inputs, outputs, 3, stride=stride, padding=1, bias=False)

    @property
    def is_faster_as_product(self) -> bool:
        """Whether a wide layer, whose patches are few beside its weights: measured on AMX."""
        return self.in_channels >= 256 and self.out_channels >= 512

    def forward(self, x: Tensor) -> Tensor:
        cpu_bf16 = x.device.type == "cpu" and x.dtype == torch.bfloat16
        # Eager, copying the patches costs what the product gains.
        fast = MATRIX_UNITS and cpu_bf16 and torch.compiler.is_compiling()
        if fast and self.is_faster_as_product:
            return product_of_patches(x, self.weight, self.stride[0])
        return super().forward(x)


def product_of_patches(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """conv2d(x, weight, stride=stride, padding=1) of 3×3 kernels, channels-last."""
    height, width = x.shape[2:]
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    corners = [(i, j) for i in range(3) for j in range(3)]
    patches = torch.cat(
        [padded[:, i : i + height : stride, j : j + width : stride] for i, j in corners], dim=3
    )
    *pixels, length = patches.shape
    product = patches.reshape(-1, length) @ weight.permute(2, 3, 1, 0).reshape(length, -1)
    return product.view(*pixels, -1).permute(0, 3, 1, 2)
