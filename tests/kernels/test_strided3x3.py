"""A block's two convolutions of stride 2 on the CPU, and which way a call takes."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastuiat_kernels import pack_strided, strided3x3, strided3x3_backward
from fastuiat_kernels.strided3x3_kernel import TILES, takes_layer

sys.path.insert(0, str(Path(__file__).parent))
import by_the_book

RANDOM = torch.Generator().manual_seed(0)


def normal(*shape):
    """float64; images channels-last."""
    values = torch.randn(*shape, dtype=torch.float64, generator=RANDOM)
    return values.to(memory_format=torch.channels_last) if len(shape) == 4 else values


X, GRAD, GRAD1 = normal(3, 4, 6, 10), normal(3, 6, 3, 5), normal(3, 6, 3, 5)
WEIGHT, WEIGHT1, SHIFT, SHIFT1 = normal(6, 4, 3, 3), normal(6, 4, 1, 1), normal(6), normal(6)
MASK = normal(3, 4, 6, 10).relu()
WEIGHTS = (WEIGHT, WEIGHT1)
PACKED, PACKED1 = map(pack_strided, WEIGHTS)
BACK, BACK1 = (pack_strided(weight, backward=True) for weight in WEIGHTS)


def arrays(*tensors):
    return [tensor.double().numpy() for tensor in tensors]


def column(vector):
    return vector.double().numpy()[:, None, None]


def same(actual, expected):
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12, atol=1e-12)
    assert actual.is_contiguous(memory_format=torch.channels_last)


def test_forward_against_numpy():
    product, product1 = by_the_book.strided3x3(*arrays(X, *WEIGHTS))
    for weights in (WEIGHTS, [weight.contiguous() for weight in WEIGHTS]):
        packed, packed1 = map(pack_strided, weights)
        assert packed.shape == (36, 6) and packed1.shape == (4, 6)
        assert packed.is_contiguous() and packed1.is_contiguous()
        out, short = strided3x3(X, packed, SHIFT, packed1, SHIFT1)
        same(out, np.maximum(product + column(SHIFT), 0))
        same(short, product1 + column(SHIFT1))


def test_backward_against_numpy_and_autograd():
    product = by_the_book.strided3x3_gradient(*arrays(GRAD, GRAD1, *WEIGHTS))
    x = X.clone().requires_grad_()
    conv = torch.nn.functional.conv2d
    outs = conv(x, WEIGHT, stride=2, padding=1), conv(x, WEIGHT1, stride=2)
    torch.autograd.backward(outs, (GRAD, GRAD1))
    np.testing.assert_allclose(x.grad.numpy(), product, atol=1e-12)
    mask = MASK.numpy() > 0
    assert 0.3 < mask.mean() < 0.7
    for weights in (WEIGHTS, [weight.contiguous() for weight in WEIGHTS]):
        packed = [pack_strided(weight, backward=True) for weight in weights]
        assert packed[0].shape == (54, 4) and packed[1].shape == (6, 4)
        assert packed[0].is_contiguous() and packed[1].is_contiguous()
        same(strided3x3_backward(GRAD, GRAD1, *packed), product)
        same(strided3x3_backward(GRAD, GRAD1, *packed, MASK), product * mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_sums_are_rounded_once(dtype):
    """Half a unit in the last place, and what a sum in fp32 may be off, of the exact sum."""

    def close(actual, exact):
        assert actual.dtype == dtype
        rtol = torch.finfo(dtype).eps / 2 * 1.01
        np.testing.assert_allclose(actual.double().numpy(), exact, rtol=rtol, atol=1e-5)

    weights = [weight.to(dtype) for weight in WEIGHTS]
    x, grad, grad1 = (t.to(dtype) for t in (X, GRAD, GRAD1))
    packed, packed1 = map(pack_strided, weights)
    out, short = strided3x3(x, packed, SHIFT.float(), packed1, SHIFT1.float())
    product, product1 = by_the_book.strided3x3(*arrays(x, *weights))
    close(out, np.maximum(product + column(SHIFT.float()), 0))
    close(short, product1 + column(SHIFT1.float()))
    back = [pack_strided(weight, backward=True) for weight in weights]
    exact = by_the_book.strided3x3_gradient(*arrays(grad, grad1, *weights))
    close(strided3x3_backward(grad, grad1, *back), exact)


def test_which_layers_have_a_tile():
    for width, tile in TILES.items():
        assert width % tile.rows == 0 and tile.split == 1
        # Whole rows of one image, or whole images: so a tile's pixels follow each other.
        assert tile.images == 1 or tile.rows == width
        for channels, filters in ((64, 64), (64, 128), (192, 320)):
            assert takes_layer(width, width, channels, filters)
            assert channels % tile.channels == filters % tile.channels == 0
            assert channels % tile.filters == filters % tile.filters == 0
    for shape in ((16, 16, 3, 64), (16, 16, 64, 10), (16, 8, 64, 64), (7, 7, 64, 64)):
        assert not takes_layer(*shape)


def halves(*shape):
    values = torch.zeros(*shape).half()
    return values.to(memory_format=torch.channels_last) if len(shape) == 4 else values


def test_what_is_not_taken_goes_by_pytorch(monkeypatch):
    """Of a GPU that takes tiles: other dtypes, mixed ones, other shapes, and unaligned storage."""
    module = importlib.import_module("fastuiat_kernels.strided3x3")
    monkeypatch.setattr(module, "takes_tiles", lambda *tensors: True)
    launched = []
    for name in ("", "_backward"):
        reference = getattr(module, f"strided3x3{name}_reference")
        noted = lambda *given, way=reference: launched.append(1) or way(*given)  # noqa: E731
        monkeypatch.setattr(module, f"launch{name}", noted)
    x, grad = halves(1, 64, 16, 16), halves(1, 64, 8, 8)
    packed, packed1 = halves(576, 64), halves(64, 64)

    def taken(x=x, packed=packed, packed1=packed1):
        launched.clear()
        shift = torch.zeros(packed.shape[1])
        strided3x3(x, packed, shift, packed1, shift)
        return bool(launched)

    def taken_back(grad=grad, grad1=grad, packed=packed, packed1=packed1):
        launched.clear()
        strided3x3_backward(grad, grad1, packed, packed1)
        return bool(launched)

    unaligned = torch.zeros(16385).half()[1:].view(1, 16, 16, 64).permute(0, 3, 1, 2)
    unaligned_grad = torch.zeros(4097).half()[1:].view(1, 8, 8, 64).permute(0, 3, 1, 2)
    unaligned_weight = torch.zeros(4097).half()[1:].view(64, 64)
    assert taken() and taken(halves(1, 64, 32, 32)) and taken_back()
    assert not taken(x.float(), packed.float(), packed1.float())
    assert not taken(packed1=packed1.bfloat16()) and not taken_back(grad1=grad.bfloat16())
    assert not taken(halves(1, 64, 14, 14)) and not taken(halves(1, 64, 16, 8))
    assert not taken(packed=halves(576, 32), packed1=halves(64, 32))
    assert not taken(unaligned) and not taken(packed1=unaligned_weight)
    assert not taken_back(grad1=unaligned_grad) and not taken_back(packed1=unaligned_weight)


def forward(x=X, packed=PACKED, shift=SHIFT, packed1=PACKED1, shift1=SHIFT1):
    return strided3x3(x, packed, shift, packed1, shift1)


def backward(grad=GRAD, grad1=GRAD1, packed=BACK, packed1=BACK1, mask=MASK):
    return strided3x3_backward(grad, grad1, packed, packed1, mask)


BAD = {
    "weight must be (K, C, 3, 3) or (K, C, 1, 1)": lambda: pack_strided(WEIGHT[..., :1]),
    "x must be (B, C, H, W)": lambda: forward(x=X[0]),
    "with even H and W, got (3, 4, 6, 9)": lambda: forward(x=X[..., :9]),
    "with even H and W, got (3, 4, 5, 10)": lambda: forward(x=X[:, :, :5]),
    "x must be floating point": lambda: forward(x=X.long()),
    "x must be channels-last": lambda: forward(x=X.contiguous()),
    "packed must be (36, n) for 4 channels": lambda: forward(packed=BACK),
    "packed must be contiguous": lambda: forward(packed=PACKED.t().contiguous().t()),
    "packed is on meta": lambda: forward(packed=PACKED.to("meta")),
    "packed1 must be (4, 6)": lambda: forward(packed1=BACK1),
    "packed1 must be floating point": lambda: forward(packed1=PACKED1.int()),
    "packed1 must be contiguous": lambda: forward(packed1=PACKED1.t().contiguous().t()),
    "shift must be (6,)": lambda: forward(shift=SHIFT[:5]),
    "shift1 must be (6,)": lambda: forward(shift1=SHIFT1[:, None]),
    "shift1 must be contiguous": lambda: forward(shift1=normal(6, 2)[:, 0]),
    "shift is on meta": lambda: forward(shift=SHIFT.to("meta")),
    "shift must be floating point": lambda: forward(shift=SHIFT.int()),
    "grad must be (B, K, H, W)": lambda: backward(grad=GRAD[0]),
    "grad must be channels-last": lambda: backward(grad=GRAD.contiguous()),
    "grad1 must be (3, 6, 3, 5)": lambda: backward(grad1=X),
    "grad1 must be channels-last": lambda: backward(grad1=GRAD1.contiguous()),
    "grad1 is on meta": lambda: backward(grad1=GRAD1.to("meta")),
    "packed must be (54, n) for 6 channels": lambda: backward(packed=PACKED),
    "packed1 must be (6, 4)": lambda: backward(packed1=PACKED1),
    "mask must be (3, 4, 6, 10)": lambda: backward(mask=GRAD),
    "mask must be channels-last": lambda: backward(mask=MASK.contiguous()),
    "mask is on meta": lambda: backward(mask=MASK.to("meta")),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_names_the_argument(message):
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert message in str(error.value)
