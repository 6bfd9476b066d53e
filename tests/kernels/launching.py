"""What the tests of launches share: the work is DEVICE's, the tensors are the CPU's."""

from __future__ import annotations

import importlib
import os

import numpy as np
import torch
from torch.utils._pytree import tree_map

from fastuiat_kernels import SPECS

CPU = torch.device("cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
HALVES = [torch.float16] if INTERPRETED else [torch.float16, torch.bfloat16]
"""The interpreter multiplies the bits of bf16 as if they were integers."""
VARIANTS = {variant.name: variant for spec in SPECS for variant in spec.variants}


def module(name: str):
    return importlib.import_module(f"fastuiat_kernels.{name}")


def on_device(launch):
    """The launcher with tensors of the CPU, which it may write into: the work is DEVICE's."""

    def run(*arguments, **keywords):
        moved = []

        def move(value):
            if not isinstance(value, torch.Tensor):
                return value
            moved.append((value, value.to(DEVICE)))
            return moved[-1][1]

        result = launch(*map(move, arguments), **{k: move(v) for k, v in keywords.items()})
        for here, there in moved:
            here.copy_(there)
        return tree_map(lambda tensor: tensor.to(CPU), result)

    return run


def launcher(name: str, attribute: str = "_launch"):
    return on_device(getattr(module(name), attribute))


def same_bits(a, b):
    """Equal, NaNs in the same places."""
    assert a.shape == b.shape and a.dtype == b.dtype
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def copies(inputs):
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


def check(variant, inputs):
    """Launcher against reference; in-place arguments too."""
    left, right = copies(inputs), copies(inputs)
    expected, actual = variant.reference(**left), on_device(variant.launcher)(**right)
    if not isinstance(expected, tuple):
        expected, actual = (expected,), (actual,)
    for a, b in zip(actual, expected, strict=True):
        if variant.tolerance is None:
            same_bits(a, b)
        else:
            torch.testing.assert_close(a, b, **variant.tolerance.of(b.dtype))
    for name in variant.mutates:
        same_bits(right[name], left[name])
    return actual[0], right


def book(tensor):
    return tensor.double().numpy()


def column(vector):
    return book(vector)[:, None, None]


def once_rounded(actual, expected):
    """Half a unit in the last place of its dtype, and what a sum in fp32 may be off."""
    expected = torch.from_numpy(np.ascontiguousarray(expected))
    half_ulp = 0.501 * torch.finfo(actual.dtype).eps
    torch.testing.assert_close(actual.double(), expected, rtol=half_ulp, atol=1e-4)
    assert actual.is_contiguous(memory_format=torch.channels_last)
