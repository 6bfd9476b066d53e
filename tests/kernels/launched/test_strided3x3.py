"""A block's two convolutions of stride 2 as launched against sums over taps in float64."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastuiat_kernels import pack_strided
from fastuiat_kernels.strided3x3_kernel import TILES

sys.path.insert(0, str(Path(__file__).parents[1]))
import by_the_book
from launching import HALVES, book, column, launcher, once_rounded

SHAPES = [(1, 64, 128, 16), (3, 64, 64, 8), (5, 128, 64, 4)]
"""Batch, channels, filters, width of out: more images than a tile holds, not a multiple of them."""
forward, backward = (launcher("strided3x3_kernel", way) for way in ("launch", "launch_backward"))


class Layer:
    """Random values in half precision; what is the shortcut's ends on 1."""

    def __init__(self, shape, dtype=torch.float16):
        batch, channels, filters, width = shape
        random = torch.Generator().manual_seed(sum(shape))

        def image(channels, width):
            values = torch.randn(batch, width, width, channels, generator=random)
            return values.to(dtype).permute(0, 3, 1, 2)

        self.x, self.mask = image(channels, 2 * width), image(channels, 2 * width).relu()
        self.grad, self.grad1 = image(filters, width), image(filters, width)
        self.weight, self.weight1 = (
            (torch.randn(filters, channels, n, n, generator=random) / (n * n * channels) ** 0.5).to(
                dtype
            )
            for n in (3, 1)
        )
        self.shift, self.shift1 = torch.randn(2, filters, generator=random)

    def packed(self, backward=False):
        return [pack_strided(weight, backward=backward) for weight in (self.weight, self.weight1)]

    def forward(self, x=None):
        packed, packed1 = self.packed()
        x = self.x if x is None else x
        return forward(x, packed, self.shift, packed1, self.shift1)


def test_every_tile_of_the_table_is_tried():
    assert {width for *_, width in SHAPES} == set(TILES)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", SHAPES)
def test_forward(shape, dtype):
    layer = Layer(shape, dtype)
    out, short = layer.forward()
    weights = book(layer.weight), book(layer.weight1)
    product, product1 = by_the_book.strided3x3(book(layer.x), *weights)
    once_rounded(out, np.maximum(product + column(layer.shift), 0))
    once_rounded(short, product1 + column(layer.shift1))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("shape", SHAPES)
def test_backward(shape, dtype):
    layer = Layer(shape, dtype)
    gradients, weights = (layer.grad, layer.grad1), (layer.weight, layer.weight1)
    product = by_the_book.strided3x3_gradient(*map(book, (*gradients, *weights)))
    mask = book(layer.mask) > 0
    assert 0.4 < mask.mean() < 0.6
    packed = layer.packed(backward=True)
    once_rounded(backward(*gradients, *packed), product)
    once_rounded(backward(*gradients, *packed, layer.mask), product * mask)


@pytest.mark.parametrize("width", TILES)
def test_every_tap_at_every_edge(width):
    """Filter k has a one at tap k mod 9 of channel k, the shortcut's at channel k + 1: out is x
    moved by the tap, and its gradient moves back."""
    layer = Layer((1 if width == 16 else 5, 64, 64, width))
    layer.weight, layer.weight1 = torch.zeros(64, 64, 3, 3).half(), torch.zeros(64, 64, 1, 1).half()
    for k in range(64):
        layer.weight[k, k, k % 9 // 3, k % 9 % 3] = 1
        layer.weight1[k, (k + 1) % 64] = 1
    layer.shift, layer.shift1 = torch.zeros(2, 64)
    x = layer.x.abs()
    out, short = layer.forward(x)
    assert torch.equal(short, x.roll(-1, 1)[:, :, ::2, ::2])
    grad = backward(layer.grad, layer.grad1, *layer.packed(backward=True))
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1))
    wanted = torch.zeros_like(padded).float()
    for k in range(64):
        down, right = k % 9 // 3, k % 9 % 3
        rows, columns = (slice(start, start + 2 * width, 2) for start in (down, right))
        assert torch.equal(out[:, k], padded[:, k, rows, columns]), (k % 9, width)
        wanted[:, k, rows, columns] += layer.grad[:, k]
        wanted[:, (k + 1) % 64, 1:-1:2, 1:-1:2] += layer.grad1[:, k]
    assert torch.equal(grad, wanted[:, :, 1:-1, 1:-1].half())


def test_the_gradient_is_the_transpose():
    """⟨forward(x), g⟩ = ⟨x, backward(g)⟩, the positive part undone by that of −x."""
    layer = Layer((3, 64, 64, 8))
    layer.shift, layer.shift1 = torch.zeros(2, 64)
    (out, short), (negative, _) = layer.forward(), layer.forward(-layer.x)
    given = backward(layer.grad, layer.grad1, *layer.packed(backward=True))
    terms = layer.x.double() * given.double()
    left = ((out.double() - negative.double()) * layer.grad).sum() + (
        short.double() * layer.grad1
    ).sum()
    assert (left - terms.sum()).abs() < 3e-3 * terms.norm()


def test_nan_stays_nan_where_it_is_met():
    layer, nan = Layer((5, 64, 64, 4)), float("nan")
    x = layer.x.clone()
    x[1, 7, 3, 2] = nan  # an odd row, of two pixels of out; the shortcut does not look at it
    x[4, 5, 0, 4] = nan
    met = torch.zeros(5, 64, 4, 4, dtype=torch.bool)
    met[4, :, 0, 2] = True
    out, short = layer.forward(x)
    assert torch.equal(short.isnan(), met)
    met[1, :, 1:3, 1] = True
    assert torch.equal(out.isnan(), met)
    grad, grad1, mask = (t.clone() for t in (layer.grad, layer.grad1, layer.mask))
    grad[1, 7, 0, 1] = grad1[2, 3, 1, 1] = nan
    packed = layer.packed(backward=True)
    met = torch.zeros(5, 64, 8, 8, dtype=torch.bool)
    met[1, :, :2, 1:4] = met[2, :, 2, 2] = True
    assert torch.equal(backward(grad, grad1, *packed).isnan(), met)
    mask[1, :, 0], mask[2] = 0, nan  # NaN is not above 0
    given = backward(grad, grad1, *packed, mask)
    assert (given[1, :, 0] == 0).all() and (given[2] == 0).all()
    assert torch.equal(given[1, :, 1].isnan(), met[1, :, 1] & (mask[1, :, 1] > 0))
