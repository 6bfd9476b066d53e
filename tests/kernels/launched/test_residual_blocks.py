"""Residual blocks of either kind in half precision, launch by launch."""

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
        made = torch.ops.fastuiat.residual_blocks(x, strides, packed, backward, shifts, False)
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


def test_preactivation_blocks_in_half_precision(monkeypatch):
    """Against the same operator in fp64 by the references, the gradient with the same masks."""
    for name in ("conv3x3", "strided3x3"):
        monkeypatch.setattr(module(name), "takes_tiles", lambda *tensors: True)
    random = torch.Generator().manual_seed(5)
    strides = [1, 2]
    given = layers(strides, random)
    packs = [pack_conv3x3 if stride == 1 else pack_strided for *_, stride in given]
    forward, backward = (
        [pack(weight, backward=way) for pack, (weight, *_) in zip(packs, given, strict=True)]
        for way in (False, True)
    )
    shifts = [given[k][1] for k in (0, 2, 3)]
    scales = [torch.randn(n, generator=random) for n in (64, 128)]
    next_shifts = [torch.randn(n, generator=random) / 3 for n in (64, 128)]
    image = torch.randn(3, 8, 8, 64, generator=random).half().permute(0, 3, 1, 2)
    lists = (forward, backward, shifts, scales, next_shifts)

    def arguments(to):
        moved = ([to(tensor) for tensor in tensors] for tensors in lists)
        return to(image), to(image.relu()), strides, *moved

    launched = []

    def watcher(launch, run):
        launched.append(launch.kernel.__name__)
        run()

    operator = torch.ops.fastuiat.preactivation_blocks
    with watched(watcher):
        made = operator(*arguments(lambda tensor: tensor.to(DEVICE)))
        grad = torch.randn(made[-1].shape, generator=random).half()
        grad = grad.to(memory_format=torch.channels_last)
        back = torch.ops.fastuiat.preactivation_blocks_backward
        actual = back(
            grad.to(DEVICE),
            strides,
            image.relu().to(DEVICE),
            made,
            [weight.to(DEVICE) for weight in backward],
        )
    assert launched == [CONV, CONV, STRIDED, CONV, CONV, STRIDED_BACK, CONV, CONV]
    exact = operator(*arguments(torch.Tensor.double))
    masks = [tensor.to(CPU).double() for tensor in made]
    doubled = [weight.double() for weight in backward]
    wanted = back(grad.double(), strides, image.relu().double(), masks, doubled)
    for ours, right in ((made[-1], exact[-1]), (actual, wanted)):
        assert ours.dtype == torch.float16
        assert (ours.to(CPU).double() - right).norm() < 1e-3 * right.norm()
