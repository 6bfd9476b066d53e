"""An attack's step by the gradient behind the first convolution, on the CPU."""

from __future__ import annotations

import importlib

import pytest
import torch

from fastuiat_kernels import conv3x3_sign_step, pack_image_gradient, sign_step

RANDOM = torch.Generator().manual_seed(0)
NAN, INF = float("nan"), float("inf")


def images(*shape):
    return torch.rand(*shape, generator=RANDOM).to(memory_format=torch.channels_last)


X = images(3, 3, 5, 7)
X_ADV = (X + 0.05 * (images(3, 3, 5, 7) - 0.5)).clamp(0, 1)
GRAD = (images(3, 6, 5, 7) - 0.5).double()
WEIGHT = torch.randn(6, 3, 3, 3, generator=RANDOM, dtype=torch.float64)
PACKED = pack_image_gradient(WEIGHT)
STEP = {"alpha": 2 / 255, "eps": 8 / 255}


def gradient(grad, weight, x):
    """By PyTorch's own gradient, in fp64."""
    return torch.nn.grad.conv2d_input(x.shape, weight.double(), grad.double(), padding=1)


def by_formula(gradient, x, x_adv, alpha, eps, lo=0.0, hi=1.0):
    moved = x_adv + alpha * torch.where(gradient.isnan(), 0.0, gradient.sign()).to(x.dtype)
    return torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(lo, hi)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_both_directions(channels, memory_format):
    weight = torch.randn(6, channels, 3, 3, generator=RANDOM, dtype=torch.float64)
    packed = pack_image_gradient(weight.contiguous(memory_format=memory_format))
    assert packed.shape == (18, 16) and packed.is_contiguous() and packed.dtype == weight.dtype
    x = images(3, channels, 5, 7)
    x_adv = (x + 0.05 * (images(3, channels, 5, 7) - 0.5)).clamp(0, 1)
    slope = gradient(GRAD, weight, x)
    for ascend, alpha in ((True, 2 / 255), (False, -2 / 255)):
        out = conv3x3_sign_step(x, x_adv, GRAD, packed, **STEP, ascend=ascend)
        assert torch.equal(out, by_formula(slope, x, x_adv, alpha, 8 / 255))
        assert out.is_contiguous(memory_format=torch.channels_last)


def test_limits_and_no_projection():
    slope = gradient(GRAD, WEIGHT, X)
    for eps, lo, hi in ((INF, 0.0, 1.0), (0.01, 0.2, 0.7), (0.0, -INF, INF)):
        how = {"alpha": 0.3, "eps": eps, "lo": lo, "hi": hi}
        out = conv3x3_sign_step(X, X_ADV, GRAD, PACKED, **how)
        assert torch.equal(out, by_formula(slope, X, X_ADV, **how))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("image_dtype", [torch.float32, torch.float64])
def test_precisions(dtype, image_dtype):
    """Of whole numbers, whose sums every one of them has exactly."""
    grad = torch.randint(-2, 3, (3, 5, 7, 6), generator=RANDOM).permute(0, 3, 1, 2)
    weight = torch.randint(-2, 3, (6, 3, 3, 3), generator=RANDOM)
    x, x_adv, counts = X.to(image_dtype), X_ADV.to(image_dtype), torch.tensor([3, 4])
    packed = pack_image_gradient(weight.to(dtype))
    out = conv3x3_sign_step(x, x_adv, grad.to(dtype), packed, **STEP, counts=counts)
    slope = gradient(grad, weight, x)
    assert out.dtype == image_dtype and 0 < (slope == 0).sum() < slope.numel() / 4
    assert torch.equal(out, by_formula(slope, x, x_adv, **STEP))
    assert counts.tolist() == [3 + (slope == 0).sum(), 4]


def test_a_sum_that_underflows_in_half_precision_has_its_sign():
    """And one that overflows is finite: counted is what the step went by."""
    x = torch.full((1, 1, 1, 2), 0.5)
    grad = torch.tensor([[2.0**-20, 2.0**15]]).half().reshape(1, 1, 1, 2)
    weight = torch.zeros(1, 1, 3, 3).half()
    weight[0, 0, 1, 1] = 2.0**-10
    counts = torch.zeros(2, dtype=torch.int64)
    step = {"alpha": 0.25, "eps": 1.0, "counts": counts}
    out = conv3x3_sign_step(x, x, grad, pack_image_gradient(weight), **step)
    assert out.flatten().tolist() == [0.75, 0.75] and counts.tolist() == [0, 0]
    assert (grad * weight[0, 0, 1, 1])[0, 0, 0, 0] == 0
    weight[0, 0, 1, 1] = -(2.0**10)
    out = conv3x3_sign_step(x, x, grad, pack_image_gradient(weight), **step)
    assert out.flatten().tolist() == [0.25, 0.25] and counts.tolist() == [0, 0]
    assert (grad * weight[0, 0, 1, 1])[0, 0, 0, 1] == -INF


def test_what_is_not_finite():
    grad, counts = GRAD.clone(), torch.zeros(2, dtype=torch.int64)
    grad[1, 2, 0, 6], grad[2, 0, 4, 3] = NAN, INF
    slope = gradient(grad, WEIGHT, X)
    nan, inf = slope.isnan(), slope.isinf()
    assert nan[1, :, :2, 5:].all() and nan.sum() == 12 and inf.sum() == 18
    out = conv3x3_sign_step(X, X_ADV, grad, PACKED, **STEP, counts=counts)
    assert torch.equal(out, by_formula(slope, X, X_ADV, **STEP))
    assert counts.tolist() == [0, 30]
    for x, x_adv in ((X * NAN, X_ADV), (X, X_ADV * NAN)):
        assert conv3x3_sign_step(x, x_adv, grad, PACKED, **STEP).isnan().all()


def test_it_is_a_sign_step():
    slope = gradient(GRAD, WEIGHT, X).contiguous(memory_format=torch.channels_last)
    for empty in (False, True):
        x, x_adv, grad, given = (t[:0] if empty else t for t in (X, X_ADV, GRAD, slope))
        out = conv3x3_sign_step(x, x_adv, grad, PACKED, **STEP)
        assert torch.equal(out, sign_step(x, x_adv, given, **STEP))


def test_what_is_not_taken_goes_by_pytorch(monkeypatch):
    """Of a GPU that takes tiles: other dtypes, mixed ones, other shapes, and unaligned storage."""
    module = importlib.import_module("fastuiat_kernels.conv3x3_sign_step")
    monkeypatch.setattr(module, "takes_tiles", lambda *tensors: True)
    launched = []
    reference = module.conv3x3_sign_step_reference
    monkeypatch.setattr(module, "_launch", lambda *given: launched.append(1) or reference(*given))

    def taken(filters=64, width=8, dtype=torch.float16, packed=None, x=torch.float32, grad=None):
        launched.clear()
        image = torch.zeros(1, 3, 2, width, dtype=x).to(memory_format=torch.channels_last)
        if grad is None:
            grad = torch.zeros(1, filters, 2, width, dtype=dtype)
            grad = grad.to(memory_format=torch.channels_last)
        if packed is None:
            packed = torch.zeros(3 * filters, 16, dtype=dtype)
        conv3x3_sign_step(image, image, grad, packed, **STEP)
        return bool(launched)

    unaligned = torch.zeros(1025).half()[1:].view(1, 2, 8, 64).permute(0, 3, 1, 2)
    unaligned_weight = torch.zeros(3073).half()[1:].view(192, 16)
    assert taken() and taken(filters=192) and taken(width=128) and taken(dtype=torch.bfloat16)
    assert taken(width=1) and taken(width=37)
    assert not taken(filters=32) and not taken(width=129) and not taken(dtype=torch.float32)
    assert not taken(x=torch.float64) and not taken(packed=torch.zeros(192, 16).bfloat16())
    assert not taken(grad=unaligned) and not taken(packed=unaligned_weight)


def step(x=X, x_adv=X_ADV, grad=GRAD, packed=PACKED, **how):
    return conv3x3_sign_step(x, x_adv, grad, packed, **STEP | how)


BAD = {
    "weight must be (K, C, 3, 3) with C at most 4, got (6, 5": lambda: pack_image_gradient(
        torch.zeros(6, 5, 3, 3)
    ),
    "weight must be (K, C, 3, 3)": lambda: pack_image_gradient(WEIGHT[..., :1]),
    "x_ref must be floating point": lambda: step(x=X.long()),
    "packed must be floating point": lambda: step(packed=PACKED.long()),
    "x_ref has shape (2, 3, 5, 7)": lambda: step(x=X[:2]),
    "x_ref has strides": lambda: step(x=X.contiguous()),
    "x_cur must be channels-last": lambda: step(x=X.contiguous(), x_adv=X_ADV.contiguous()),
    "x_cur must be (B, C, H, W) with C at most 4": lambda: step(x=GRAD, x_adv=GRAD),
    "packed must be (3·K, 16), got (17, 16)": lambda: step(packed=PACKED[:17]),
    "packed must be (3·K, 16), got (18, 8)": lambda: step(packed=PACKED[:, :8]),
    "packed must be contiguous": lambda: step(packed=PACKED.t().contiguous().t()),
    "packed is on meta": lambda: step(packed=PACKED.to("meta")),
    "grad must be (3, 6, 5, 7), got (3, 5, 5, 7)": lambda: step(grad=GRAD[:, :5]),
    "grad must be (3, 6, 5, 7), got (2, 6, 5, 7)": lambda: step(grad=GRAD[:2]),
    "grad must be channels-last": lambda: step(grad=GRAD.contiguous()),
    "grad is on meta": lambda: step(grad=GRAD.to("meta")),
    "counts must be int64 of shape (2,)": lambda: step(counts=torch.zeros(2)),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_names_the_argument(message):
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert message in str(error.value)
