"""Residual blocks in half precision, launch by launch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from fastuiat_kernels import pack_conv3x3, pack_strided
from fastuiat_kernels.launch import watched

sys.path.insert(0, str(Path(__file__).parents[1]))
from launching import CPU, DEVICE, module

CONV, STRIDED, STRIDED_BACK = (
    "_conv3x3_kernel",
    "_strided3x3_kernel",
    "_strided3x3_backward_kernel",
)
CASES = [
    ([1, 1], [CONV] * 4, [CONV] * 4),
    ([1, 2], [CONV, CONV, STRIDED, CONV], [CONV, STRIDED_BACK, CONV, CONV]),
    ([2, 1], [STRIDED, CONV, CONV, CONV], [CONV, CONV, CONV, STRIDED_BACK]),
]


def layers(strides, random):
    """(weight, shift, stride) of each, as a block calls them: first, shortcut, second."""
    channels, made = 64, []
    for block in strides:
        filters = block * channels
        kinds = [(channels, 3, block), (filters, 3, 1)]
        if block == 2:
            kinds.insert(1, (channels, 1, 2))
        for before, n, stride in kinds:
            weight = torch.randn(filters, before, n, n, generator=random) / (n * n * before) ** 0.5
            made.append((weight.half(), torch.randn(filters, generator=random) / 3, stride))
        channels = filters
    return made


def plain(x, strides, given, made):
    """In float64, by PyTorch; what is near 0 is let through where it is above 0 in `made`."""
    left, masks = iter(given), iter(out.to(CPU) > 0 for out in made)

    def layer(x):
        weight, shift, stride = next(left)
        padding = weight.shape[2] // 2
        return torch.nn.functional.conv2d(
            x, weight.double(), shift.double(), stride=stride, padding=padding
        )

    for block in strides:
        inner = layer(x) * next(masks)
        shortcut = layer(x) if block == 2 else x
        x = (layer(inner) + shortcut) * next(masks)
    return x


@pytest.mark.parametrize(("strides", "there", "back"), CASES)
def test_blocks_in_half_precision(strides, there, back, monkeypatch):
    """Against autograd of the same layers in fp64: a few roundings apart."""
    for name in ("conv3x3", "strided3x3"):
        monkeypatch.setattr(module(name), "takes_tiles", lambda *tensors: True)
    random = torch.Generator().manual_seed(len(strides) + sum(strides))
    given = layers(strides, random)
    width = 8 if 2 in strides else 4
    image = torch.randn(3, width, width, 64, generator=random).half().permute(0, 3, 1, 2)
    packed, backward = (
        [
            (pack_conv3x3 if stride == 1 else pack_strided)(weight, backward=way).to(DEVICE)
            for weight, _, stride in given
        ]
        for way in (False, True)
    )
    shifts = [shift.to(DEVICE) for _, shift, _ in given]
    launched = []

    def watcher(launch, run):
        launched.append(launch.kernel.__name__)
        run()

    x, leaf = image.to(DEVICE).requires_grad_(), image.double().requires_grad_()
    with watched(watcher):
        made = torch.ops.fastuiat.residual_blocks(x, strides, packed, backward, shifts)
        grad = torch.randn(made[-1].shape, generator=random).half()
        grad = grad.to(memory_format=torch.channels_last)
        (actual,) = torch.autograd.grad(made[-1], x, grad.to(DEVICE))
    assert launched == there + back
    expected = plain(leaf, strides, given, made)
    (wanted,) = torch.autograd.grad(expected, leaf, grad.double())
    for ours, exact in ((made[-1], expected), (actual, wanted)):
        assert ours.dtype == torch.float16
        off = (ours.to(CPU).double() - exact).norm() / exact.norm()
        assert off < 1e-3, off
