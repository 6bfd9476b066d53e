"""What the tests of launches share: the work is DEVICE's, the tensors are the CPU's."""

from __future__ import annotations

import importlib
import os

import torch
from torch.utils._pytree import tree_map

from fastuiat_kernels import SPECS

CPU = torch.device("cpu")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
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
