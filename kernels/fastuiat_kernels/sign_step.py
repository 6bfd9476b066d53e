"""sign_step: one step of a projected sign-gradient attack (PGD; Madry et al. 2018, paper eq. 3).

    clip(clip(x' ± alpha·sign(g), x − eps, x + eps), lo, hi)

Shapes: x, x', g alike (B, C, H, W), equal strides. sign(0) = 0 and sign(NaN) = 0: such an element
stays where it is (inside ball and box). Exact: every device gives the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastuiat_kernels import checks


def sign_step_reference(
    x_ref: Tensor,
    x_cur: Tensor,
    grad: Tensor,
    alpha: float,
    eps: float,
    lo: float,
    hi: float,
    counts: Tensor | None = None,
) -> Tensor:
    if counts is not None:
        counts.add_(torch.stack(((grad == 0).sum(), (~grad.isfinite()).sum())))
    stepped = x_cur + alpha * grad.sign().to(x_cur.dtype)
    return stepped.clamp(x_ref - eps, x_ref + eps).clamp(lo, hi)


def sign_step(
    x_ref: Tensor,
    x_cur: Tensor,
    grad: Tensor,
    *,
    alpha: float,
    eps: float,
    ascend: bool = True,
    lo: float = 0.0,
    hi: float = 1.0,
    counts: Tensor | None = None,
) -> Tensor:
    """The next attack point, in the dtype and layout of `x_cur`; `ascend=False` descends.

    `grad` may be fp32, bf16 or fp16. eps = inf leaves out the projection. Where `counts`, int64
    (2,), is given, the numbers of zero and of non-finite gradients are added to it.
    """
    checks.floating(x_ref=x_ref, x_cur=x_cur, grad=grad)
    checks.same_layout(x_cur=x_cur, x_ref=x_ref, grad=grad)
    signed = alpha if ascend else -alpha
    return sign_step_reference(x_ref, x_cur, grad, signed, eps, lo, hi, counts)
