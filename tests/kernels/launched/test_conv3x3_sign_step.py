"""The step by the gradient behind the first convolution as launched, interpreted or on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastuiat_kernels import pack_image_gradient

sys.path.insert(0, str(Path(__file__).parents[1]))
import by_the_book
from launching import HALVES, launcher

SHAPES = [
    (1, 64, 3, 1, 1),
    (1, 64, 3, 32, 32),
    (3, 64, 3, 9, 13),
    (2, 128, 1, 3, 128),
    (1, 64, 4, 4, 65),
    (5, 64, 2, 2, 3),
]
"""Batch, filters, channels, height, width: rows that fill a tile and that do not, images of several
tiles and of a part of one, rows of taps in more than one block of filters."""
step = launcher("conv3x3_sign_step")


def whole(shape, dtype, seed=0):
    """x, x', g and w; the last two whole numbers, whose sums are exact, and zero now and then."""
    batch, filters, channels, height, width = shape
    random = torch.Generator().manual_seed(seed + sum(shape))

    def image():
        x = torch.rand(batch, height, width, channels, generator=random)
        return x.permute(0, 3, 1, 2)

    x = image()
    x_adv = (x + 0.06 * (image() - 0.5)).clamp(0, 1)
    grad = torch.randint(-1, 2, (batch, height, width, filters), generator=random)
    weight = torch.randint(-1, 2, (filters, channels, 3, 3), generator=random)
    return x, x_adv, grad.permute(0, 3, 1, 2).to(dtype), weight.to(dtype)


def book(x, x_adv, grad, weight, alpha, eps, lo, hi):
    """(x' after the step, the gradient), by loops in float64."""
    slope = by_the_book.conv3x3_gradient(grad.double().numpy(), weight.double().numpy())
    return by_the_book.sign_step(x.numpy(), x_adv.numpy(), slope, alpha, eps, lo, hi), slope


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", SHAPES)
def test_against_numpy(shape, dtype):
    x, x_adv, grad, weight = whole(shape, dtype)
    packed = pack_image_gradient(weight)
    for alpha, eps in ((2 / 255, 8 / 255), (-2 / 255, 8 / 255), (0.3, float("inf"))):
        counts = torch.tensor([5, 7])
        out = step(x, x_adv, grad, packed, alpha, eps, 0.0, 1.0, counts)
        expected, slope = book(x, x_adv, grad, weight, alpha, eps, 0.0, 1.0)
        assert (out.numpy() == expected).all()
        assert counts.tolist() == [5 + (slope == 0).sum(), 7]
        assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(step(x, x_adv, grad, packed, alpha, eps, 0.0, 1.0), out)


@pytest.mark.parametrize(("height", "width"), [(5, 32), (5, 7), (3, 65)])
def test_every_tap_at_every_edge(height, width):
    """Filter k has a one at tap k mod 9 of channel k mod 3, and its gradient is one image's: what
    comes back is that gradient moved by the tap."""
    random = torch.Generator().manual_seed(height)
    base = torch.randint(1, 4, (1, 1, height, width), generator=random).half()
    base *= torch.randint(0, 2, base.shape, generator=random) * 2 - 1
    x = torch.full((9, 3, height, width), 0.5).to(memory_format=torch.channels_last)
    weight = torch.zeros(64, 3, 3, 3).half()
    grad = torch.zeros(9, 64, height, width).half().to(memory_format=torch.channels_last)
    for k in range(27):
        weight[k, k % 3, k // 3 // 3, k // 3 % 3] = 1
        grad[k // 3, k] = base[0, 0]
    out = step(x, x, grad, pack_image_gradient(weight), 0.25, 1.0, 0.0, 1.0)
    moved = torch.zeros(9, height + 2, width + 2)
    for tap in range(9):
        moved[tap, tap // 3 : tap // 3 + height, tap % 3 : tap % 3 + width] = base[0, 0].sign()
    expected = 0.5 + 0.25 * moved[:, None, 1:-1, 1:-1].expand(9, 3, -1, -1)
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", HALVES)
def test_the_sign_is_that_of_the_sum_before_it_is_rounded(dtype):
    """Real numbers: no sign differs but of a sum that is rounding alone; in fp16 some sums would
    have underflowed."""
    x, x_adv, _, _ = whole((2, 64, 3, 16, 16), dtype)
    random = torch.Generator().manual_seed(1)
    grad = (torch.randn(2, 16, 16, 64, generator=random) * 1e-3).to(dtype).permute(0, 3, 1, 2)
    weight = (torch.randn(64, 3, 3, 3, generator=random) * 1e-5).to(dtype)
    counts = torch.zeros(2, dtype=torch.int64)
    how = (1 / 255, float("inf"), -1.0, 2.0)
    out = step(x, x_adv, grad, pack_image_gradient(weight), *how, counts)
    expected, slope = book(x, x_adv, grad, weight, *how)
    differ = out.numpy() != expected
    assert np.abs(slope[differ]).max(initial=0) < 1e-6 * np.abs(slope).max()
    assert counts.tolist() == [0, 0]
    if dtype == torch.float16:
        assert (torch.from_numpy(slope).half() == 0).float().mean() > 0.05


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_where_it_is_met(value):
    """Beside a row's end and at a corner, not in the next row or image, nor in other columns of
    the product."""
    x, x_adv, grad, weight = whole((3, 64, 3, 9, 13), torch.float16)
    weight = weight.abs() + 1  # infinity times zero would be NaN
    grad = grad.clone(memory_format=torch.preserve_format)
    grad[1, 7, 3, 12] = grad[2, 5, 0, 0] = value
    counts = torch.zeros(2, dtype=torch.int64)
    out = step(x, x_adv, grad, pack_image_gradient(weight), 0.01, 0.1, 0.0, 1.0, counts)
    expected, slope = book(x, x_adv, grad, weight, 0.01, 0.1, 0.0, 1.0)
    met = np.zeros(slope.shape, bool)
    met[1, :, 2:5, 11:], met[2, :, :2, :2] = True, True
    assert (~np.isfinite(slope) == met).all()
    assert (out.numpy() == expected).all()
    assert counts.tolist() == [(slope == 0).sum(), met.sum()]


def test_images_that_are_not_numbers():
    x, x_adv, grad, weight = whole((2, 64, 3, 4, 4), torch.float16)
    packed = pack_image_gradient(weight)
    for given in ((x * float("nan"), x_adv), (x, x_adv * float("nan"))):
        assert step(*given, grad, packed, 0.25, 1.0, 0.0, 1.0).isnan().all()
