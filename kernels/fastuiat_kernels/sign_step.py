"""sign_step: one step of a projected sign-gradient attack (PGD; Madry et al. 2018, paper eq. 3).

    clip(clip(x' ± alpha·sign(g), x − eps, x + eps), lo, hi)

Shapes: x, x', g alike (B, C, H, W), dense, equal strides. sign(0) = 0 and sign(NaN) = 0: such an
element stays where it is (inside ball and box). NaN in x or x' stays NaN. Exact: every device gives
the same bits. The kernel takes fp32 x and x' with g in fp32, bf16 or fp16; others the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import triton_op

from fastuiat_kernels import checks
from fastuiat_kernels.launch import blocks, takes_kernel, tl, triton, wrap_triton
from fastuiat_kernels.spec import (
    Inputs,
    KernelSpec,
    Pointer,
    SampleInputs,
    Size,
    Variant,
    generator,
    gradients,
    images,
)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# 128 threads with 8 elements each: one 16-byte access of g in half precision, two in fp32, which is
# enough in flight per thread; a batch of 128 CIFAR images makes 384 programs, over twice the 132
# multiprocessors of the largest target.
_BLOCK = 1024
_NUM_WARPS = 4


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


@triton.jit
def take_step(x_ref, x_cur, grad, alpha, eps, lo, hi):
    """The step of elements, all fp32 but the constants."""
    # Inductor hands Python floats over as fp64, which would promote all that follows.
    alpha, eps = tl.cast(alpha, tl.float32), tl.cast(eps, tl.float32)
    lo, hi = tl.cast(lo, tl.float32), tl.cast(hi, tl.float32)
    sign = (grad > 0).to(tl.float32) - (grad < 0).to(tl.float32)
    out = x_cur + alpha * sign  # alpha·sign is exact, so fusing it into the sum changes nothing
    keep_nan: tl.constexpr = tl.PropagateNan.ALL
    out = tl.maximum(out, x_ref - eps, propagate_nan=keep_nan)
    out = tl.minimum(out, x_ref + eps, propagate_nan=keep_nan)
    out = tl.maximum(out, lo, propagate_nan=keep_nan)
    return tl.minimum(out, hi, propagate_nan=keep_nan)


@triton.jit
def add_counts(counts_ptr, grad):
    """How many of these are zero, and how many not finite."""
    zeros = tl.sum((grad == 0).to(tl.int32)).to(tl.int64)
    non_finite = tl.sum(((grad - grad) != 0).to(tl.int32)).to(tl.int64)
    # Integer sums do not depend on the order of the atomics; most programs have none to make.
    tl.atomic_add(counts_ptr, zeros, mask=zeros > 0)
    tl.atomic_add(counts_ptr + 1, non_finite, mask=non_finite > 0)


@triton.jit
def _sign_step_kernel(
    x_ref_ptr,
    x_cur_ptr,
    grad_ptr,
    counts_ptr,
    out_ptr,
    n,
    alpha,
    eps,
    lo,
    hi,
    COUNT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = tl.arange(0, BLOCK)
    inside = offsets < n - start
    grad = tl.load(grad_ptr + start + offsets, mask=inside, other=1.0).to(tl.float32)
    x_ref = tl.load(x_ref_ptr + start + offsets, mask=inside)
    x_cur = tl.load(x_cur_ptr + start + offsets, mask=inside)
    out = take_step(x_ref, x_cur, grad, alpha, eps, lo, hi)
    tl.store(out_ptr + start + offsets, out, mask=inside)
    if COUNT:
        add_counts(counts_ptr, grad)


def _launch(
    x_ref: Tensor,
    x_cur: Tensor,
    grad: Tensor,
    alpha: float,
    eps: float,
    lo: float,
    hi: float,
    counts: Tensor | None = None,
) -> Tensor:
    checks.same_layout_at_launch(x_cur=x_cur, x_ref=x_ref, grad=grad)
    out = torch.empty_like(x_cur)
    n = x_cur.numel()
    wrap_triton(_sign_step_kernel)[(blocks(n, _BLOCK),)](
        x_ref,
        x_cur,
        grad,
        counts,
        out,
        n,
        alpha,
        eps,
        lo,
        hi,
        COUNT=counts is not None,
        BLOCK=_BLOCK,
        num_warps=_NUM_WARPS,
    )
    return out


@triton_op("fastuiat::sign_step", mutates_args={"counts"})
def _sign_step(
    x_ref: Tensor,
    x_cur: Tensor,
    grad: Tensor,
    alpha: float,
    eps: float,
    lo: float,
    hi: float,
    counts: Tensor | None,  # no default: PyTorch 2.11 leaves one out, and then looks for it
) -> Tensor:
    step = _launch if x_cur.is_cuda else sign_step_reference
    return step(x_ref, x_cur, grad, alpha, eps, lo, hi, counts)


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

    x_ref, x_cur, grad (B, C, H, W), alpha and eps in the units of x; `grad` may be fp32, bf16 or
    fp16. eps = inf leaves out the projection. `counts`, int64 (2,), has the number of gradient
    elements that are zero, and of those that are not finite, added to it on the device. ValueError
    on other dtypes, shapes, devices or strides. Not differentiable. Source: Madry et al. 2018.
    """
    checks.floating(x_ref=x_ref, x_cur=x_cur, grad=grad)
    checks.same_layout(x_cur=x_cur, x_ref=x_ref, grad=grad)
    check_counts(x_cur, counts)
    signed = alpha if ascend else -alpha
    fp32 = x_ref.dtype == x_cur.dtype == torch.float32
    if takes_kernel(x_cur) and fp32 and grad.dtype in _DTYPES:
        return _sign_step(x_ref, x_cur, grad, signed, eps, lo, hi, counts)
    return sign_step_reference(x_ref, x_cur, grad, signed, eps, lo, hi, counts)


def check_counts(x_cur: Tensor, counts: Tensor | None) -> None:
    if counts is not None:
        checks.same_device(x_cur=x_cur, counts=counts)
        if counts.dtype != torch.int64 or counts.shape != (2,):
            raise ValueError(
                f"counts must be int64 of shape (2,), got {counts.dtype} {tuple(counts.shape)}"
            )


def _inputs(size: Size, dtype: torch.dtype, device: torch.device) -> Inputs:
    random = generator(size)
    x_ref = images(size, size.batch, random, device)
    x_cur = (x_ref + 0.06 * (images(size, size.batch, random, device) - 0.5)).clamp(0, 1)
    grad = gradients(size, dtype, random, device)
    return {
        "x_ref": x_ref,
        "x_cur": x_cur,
        "grad": grad,
        "alpha": 2 / 255,
        "eps": 8 / 255,
        "lo": 0.0,
        "hi": 1.0,
    }


def _counted_inputs(size: Size, dtype: torch.dtype, device: torch.device) -> Inputs:
    inputs = _inputs(size, dtype, device)
    inputs["grad"][:, 0, 0, 0] = 0
    inputs["grad"][:, -1, -1, -1] = float("nan")
    return {**inputs, "counts": torch.zeros(2, dtype=torch.int64, device=device)}


def _pointers(inputs: Inputs) -> dict[str, Pointer]:
    n = inputs["x_cur"].numel()
    pointers = {
        "x_ref_ptr": Pointer(4 * n, 16),
        "x_cur_ptr": Pointer(4 * n, 16),
        "grad_ptr": Pointer(inputs["grad"].element_size() * n, 16),
        "out_ptr": Pointer(4 * n, 16),
    }
    if "counts" in inputs:
        pointers["counts_ptr"] = Pointer(32, 8, cached=True)
    return pointers


def _variant(
    name: str, inputs: SampleInputs, replaces: int, mutates: tuple[str, ...] = ()
) -> Variant:
    return Variant(
        name=name,
        op=sign_step,
        reference=sign_step_reference,
        launcher=_launch,
        inputs=inputs,
        dtypes=_DTYPES,
        pointers=_pointers,
        elements=lambda inputs: inputs["x_cur"].numel(),
        launches=1,
        replaces=replaces,
        mutates=mutates,
    )


SPEC = KernelSpec(
    "sign_step",
    "clip(clip(x' ± alpha·sign(g), x − eps, x + eps), lo, hi)",
    (
        _variant("sign_step", _inputs, 7),
        _variant("sign_step, counted", _counted_inputs, 17, ("counts",)),
    ),
)
