"""Each kernel against its reference on the CPU and against NumPy, interpreted or on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastuiat_kernels import SIZES, Size, noise_key

sys.path.insert(0, str(Path(__file__).parents[1]))
import by_the_book
from launching import CPU, VARIANTS, check, copies, launcher, module, on_device, same_bits

ANY_SIZE = [name for name, variant in VARIANTS.items() if variant.sizes is SIZES]
# Odd, prime, one of everything, and images of more than one block.
ODD = Size(7, 5, 3, 11, 13, 61)
PRIME = Size(13, 3, 17, 19, 2, 13)
ONE = Size(1, 1, 1, 1, 2, 1)
WIDE = Size(3, 3, 20, 20, 101, 11)


@pytest.mark.parametrize("size", [ODD, PRIME, ONE, WIDE], ids=["odd", "prime", "one", "wide"])
@pytest.mark.parametrize("name", ANY_SIZE)
def test_kernel_is_its_reference(name, size):
    variant = VARIANTS[name]
    for dtype in variant.dtypes:
        check(variant, variant.inputs(size, dtype, CPU))


@pytest.mark.parametrize("name", ["sign_step", "bank_apply", "bank_step", "bank_accumulate"])
def test_contiguous_images(name):
    variant = VARIANTS[name]
    inputs = {
        k: v.contiguous() if isinstance(v, torch.Tensor) else v
        for k, v in variant.inputs(ODD, torch.float32, CPU).items()
    }
    out, _ = check(variant, inputs)
    assert out.is_contiguous()


SPECIAL = torch.tensor([0.0, -0.0, float("nan"), float("inf"), float("-inf"), 1e-45, -1e-45, 3.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_sign_step_special_values(dtype):
    grad = SPECIAL.to(dtype).reshape(1, 2, 2, 2)
    x = torch.full((1, 2, 2, 2), 0.5)
    step = launcher("sign_step")
    counts = torch.tensor([5, 7])
    out = step(x, x, grad, 0.25, 1.0, 0.0, 1.0, counts)
    tiny = 0.0 if dtype == torch.float16 else 0.25  # 1e-45 is 0 in fp16
    moved = [0.5, 0.5, 0.5, 0.75, 0.25, 0.5 + tiny, 0.5 - tiny, 0.75]
    assert out.flatten().tolist() == moved
    assert counts.tolist() == [5 + (4 if dtype == torch.float16 else 2), 7 + 3]
    for x_ref, x_cur in ((x * float("nan"), x), (x, x * float("nan"))):
        assert step(x_ref, x_cur, grad, 0.25, 1.0, 0.0, 1.0).isnan().all()


def test_sign_step_without_projection():
    variant = VARIANTS["sign_step"]
    check(variant, variant.inputs(ODD, torch.float32, CPU) | {"eps": float("inf")})


@given(
    st.integers(0, 2**31),
    st.floats(0, 0.5, width=32),
    st.floats(0, 0.5, width=32),
)
@settings(max_examples=20, deadline=None)
def test_sign_step_properties(seed, alpha, eps):
    step, random = launcher("sign_step"), torch.Generator().manual_seed(seed)
    x = torch.rand(2, 3, 5, 3, generator=random)
    start = (x + eps * (2 * torch.rand(x.shape, generator=random) - 1)).clamp(0, 1)
    start = start.clamp(x - eps, x + eps)
    grad = torch.randn(x.shape, generator=random)
    up = step(x, start, grad, alpha, eps, 0.0, 1.0)
    assert ((up >= x - eps) & (up <= x + eps) & (up >= 0) & (up <= 1)).all()
    same_bits(step(x, start, 0 * grad, alpha, eps, 0.0, 1.0), start)
    same_bits(step(x, start, -grad, -alpha, eps, 0.0, 1.0), up)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_random_start_is_philox(kind, channels_last):
    shape, inf = (3, 3, 5, 3), float("inf")
    x = torch.zeros(shape)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    index, key = torch.tensor([0, 2**40 + 3, -1]), noise_key(3, 1, 4, "attack")
    out = launcher("random_start")(x, index, key, 1.0, kind, -inf, inf)
    expected = by_the_book.noise(shape, index.tolist(), key.tolist(), kind)
    if kind == "uniform":
        assert (out.numpy() == expected.astype(np.float32)).all()
    else:
        ulp = np.spacing(np.abs(expected).astype(np.float32)).astype(float)
        assert (np.abs(out.numpy() - expected) / ulp).max() <= 4


def test_normals_are_within_4_ulp():
    """100,000 of them against the reference."""
    kernel = module("random_start")
    x = torch.zeros(8, 3, 64, 64).to(memory_format=torch.channels_last)
    arguments = {"index": torch.arange(8) * 977, "key": noise_key(8), "eps": 1.0}
    limits = {"kind": "normal", "lo": float("-inf"), "hi": float("inf")}
    out = on_device(kernel._launch)(x, **arguments, **limits)
    reference = kernel.random_start_reference(x, **arguments, **limits)
    ulp = np.spacing(reference.abs().numpy()).astype(float)
    assert (np.abs(out.double() - reference.double()).numpy() / ulp).max() <= 4
    assert abs(out.mean()) < 0.01 and abs(out.std() - 1) < 0.01


@pytest.mark.parametrize("name", ["random_start, uniform, channels-last", "sign_step", "bank_step"])
def test_block_size_changes_no_bit(name, monkeypatch):
    variant = VARIANTS[name]
    inputs = variant.inputs(ODD, torch.float32, CPU)
    kernel = module(name.split(",")[0])
    results = []
    for block in (64, 1024):
        monkeypatch.setattr(kernel, "_BLOCK", block)
        results.append(on_device(variant.launcher)(**copies(inputs)))
    same_bits(*results)


def test_augment_is_exact_for_every_byte_and_shift():
    images = torch.arange(18 * 6 * 7 * 3).remainder(256).to(torch.uint8).reshape(18, 6, 7, 3)
    shift_y, shift_x = torch.arange(18) % 9, (5 * torch.arange(18) + 1) % 9
    flip = torch.arange(18) % 2 == 0
    out = launcher("augment")(images, shift_y, shift_x, flip, 4)
    arrays = (t.numpy() for t in (images, shift_y, shift_x, flip))
    assert (out.numpy() == by_the_book.augment(*arrays, 4)).all()
    assert out.is_contiguous(memory_format=torch.channels_last)
    still = torch.full((1,), 4)
    whole = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    exact = launcher("augment")(whole, still, still, torch.tensor([False]), 4)
    assert (exact.flatten().numpy() == (np.arange(256) / 255).astype(np.float32)).all()


def test_bank_against_numpy():
    variant = VARIANTS["bank_step"]
    for size in (ODD, PRIME):
        inputs = variant.inputs(size, torch.float32, CPU)
        arrays = {k: v.numpy().copy() if hasattr(v, "numpy") else v for k, v in inputs.items()}
        out = on_device(variant.launcher)(**inputs)
        assert (out.numpy() == by_the_book.bank_step(**arrays)).all()
        applied = launcher("bank_apply")(inputs["grad"], out, inputs["y"], -1.0, 1.0)
        book = by_the_book.bank_apply(arrays["grad"], out.numpy(), arrays["y"], -1.0, 1.0)
        assert (applied.numpy() == book).all()


def test_bank_of_1000_classes_and_4096_rows(monkeypatch):
    monkeypatch.setattr(module("class_rows"), "_RANKED", 256)  # the interpreter pays per program
    monkeypatch.setattr(module("class_rows"), "_CHUNK", 1024)
    variant = VARIANTS["bank_step"]
    check(variant, variant.inputs(Size(4096, 3, 2, 2, 1000, 1), torch.float32, CPU))


def test_bank_where_one_class_takes_the_batch_and_order_matters():
    """Large values that cancel: any order but the batch's would leave another sign."""
    z = torch.zeros(3, 1, 2, 2)
    grad = torch.tensor([1e8, 1.0, -1e8, -1.0]).repeat(32)[:, None, None, None].expand(128, 1, 2, 2)
    grad = grad.contiguous()
    y = torch.full((128,), 1)
    total = np.float32(0)
    for value in grad[:, 0, 0, 0].numpy():
        total = total + value
    assert total != 0  # in exact arithmetic it is
    out = launcher("bank_step", "_launch_step")(z.clone(), grad, y, 0.25, 1.0)
    assert (out[1] == -0.25 * np.sign(total)).all()
    assert (out[0] == 0).all() and (out[2] == 0).all()


def test_bank_special_values():
    nan, inf = float("nan"), float("inf")
    grad = torch.tensor([[0.0, -0.0, nan, inf], [0.0, -0.0, 1.0, -inf]]).reshape(2, 1, 2, 2)
    z = torch.full((2, 1, 2, 2), 0.1)
    step = launcher("bank_step", "_launch_step")
    out = step(z.clone(), grad, torch.tensor([1, 1]), 0.25, 0.5)
    same_bits(out, z)  # sign(0) = sign(NaN) = 0, and inf − inf is NaN
    out = step(z * nan, grad, torch.tensor([1, 1]), 0.25, 0.5)
    assert out.isnan().all()


@pytest.mark.parametrize("classes", [2, 7, 10, 100, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_distill_loss_and_gradient_against_numpy(classes, dtype):
    random = torch.Generator().manual_seed(classes)
    logits = (5 * torch.randn(11, classes, generator=random)).to(dtype)
    p = torch.softmax(8 * torch.randn(11, classes, generator=random), 1)
    p[p < 1e-3] = 0
    p[0] = 0  # no mass at all: the divergence and its gradient are 0
    p[1] = torch.nn.functional.one_hot(torch.tensor(1), classes)
    y = torch.randint(classes, (11,), generator=random)
    losses, grad, target_grad = launcher("distill_loss")(logits, p, y, 3.5, True)
    loss, book, target_book = by_the_book.distill_loss(logits.numpy(), p.numpy(), y.numpy(), 3.5)
    assert abs(losses.mean().item() - loss) <= 1e-5 * abs(loss)
    np.testing.assert_allclose(grad.numpy() / 11, book, atol=1e-6)
    np.testing.assert_allclose(target_grad.numpy() / 11, target_book, rtol=1e-5, atol=1e-6)
    alone, same, none = launcher("distill_loss")(logits, p, y, 3.5)
    assert torch.equal(alone, losses) and torch.equal(same, grad) and none.numel() == 0


def test_distill_loss_far_apart_logits():
    logits = torch.tensor([[500.0, -500.0, 0.0], [0.0, 0.0, 0.0]])
    p = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    losses, grad, target_grad = launcher("distill_loss")(logits, p, torch.tensor([0, 1]), 2.0, True)
    torch.testing.assert_close(losses, torch.tensor([0.0, 3 * np.log(3)], dtype=torch.float32))
    assert grad.isfinite().all() and target_grad.isfinite().all()
    logits[0, 1] = float("nan")
    losses, *_ = launcher("distill_loss")(logits, p, torch.tensor([0, 1]), 2.0)
    assert losses.isnan().tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_memory_update_against_numpy(dtype, gamma):
    random = torch.Generator().manual_seed(1)
    memory = torch.rand(31, 13, generator=random).to(dtype)
    seen = torch.rand(31, generator=random) < 0.5
    index = torch.randperm(31, generator=random)[:17]
    probs = torch.softmax(torch.randn(17, 13, generator=random), 1)
    arrays = [t.numpy().copy() for t in (memory, seen, index, probs)]
    out = launcher("memory_update")(memory, seen, index, probs, gamma)
    for actual, expected in zip(
        (out, memory, seen), by_the_book.memory_update(*arrays, gamma), strict=True
    ):
        assert (actual.numpy() == expected).all()
