"""bank_apply: add each sample's class perturbation (Algorithm 1, line 7).

    x_inv = clip(x + z[y], lo, hi)

Shapes: x (B, C, H, W), z (K, C, H, W), y int64 (B,). Exact.
"""

from __future__ import annotations

from torch import Tensor

from fastuiat_kernels import checks


def bank_apply_reference(x: Tensor, z: Tensor, y: Tensor, lo: float, hi: float) -> Tensor:
    return (x + z[y].to(x.dtype)).clamp(lo, hi)


def bank_apply(x: Tensor, z: Tensor, y: Tensor, *, lo: float = 0.0, hi: float = 1.0) -> Tensor:
    """The universal inverse examples of a batch, in x's dtype and layout."""
    checks.floating(x=x, z=z)
    checks.same_device(x=x, z=z, y=y)
    if z.shape[1:] != x.shape[1:]:
        raise ValueError(f"z is a bank of {tuple(z.shape[1:])}, x holds {tuple(x.shape[1:])}")
    checks.indices("y", y, z.shape[0], x.shape[0])
    return bank_apply_reference(x, z, y, lo, hi)
