"""A convolution as a product of matrices is that convolution."""

from __future__ import annotations

import runpy
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from fastuiat.fast import torch_internals
from fastuiat.models import convolution
from fastuiat.models.convolution import Conv3x3, product_of_patches


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (8, 8), (7, 5), (1, 3), (2, 1)])
def test_product_is_the_convolution(stride: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, height, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    expected = F.conv2d(x, weight, stride=stride, padding=1)
    product = product_of_patches(x, weight, stride)
    torch.testing.assert_close(product, expected, rtol=1e-12, atol=1e-12)
    seed = torch.randn_like(expected)
    gradients = torch.autograd.grad(product, (x, weight), seed)
    torch.testing.assert_close(
        gradients, torch.autograd.grad(expected, (x, weight), seed), rtol=1e-12, atol=1e-12
    )


def test_layout_is_channels_last() -> None:
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    assert product_of_patches(x, torch.randn(6, 8, 3, 3), 1).is_contiguous(
        memory_format=torch.channels_last
    )


def products(monkeypatch: pytest.MonkeyPatch, net: Conv3x3, x: torch.Tensor) -> tuple[Any, int]:
    """The net's output when compiled, and how many products it took."""
    taken: list[int] = []

    def counted(x: torch.Tensor, weight: torch.Tensor, stride: int) -> torch.Tensor:
        taken.append(stride)
        return product_of_patches(x, weight, stride)

    monkeypatch.setattr(convolution, "MATRIX_UNITS", True)
    monkeypatch.setattr(convolution, "product_of_patches", counted)
    torch.compiler.reset()
    with torch.no_grad():
        return torch.compile(net, backend="eager", fullgraph=True)(x), len(taken)


@pytest.mark.parametrize(
    ("inputs", "outputs", "dtype", "expected"),
    [
        (512, 512, torch.bfloat16, 1),
        (256, 512, torch.bfloat16, 1),
        (256, 256, torch.bfloat16, 0),
        (512, 512, torch.float32, 0),
    ],
)
def test_where_a_layer_is_a_product(
    monkeypatch: pytest.MonkeyPatch, inputs: int, outputs: int, dtype: torch.dtype, expected: int
) -> None:
    net = Conv3x3(inputs, outputs, 2).to(dtype)
    x = torch.randn(2, inputs, 4, 4, dtype=dtype)
    out, taken = products(monkeypatch, net, x)
    assert taken == expected
    exact = F.conv2d(x.double(), net.weight.double(), stride=2, padding=1)
    tolerance = 2**-8 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(out.double(), exact, rtol=tolerance, atol=tolerance)


def test_eager_is_the_library_s_own() -> None:
    net = Conv3x3(512, 512).to(torch.bfloat16)
    x = torch.randn(2, 512, 4, 4, dtype=torch.bfloat16)
    assert torch.equal(net(x), F.conv2d(x, net.weight, padding=1))


def test_a_pytorch_that_does_not_tell_of_matrix_units(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The layer is imported all the same, without products; the log says so once."""
    torch_internals.say_once.cache_clear()
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported")
    # Under another name: reloaded, its classes would be other ones for the rest of the process.
    anew = runpy.run_path(convolution.__file__)
    assert anew["MATRIX_UNITS"] is False
    assert not torch_internals.cpu_has("amx_tile")
    assert [r.message for r in caplog.records if "amx_tile" in r.message] == [
        f"this PyTorch ({torch.__version__}) has no torch.cpu._is_amx_tile_supported: "
        "computing as if this CPU had no amx_tile"
    ]
    net = anew["Conv3x3"](512, 512).to(torch.bfloat16)
    assert net(torch.randn(1, 512, 4, 4, dtype=torch.bfloat16)).shape == (1, 512, 4, 4)
