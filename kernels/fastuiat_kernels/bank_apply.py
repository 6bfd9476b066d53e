"""bank_apply: add each sample's class perturbation (Algorithm 1, line 7).

    x_inv = clip(x + z[y], lo, hi)

Shapes: x (B, C, H, W), z (K, C, H, W) laid out like x, y int64 (B,). Exact. NaN in x or z stays
NaN. The kernel takes fp32; other dtypes the reference.
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
    Size,
    Variant,
    generator,
    images,
    labels,
)

# 8 fp32 per thread: two 16-byte accesses per pointer in flight. A CIFAR image is 3 whole blocks.
_BLOCK = 1024
_NUM_WARPS = 4


def bank_apply_reference(x: Tensor, z: Tensor, y: Tensor, lo: float, hi: float) -> Tensor:
    return (x + z[y].to(x.dtype)).clamp(lo, hi)


@triton.jit
def _bank_apply_kernel(
    x_ptr,
    z_ptr,
    y_ptr,
    out_ptr,
    lo,
    hi,
    classes,
    ELEMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < ELEMENTS
    y = tl.load(y_ptr + sample)
    known = (y >= 0) & (y < classes)
    x = tl.load(x_ptr + sample * ELEMENTS + offsets, mask=inside)
    z = tl.load(z_ptr + y * ELEMENTS + offsets, mask=inside & known, other=float("nan"))
    out = tl.maximum(x + z, tl.cast(lo, tl.float32), propagate_nan=tl.PropagateNan.ALL)
    out = tl.minimum(out, tl.cast(hi, tl.float32), propagate_nan=tl.PropagateNan.ALL)
    tl.store(out_ptr + sample * ELEMENTS + offsets, out, mask=inside)


def _launch(x: Tensor, z: Tensor, y: Tensor, lo: float, hi: float) -> Tensor:
    checks.same_sample_layout_at_launch(x=x, z=z)
    out = torch.empty_like(x)
    elements = x[0].numel()
    wrap_triton(_bank_apply_kernel)[(x.shape[0], blocks(elements, _BLOCK))](
        x,
        z,
        y,
        out,
        lo,
        hi,
        z.shape[0],
        ELEMENTS=elements,
        BLOCK=_BLOCK,
        num_warps=_NUM_WARPS,
    )
    return out


@triton_op("fastuiat::bank_apply", mutates_args={})
def _bank_apply(x: Tensor, z: Tensor, y: Tensor, lo: float, hi: float) -> Tensor:
    run = _launch if x.is_cuda else bank_apply_reference
    return run(x, z, y, lo, hi)


def bank_apply(x: Tensor, z: Tensor, y: Tensor, *, lo: float = 0.0, hi: float = 1.0) -> Tensor:
    """The universal inverse examples of a batch, in x's dtype and layout.

    x (B, C, H, W) and z (K, C, H, W) in the same units, both channels-last or both contiguous;
    y int64 (B,). ValueError on other dtypes, shapes, devices or strides, and on the CPU on a label
    outside 0 … K−1; on a GPU the row of such a label is NaN. Not differentiable on a GPU.
    """
    checks.floating(x=x, z=z)
    checks.same_device(x=x, z=z, y=y)
    checks.same_sample_layout(x=x, z=z)
    checks.indices("y", y, z.shape[0], x.shape[0])
    fp32 = x.dtype == z.dtype == torch.float32
    run = _bank_apply if takes_kernel(x, z) and fp32 else bank_apply_reference
    return run(x, z, y, lo, hi)


def _inputs(size: Size, dtype: torch.dtype, device: torch.device) -> Inputs:
    random = generator(size)
    return {
        "x": images(size, size.batch, random, device),
        "z": 0.03 * (images(size, size.classes, random, device) - 0.5),
        "y": labels(size, random, device),
        "lo": 0.0,
        "hi": 1.0,
    }


def _pointers(inputs: Inputs) -> dict[str, Pointer]:
    x, y = inputs["x"], inputs["y"]
    present = y.unique().numel()
    return {
        "x_ptr": Pointer(4 * x.numel(), 16),
        "z_ptr": Pointer(4 * present * x[0].numel(), 16, cached=True),
        "y_ptr": Pointer(8 * y.numel(), 8, cached=True),
        "out_ptr": Pointer(4 * x.numel(), 16),
    }


SPEC = KernelSpec(
    "bank_apply",
    "clip(x + z[y], lo, hi)",
    (
        Variant(
            name="bank_apply",
            op=bank_apply,
            reference=bank_apply_reference,
            launcher=_launch,
            inputs=_inputs,
            dtypes=(torch.float32,),
            pointers=_pointers,
            elements=lambda inputs: inputs["x"].numel(),
            launches=1,
            replaces=3,
        ),
    ),
)
