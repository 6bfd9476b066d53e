"""random_start: clip(x + noise, lo, hi), the first point of an attack.

    uniform: noise = eps·(2u − 1), u ∈ [0, 1)        normal: noise = eps·n, n ~ N(0, 1)

Shapes: x (B, C, H, W), index int64 (B,), key int64 (2,). Noise is numbered in NHWC order whatever
the layout of x, so channels-last and contiguous inputs get the same values.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from fastuiat_kernels import checks
from fastuiat_kernels.philox import normal, philox_uint32, uniform


def random_start_reference(
    x: Tensor, index: Tensor, key: Tensor, *, eps: float, kind: str, lo: float, hi: float
) -> Tensor:
    batch, channels, height, width = x.shape
    elements = channels * height * width
    words = philox_uint32(key.to(x.device), index, -(-elements // 4))
    noise = uniform(words) * 2 - 1 if kind == "uniform" else normal(words)
    noise = noise[:, :elements].reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    return (x + eps * noise).clamp(lo, hi)


def random_start(
    x: Tensor,
    index: Tensor,
    key: Tensor,
    *,
    eps: float,
    kind: Literal["uniform", "normal"] = "uniform",
    lo: float = 0.0,
    hi: float = 1.0,
) -> Tensor:
    """A random point near x (B, C, H, W), in x's layout and dtype.

    `eps` is the half-width of the uniform, or the standard deviation of the normal, in pixel units.
    ValueError on an integer x, a wrong index or an unknown kind.
    """
    checks.floating(x=x)
    checks.same_device(x=x, index=index)
    checks.indices("index", index, 2**63 - 1, x.shape[0])
    if kind not in ("uniform", "normal"):
        raise ValueError(f"kind must be 'uniform' or 'normal', got {kind!r}")
    return random_start_reference(x, index, key, eps=eps, kind=kind, lo=lo, hi=hi)
