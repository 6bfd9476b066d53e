"""The layers of `fastuiat bench layers` are the same work by all of their ways."""

from __future__ import annotations

import pytest
import torch

from fastuiat.bench import calls, suites
from fastuiat.bench.suites.layers import WAYS, FirstLayer, Layer, LayerOptions, layers_at

CPU = torch.device("cpu")


def layer(stride, direction, dtype=torch.float64):
    return Layer(16, 8, stride, 3, direction, dtype, CPU)


@pytest.mark.parametrize("stride", [1, 2])
def test_forward(stride):
    """Ours has BatchNorm's factor in its weights: with a factor of 1 it is what stands around."""
    inputs = layer(stride, "forward").inputs()
    inputs |= {"factor": torch.ones(16 * stride).double(), "shift": inputs["shift"].double()}
    alone, around, ours = (way(**inputs) for way in WAYS[stride, "forward"])
    torch.testing.assert_close(
        ours, type(ours)(around) if stride == 2 else around, rtol=1e-4, atol=1e-4
    )
    first = alone[0] if stride == 2 else alone
    torch.testing.assert_close(
        first, torch.conv2d(inputs["x"], inputs["weight"], stride=stride, padding=1)
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_backward(stride):
    inputs = layer(stride, "backward").inputs()
    inputs["factor"] = torch.ones(16 * stride).double()
    alone, around, ours = (way(**inputs) for way in WAYS[stride, "backward"])
    torch.testing.assert_close(ours, around, rtol=1e-4, atol=1e-4)
    x = inputs["x"].clone().requires_grad_()
    out = torch.conv2d(x, inputs["weight"], stride=stride, padding=1)
    (gradient,) = torch.autograd.grad(out, x, inputs["grad"])
    torch.testing.assert_close(alone[0] if stride == 2 else alone, gradient)


def test_the_first_layer(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    first = FirstLayer(3, 8, 1, 2, "backward", torch.bfloat16, CPU)
    inputs = first.inputs()
    alone, around, ours = (way()(**inputs) for way in first.ways().values())
    x, weight = inputs["x"].double().requires_grad_(), inputs["weight"][:, :3].double()
    out = torch.conv2d(x, weight, padding=1)
    (gradient,) = torch.autograd.grad(out, x, inputs["grad"].double())
    torch.testing.assert_close(alone[:, :3].double(), gradient, rtol=1e-2, atol=1e-2)
    assert (alone[:, 3:] == 0).all()
    moved = inputs["x_adv"] + 2 / 255 * gradient.sign().float()
    moved = moved.clamp(inputs["x"] - 8 / 255, inputs["x"] + 8 / 255).clamp(0, 1)
    assert torch.equal(ours, moved)
    assert (around - ours).abs().gt(1e-6).float().mean() < 0.01


def test_operations_and_bytes_by_hand():
    plain, strided = (Layer(64, 32, s, 128, "forward", torch.bfloat16, CPU) for s in (1, 2))
    assert plain.flops == 2 * 128 * 1024 * 64 * 64 * 9
    assert strided.flops == 2 * 128 * 256 * 64 * 128 * (9 + 1)
    assert plain.moved(plain.inputs()) == 2 * (3 * 128 * 1024 * 64 + 9 * 64 * 64)
    assert strided.moved(strided.inputs()) == 2 * (
        128 * 1024 * 64 + 2 * 128 * 256 * 128 + 10 * 64 * 128
    )
    first = FirstLayer(3, 32, 1, 128, "backward", torch.bfloat16, CPU)
    assert first.flops == 2 * 128 * 1024 * 64 * 3 * 9
    images = 3 * 4 * 128 * 1024 * 3
    assert first.moved(first.inputs()) == images + 2 * (128 * 1024 * 64 + 3 * 64 * 16)


def test_which_layers_are_met():
    """Every width's in both directions, the image's end beside those of its width."""
    names = {
        widths: [layer.name for layer in layers_at(LayerOptions(widths=widths), CPU)]
        for widths in ((32, 16, 8, 4), (32,), (4,))
    }
    assert len(names[32, 16, 8, 4]) == len(set(names[32, 16, 8, 4])) == 15
    assert "3 channels at 32×32/backward" in names[(32,)] and len(names[(32,)]) == 5
    assert names[(4,)] == [f"512 channels at 4×4/{way}" for way in ("forward", "backward")]


def test_records_and_figures(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    monkeypatch.setattr(calls, "cache_bytes", lambda device: 1)
    suite = suites.of("layers")
    options = LayerOptions(batch_size=1, widths=(4,), repeats=1, device="cpu")
    records = suite.measure(options, lambda event: None)
    assert [r["provider"] for r in records] == 2 * ["cudnn", "with-graph", "fastuiat"]
    assert {r["case"] for r in records} == {
        "512 channels at 4×4/forward",
        "512 channels at 4×4/backward",
    }
    for r in records:
        assert r["error"] is None and r["tflops_per_s"] == r["flops"] / r["median_s"] / 1e12
    assert " of 2 layers" in suite.figures(records)
