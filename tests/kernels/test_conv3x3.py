"""The 3×3 convolution's public functions on the CPU, and which way a call takes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastuiat_kernels import conv3x3, conv3x3_backward, pack_conv3x3
from fastuiat_kernels import launch as launching
from fastuiat_kernels.conv3x3_kernel import tile_for

sys.path.insert(0, str(Path(__file__).parent))
import by_the_book

RANDOM = torch.Generator().manual_seed(0)


def normal(*shape):
    """float64; images channels-last."""
    values = torch.randn(*shape, dtype=torch.float64, generator=RANDOM)
    return values.to(memory_format=torch.channels_last) if len(shape) == 4 else values


X, RESIDUAL, GRAD, OF_X = (normal(3, c, 5, 7) for c in (4, 6, 6, 4))
WEIGHT, SHIFT, SCALE, SECOND_SHIFT = normal(6, 4, 3, 3), normal(6), normal(6), normal(6)
MASK = normal(3, 4, 5, 7).relu()


def column(vector):
    return vector.numpy()[:, None, None]


def same(actual, expected):
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12, atol=1e-12)
    assert actual.is_contiguous(memory_format=torch.channels_last)


def test_forward_against_numpy():
    product = by_the_book.conv3x3(X.numpy(), WEIGHT.numpy())
    same(conv3x3(X, WEIGHT), product)
    total = product + column(SHIFT) + RESIDUAL.numpy()
    same(conv3x3(X, WEIGHT, SHIFT, residual=RESIDUAL), total)
    for packed in (pack_conv3x3(WEIGHT), pack_conv3x3(WEIGHT.contiguous())):
        assert packed.is_contiguous() and packed.shape == (36, 6)
        out = conv3x3(X, packed, SHIFT, residual=RESIDUAL, relu=True)
        same(out, np.maximum(total, 0))
        out, second = conv3x3(X, packed, SHIFT, residual=RESIDUAL, second=(SCALE, SECOND_SHIFT))
        same(out, total)
        same(second, np.maximum(column(SCALE) * total + column(SECOND_SHIFT), 0))


def test_backward_against_numpy_and_autograd():
    packed = pack_conv3x3(WEIGHT, backward=True)
    product = by_the_book.conv3x3_gradient(GRAD.numpy(), WEIGHT.numpy())
    x = X.clone().requires_grad_()
    torch.nn.functional.conv2d(x, WEIGHT, padding=1).backward(GRAD)
    np.testing.assert_allclose(x.grad.numpy(), product, atol=1e-12)
    mask = MASK.numpy() > 0
    assert 0.3 < mask.mean() < 0.7
    same(conv3x3_backward(GRAD, packed), product)
    same(conv3x3_backward(GRAD, packed, mask=MASK), product * mask)
    both = conv3x3_backward(GRAD, packed, mask=MASK, residual=OF_X)
    same(both, (product + OF_X.numpy()) * mask)
    one = conv3x3_backward(GRAD, packed, mask=MASK, residual=OF_X, masked="product")
    same(one, product * mask + OF_X.numpy())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sums_are_rounded_once(dtype):
    """Half a unit in the last place, and what a sum in fp32 may be off, of the exact sum."""
    x, weight, residual = (t.to(dtype) for t in (X, WEIGHT, RESIDUAL))
    out = conv3x3(x, weight, SHIFT.float(), residual=residual)
    exact = by_the_book.conv3x3(x.double().numpy(), weight.double().numpy())
    exact = exact + column(SHIFT.float()) + residual.double().numpy()
    assert out.dtype == dtype
    half_ulp = torch.finfo(dtype).eps / 2
    np.testing.assert_allclose(out.double().numpy(), exact, rtol=half_ulp * 1.01, atol=1e-5)


def test_which_layers_have_a_tile():
    for width in (32, 16, 8, 4):
        for channels, filters in ((64, 64), (64, 128), (128, 64), (512, 512), (192, 320)):
            tile = tile_for(width, width, channels, filters)
            assert filters % tile.filters == 0 == channels % tile.channels
            assert width % tile.rows == 0
            # Whole rows of one image, or whole images: so a tile's pixels follow each other.
            assert tile.images == 1 or tile.rows == width
    for shape in ((32, 32, 3, 64), (32, 32, 64, 10), (32, 16, 64, 64), (7, 7, 64, 64)):
        assert tile_for(*shape) is None


@pytest.mark.parametrize(
    ("capability", "hip", "takes"),
    [((8, 0), None, False), ((9, 0), None, True), ((10, 0), None, True), ((12, 0), None, False),
     ((9, 4), "6.4", False)],
)  # fmt: skip
def test_which_gpus_take_tiles(capability, hip, takes, monkeypatch):
    """Hopper's and the data centres' Blackwell; not those that load a tile element by element."""
    monkeypatch.setattr(launching, "takes_kernel", lambda *tensors: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert launching.takes_tiles(X) is takes


def test_what_is_not_taken_goes_by_pytorch(monkeypatch):
    """Of a GPU that takes tiles: other dtypes, mixed ones, other shapes, and unaligned storage."""
    module = importlib.import_module("fastuiat_kernels.conv3x3")
    monkeypatch.setattr(module, "takes_tiles", lambda *tensors: True)
    x, packed = torch.zeros(1, 64, 8, 8).half(), torch.zeros(576, 64).half()
    assert module._takes(x, packed)
    assert not module._takes(x.float(), packed.float())
    assert not module._takes(x, packed.bfloat16())
    assert not module._takes(x[:, :, :6], packed)
    assert not module._takes(x, packed[:, :32])
    shifted = torch.zeros(4097).half()[1:].view(1, 64, 8, 8)
    assert not module._takes(shifted, packed)


PACKED = pack_conv3x3(WEIGHT)
BACKWARD = pack_conv3x3(WEIGHT, backward=True)
BAD = {
    "weight must be (K, C, 3, 3)": lambda: pack_conv3x3(WEIGHT[..., :1]),
    "x must be (B, C, H, W)": lambda: conv3x3(X[0], PACKED),
    "packed must be (36, K) for 4 channels": lambda: conv3x3(X, BACKWARD),
    "shift must be (6,)": lambda: conv3x3(X, PACKED, SHIFT[:5]),
    "shift must be contiguous": lambda: conv3x3(X, PACKED, normal(6, 2)[:, 0]),
    "shift is on meta": lambda: conv3x3(X, PACKED, SHIFT.to("meta")),
    "scale must be (6,)": lambda: conv3x3(X, PACKED, second=(SCALE[:5], SHIFT)),
    "residual must be (3, 6, 5, 7)": lambda: conv3x3(X, PACKED, residual=X),
    "x must be channels-last": lambda: conv3x3(X.contiguous(), PACKED),
    "residual must be channels-last": lambda: conv3x3(X, PACKED, residual=RESIDUAL.contiguous()),
    "packed must be contiguous": lambda: conv3x3(X, PACKED.t().contiguous().t()),
    "residual is on meta": lambda: conv3x3(X, PACKED, residual=RESIDUAL.to("meta")),
    "x must be floating point": lambda: conv3x3(X.long(), PACKED),
    "grad must be channels-last": lambda: conv3x3_backward(GRAD.contiguous(), BACKWARD),
    "packed must be (54, K) for 6 channels": lambda: conv3x3_backward(GRAD, PACKED),
    "mask must be (3, 4, 5, 7)": lambda: conv3x3_backward(GRAD, BACKWARD, mask=GRAD),
    "masked must be 'both' or 'product'": lambda: conv3x3_backward(GRAD, BACKWARD, masked="sum"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_names_the_argument(message):
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert message in str(error.value)
