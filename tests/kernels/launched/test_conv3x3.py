"""The 3×3 convolution as launched against sums over taps in float64, interpreted or on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastuiat_kernels import pack_conv3x3
from fastuiat_kernels.conv3x3_kernel import TILES, Tile, tile_for

sys.path.insert(0, str(Path(__file__).parents[1]))
import by_the_book
from launching import (
    CPU,
    HALVES,
    VARIANTS,
    book,
    check,
    column,
    launcher,
    once_rounded,
    same_bits,
)

SHAPES = [(1, 64, 64, 32), (1, 64, 128, 16), (3, 64, 128, 8), (5, 128, 128, 4), (9, 64, 64, 4)]
"""Batch, channels, filters, width: more images than a tile holds, and not a multiple of them."""


class Layer:
    """Random values in half precision, and the same in float64."""

    def __init__(self, shape, dtype=torch.float16):
        batch, channels, filters, width = shape
        random = torch.Generator().manual_seed(sum(shape))

        def image(channels):
            values = torch.randn(batch, width, width, channels, generator=random)
            return values.to(dtype).permute(0, 3, 1, 2)

        self.x, self.residual, self.grad = image(channels), image(filters), image(filters)
        self.of_x, self.mask = image(channels), image(channels).relu()
        weight = torch.randn(filters, channels, 3, 3, generator=random) / (9 * channels) ** 0.5
        self.weight = weight.to(dtype)
        self.shift, self.scale, self.second_shift = torch.randn(3, filters, generator=random)


conv = launcher("conv3x3", "launch")


@pytest.mark.parametrize("name", [name for name in VARIANTS if VARIANTS[name].by_tiles])
def test_kernel_is_its_reference(name):
    variant = VARIANTS[name]
    for dtype in HALVES:
        check(variant, variant.inputs(variant.sizes["small"], dtype, CPU))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward(shape, dtype):
    layer = Layer(shape, dtype)
    packed = pack_conv3x3(layer.weight)
    product = by_the_book.conv3x3(book(layer.x), book(layer.weight))
    (out,) = conv(layer.x, packed)
    once_rounded(out, product)
    total = product + column(layer.shift) + book(layer.residual)
    out, second = conv(
        layer.x,
        packed,
        layer.shift,
        layer.residual,
        relu=True,
        scale=layer.scale,
        second_shift=layer.second_shift,
    )
    once_rounded(out, np.maximum(total, 0))
    # Of the sum as it was before it was rounded and before its negative part went.
    scaled = column(layer.scale) * total + column(layer.second_shift)
    once_rounded(second, np.maximum(scaled, 0))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", SHAPES)
def test_backward(shape, dtype):
    layer = Layer(shape, dtype)
    packed = pack_conv3x3(layer.weight, backward=True)
    product = by_the_book.conv3x3_gradient(book(layer.grad), book(layer.weight))
    mask, residual = book(layer.mask) > 0, book(layer.of_x)
    assert 0.4 < mask.mean() < 0.6
    back = launcher("conv3x3", "_launch_backward")
    once_rounded(
        back(layer.grad, packed, layer.mask, layer.of_x, True), (product + residual) * mask
    )
    once_rounded(back(layer.grad, packed, layer.mask, layer.of_x, False), product * mask + residual)
    if shape == SHAPES[-1]:
        once_rounded(back(layer.grad, packed), product)
        once_rounded(back(layer.grad, packed, layer.mask), product * mask)
        once_rounded(back(layer.grad, packed, None, layer.of_x), product + residual)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("width", [32, 16, 8, 4])
def test_every_tap_at_every_edge(width, backward):
    """Filter k has a one at tap k mod 9 of channel k: out is x, each channel moved by its tap."""
    weight = torch.zeros(64, 64, 3, 3)
    for k in range(64):
        weight[k, k, k % 9 // 3, k % 9 % 3] = 1
    x = Layer((1 if width > 8 else 3, 64, 64, width)).x
    (out,) = conv(x, pack_conv3x3(weight.half(), backward=backward))
    sign = -1 if backward else 1
    for k in range(64):
        down, right = sign * (k % 9 // 3 - 1), sign * (k % 9 % 3 - 1)
        rows, columns = torch.arange(width) + down, torch.arange(width) + right
        inside = ((rows >= 0) & (rows < width))[:, None] & (columns >= 0) & (columns < width)
        moved = x[:, k][:, rows.clamp(0, width - 1)][:, :, columns.clamp(0, width - 1)]
        assert torch.equal(out[:, k], torch.where(inside, moved, 0.0)), (k % 9, width)


@pytest.mark.parametrize("split", [2, 3])
def test_a_split_sum(split):
    """In as many parts, added in order: what follows comes behind all of them, in both directions,
    and the bits are the same each time."""
    layer = Layer((3, 128, 64, 4))
    tile = Tile(images=2, rows=4, filters=64, split=split)
    packed = pack_conv3x3(layer.weight)
    given = {"scale": layer.scale, "second_shift": layer.second_shift}
    outs = [
        conv(layer.x, packed, layer.shift, layer.residual, True, **given, tile=tile)
        for _ in range(2)
    ]
    total = by_the_book.conv3x3(book(layer.x), book(layer.weight))
    total = total + column(layer.shift) + book(layer.residual)
    once_rounded(outs[0][0], np.maximum(total, 0))
    scaled = column(layer.scale) * total + column(layer.second_shift)
    once_rounded(outs[0][1], np.maximum(scaled, 0))
    for first, second in zip(*outs, strict=True):
        same_bits(first, second)
    back = Layer((3, 64, 128, 4))
    packed = pack_conv3x3(back.weight, backward=True)
    product = by_the_book.conv3x3_gradient(book(back.grad), book(back.weight))
    for both in (True, False):
        (grad,) = conv(back.grad, packed, None, back.of_x, mask=back.mask, both=both, tile=tile)
        mask, residual = book(back.mask) > 0, book(back.of_x)
        expected = (product + residual) * mask if both else product * mask + residual
        once_rounded(grad, expected)


@pytest.mark.parametrize("tile", [None, Tile(images=2, rows=4, filters=64, split=2)])
def test_nan_stays_nan_where_it_is_met(tile):
    layer = Layer((3, 128, 64, 4))
    x, packed = layer.x.clone(), pack_conv3x3(layer.weight)
    x[1, 7, 0, 3] = float("nan")
    residual = layer.residual.clone()
    residual[2, 5, 2, 2] = float("nan")
    outs = conv(
        x, packed, None, residual, True, scale=layer.scale, second_shift=layer.shift, tile=tile
    )
    expected = torch.zeros(3, 64, 4, 4, dtype=torch.bool)
    expected[1, :, :2, 2:] = True
    expected[2, 5, 2, 2] = True
    for out in outs:
        assert torch.equal(out.isnan(), expected)
    mask = torch.ones_like(residual)
    mask[1, :, 0] = 0
    mask[2, :, 1] = float("nan")  # it is not above 0
    (grad,) = conv(x, packed, mask=mask, tile=tile)
    assert grad[1, :, 1, 2:].isnan().all() and (grad[1, :, 0] == 0).all()
    assert (grad[2, :, 1] == 0).all() and not grad[[0, 2]].isnan().any()


def test_every_tile_of_the_table_is_tried():
    """The shapes above go by every tile that is not another one's for want of channels."""
    tried = {tile_for(width, width, channels, filters) for _, channels, filters, width in SHAPES}
    tried |= {tile_for(width, width, 64, 64) for width in (32, 16, 8, 4)}
    assert tried >= set(TILES.values())
