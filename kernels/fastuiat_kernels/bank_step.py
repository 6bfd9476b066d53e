"""bank_step: move the universal perturbation bank by the class sums (Algorithm 1, lines 10–12).

    s_c = Σ_{i: y_i = c} grad_i      z_c ← clip(z_c − alpha·sign(s_c), −eps, eps)   for present c

Shapes: z (K, C, H, W), grad (B, C, H, W) laid out like z, y int64 (B,). The sum is at least fp32
and runs in batch order, so it has the same bits at every call, on every device, for any block size:
near 0 another order would flip a whole step. A class that is absent from the batch keeps its z bit
for bit. sign(0) = sign(NaN) = 0. Exact.

On a GPU a first small kernel lists each class's rows in batch order; a second walks each list, so
that a gradient element is read once whatever K is. It takes fp32 z and sums with grad in fp32, bf16
or fp16; other dtypes the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import triton_op

from fastuiat_kernels import checks
from fastuiat_kernels.class_rows import class_sum, group_rows, grouping_pointers
from fastuiat_kernels.launch import blocks, takes_kernel, tl, triton, wrap_triton
from fastuiat_kernels.spec import (
    Inputs,
    KernelSpec,
    Pointer,
    Size,
    Variant,
    generator,
    gradients,
    images,
    labels,
)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# 128 threads with 8 elements each: one 16-byte access of a half-precision gradient, two in fp32.
_BLOCK = 1024
_NUM_WARPS = 4


def bank_accumulate_reference(grad: Tensor, y: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(grad.dtype, torch.float32)
    sums = _sums_like(grad, num_classes, dtype).zero_()
    # The two orders that PyTorch keeps fixed: index_add walks the batch on the CPU, and index_put
    # sorts by index on CUDA, where index_add would use unordered atomics.
    if grad.is_cuda:
        sums.index_put_((y,), grad.to(dtype), accumulate=True)
    else:
        sums.index_add_(0, y, grad.to(dtype))
    classes = torch.arange(num_classes, device=y.device)
    return sums, (y[None, :] == classes[:, None]).any(dim=1)


def bank_update_reference(
    z: Tensor, sums: Tensor, present: Tensor, alpha: float, eps: float
) -> Tensor:
    moved = (z - alpha * sums.sign().to(z.dtype)).clamp(-eps, eps)
    return z.copy_(torch.where(present[:, None, None, None], moved, z))


def bank_step_reference(z: Tensor, grad: Tensor, y: Tensor, alpha: float, eps: float) -> Tensor:
    sums, present = bank_accumulate_reference(grad, y, z.shape[0])
    return bank_update_reference(z, sums, present, alpha, eps)


def _sums_like(grad: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """(K, C, H, W) laid out like grad."""
    last = checks.channels_last("grad", grad)
    return torch.empty(
        (num_classes, *grad.shape[1:]),
        dtype=dtype,
        device=grad.device,
        memory_format=torch.channels_last if last else torch.contiguous_format,
    )


@triton.jit
def _moved(z, total, alpha, eps):
    """clip(z − alpha·sign(total), −eps, eps)."""
    # Inductor hands Python floats over as fp64, which would promote all that follows.
    alpha, eps = tl.cast(alpha, tl.float32), tl.cast(eps, tl.float32)
    sign = (total > 0).to(tl.float32) - (total < 0).to(tl.float32)
    z = tl.maximum(z - alpha * sign, -eps, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(z, eps, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _bank_step_kernel(
    z_ptr,
    grad_ptr,
    order_ptr,
    starts_ptr,
    alpha,
    eps,
    ELEMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    label = tl.program_id(0).to(tl.int64)
    first, last = tl.load(starts_ptr + label), tl.load(starts_ptr + label + 1)
    if first < last:
        offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = offsets < ELEMENTS
        total = class_sum(grad_ptr, order_ptr, first, last, offsets, inside, ELEMENTS, BLOCK)
        z = tl.load(z_ptr + label * ELEMENTS + offsets, mask=inside)
        z = _moved(z, total, alpha, eps)
        tl.store(z_ptr + label * ELEMENTS + offsets, z, mask=inside)


@triton.jit
def _bank_accumulate_kernel(
    grad_ptr,
    order_ptr,
    starts_ptr,
    sums_ptr,
    present_ptr,
    ELEMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    label = tl.program_id(0).to(tl.int64)
    first, last = tl.load(starts_ptr + label), tl.load(starts_ptr + label + 1)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < ELEMENTS
    total = class_sum(grad_ptr, order_ptr, first, last, offsets, inside, ELEMENTS, BLOCK)
    tl.store(sums_ptr + label * ELEMENTS + offsets, total, mask=inside)
    if tl.program_id(1) == 0:
        tl.store(present_ptr + label, first < last)


@triton.jit
def _bank_update_kernel(
    z_ptr,
    sums_ptr,
    present_ptr,
    alpha,
    eps,
    ELEMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    label = tl.program_id(0).to(tl.int64)
    if tl.load(present_ptr + label) != 0:
        offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = offsets < ELEMENTS
        total = tl.load(sums_ptr + label * ELEMENTS + offsets, mask=inside)
        z = tl.load(z_ptr + label * ELEMENTS + offsets, mask=inside)
        z = _moved(z, total, alpha, eps)
        tl.store(z_ptr + label * ELEMENTS + offsets, z, mask=inside)


def _launch_accumulate(grad: Tensor, y: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    order, starts = group_rows(y, num_classes)
    sums = _sums_like(grad, num_classes, torch.float32)
    present = torch.empty(num_classes, dtype=torch.bool, device=y.device)
    elements = grad[0].numel()
    wrap_triton(_bank_accumulate_kernel)[(num_classes, blocks(elements, _BLOCK))](
        grad,
        order,
        starts,
        sums,
        present,
        ELEMENTS=elements,
        BLOCK=_BLOCK,
        num_warps=_NUM_WARPS,
    )
    return sums, present


def _launch_update(z: Tensor, sums: Tensor, present: Tensor, alpha: float, eps: float) -> Tensor:
    checks.same_sample_layout_at_launch(z=z, sums=sums)
    elements = z[0].numel()
    wrap_triton(_bank_update_kernel)[(z.shape[0], blocks(elements, _BLOCK))](
        z, sums, present, alpha, eps, ELEMENTS=elements, BLOCK=_BLOCK, num_warps=_NUM_WARPS
    )
    return z


def _launch_step(z: Tensor, grad: Tensor, y: Tensor, alpha: float, eps: float) -> Tensor:
    checks.same_sample_layout_at_launch(z=z, grad=grad)
    order, starts = group_rows(y, z.shape[0])
    elements = z[0].numel()
    wrap_triton(_bank_step_kernel)[(z.shape[0], blocks(elements, _BLOCK))](
        z,
        grad,
        order,
        starts,
        alpha,
        eps,
        ELEMENTS=elements,
        BLOCK=_BLOCK,
        num_warps=_NUM_WARPS,
    )
    return z


@triton_op("fastuiat::bank_accumulate", mutates_args={})
def _bank_accumulate(grad: Tensor, y: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    run = _launch_accumulate if grad.is_cuda else bank_accumulate_reference
    return run(grad, y, num_classes)


@triton_op("fastuiat::bank_update", mutates_args={"z"})
def _bank_update(z: Tensor, sums: Tensor, present: Tensor, alpha: float, eps: float) -> None:
    run = _launch_update if z.is_cuda else bank_update_reference
    run(z, sums, present, alpha, eps)


@triton_op("fastuiat::bank_step", mutates_args={"z"})
def _bank_step(z: Tensor, grad: Tensor, y: Tensor, alpha: float, eps: float) -> None:
    run = _launch_step if z.is_cuda else bank_step_reference
    run(z, grad, y, alpha, eps)


def bank_accumulate(grad: Tensor, y: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Class sums (K, C, H, W), laid out like grad, and which classes are present, bool (K,).

    grad (B, C, H, W) channels-last or contiguous, y int64 (B,). The sums are fp32 (fp64 for fp64),
    in batch order. ValueError on other dtypes, shapes, devices or strides, and on the CPU on a
    label outside 0 … K−1; on a GPU the row of such a label belongs to no class.
    """
    checks.floating(grad=grad)
    checks.same_device(grad=grad, y=y)
    checks.channels_last("grad", grad)
    checks.indices("y", y, num_classes, grad.shape[0])
    use_kernel = takes_kernel(grad) and num_classes > 0 and grad.dtype in _DTYPES
    run = _bank_accumulate if use_kernel else bank_accumulate_reference
    return run(grad, y, num_classes)


def bank_update(z: Tensor, sums: Tensor, present: Tensor, *, alpha: float, eps: float) -> Tensor:
    """Step and project the present classes of z in place; returns z.

    z and sums (K, C, H, W), laid out alike; present bool (K,); alpha and eps in the units of z.
    Between `bank_accumulate` and this the sums and flags of several ranks may be added up.
    ValueError on other dtypes, shapes, devices or strides.
    """
    checks.floating(z=z, sums=sums)
    checks.same_device(z=z, sums=sums, present=present)
    if z.shape != sums.shape:
        raise ValueError(f"sums has shape {tuple(sums.shape)}, z has {tuple(z.shape)}")
    checks.same_sample_layout(z=z, sums=sums)
    checks.flags("present", present, z.shape[0])
    if takes_kernel(z) and z.dtype == sums.dtype == torch.float32:
        _bank_update(z, sums, present, alpha, eps)
        return z
    return bank_update_reference(z, sums, present, alpha, eps)


def bank_step(z: Tensor, grad: Tensor, y: Tensor, *, alpha: float, eps: float) -> Tensor:
    """`bank_accumulate` then `bank_update`: one descent step of the bank, in place; returns z.

    z (K, C, H, W) and grad (B, C, H, W) laid out alike, y int64 (B,); alpha and eps in the units of
    z. Errors, and labels out of range, as in those two. Source: the paper's Algorithm 1.
    """
    checks.floating(z=z, grad=grad)
    checks.same_device(z=z, grad=grad, y=y)
    checks.same_sample_layout(z=z, grad=grad)
    checks.indices("y", y, z.shape[0], grad.shape[0])
    if takes_kernel(z, grad) and z.dtype == torch.float32 and grad.dtype in _DTYPES:
        _bank_step(z, grad, y, alpha, eps)
        return z
    return bank_step_reference(z, grad, y, alpha, eps)


def _accumulate_inputs(size: Size, dtype: torch.dtype, device: torch.device) -> Inputs:
    random = generator(size)
    return {
        "grad": gradients(size, dtype, random, device),
        "y": labels(size, random, device),
        "num_classes": size.classes,
    }


def _step_inputs(size: Size, dtype: torch.dtype, device: torch.device) -> Inputs:
    random = generator(size)
    return {
        "z": 0.03 * (images(size, size.classes, random, device) - 0.5),
        "grad": gradients(size, dtype, random, device),
        "y": labels(size, random, device),
        "alpha": 4 / 255,
        "eps": 4 / 255,
    }


def _update_inputs(size: Size, dtype: torch.dtype, device: torch.device) -> Inputs:
    inputs = _step_inputs(size, torch.float32, device)
    sums, present = bank_accumulate_reference(inputs.pop("grad"), inputs.pop("y"), size.classes)
    return {**inputs, "sums": sums, "present": present}


def _accumulate_pointers(inputs: Inputs) -> dict[str, Pointer]:
    grad, classes = inputs["grad"], inputs["num_classes"]
    return {
        "grad_ptr": Pointer(grad.numel() * grad.element_size(), 16),
        "sums_ptr": Pointer(4 * classes * grad[0].numel(), 16),
        "present_ptr": Pointer(classes, 1),
        **grouping_pointers(inputs["y"], classes),
    }


def _step_pointers(inputs: Inputs) -> dict[str, Pointer]:
    z, grad, y = inputs["z"], inputs["grad"], inputs["y"]
    return {
        "grad_ptr": Pointer(grad.numel() * grad.element_size(), 16),
        "z_ptr": Pointer(8 * y.unique().numel() * z[0].numel(), 16),
        **grouping_pointers(y, z.shape[0]),
    }


def _update_pointers(inputs: Inputs) -> dict[str, Pointer]:
    z, present = inputs["z"], int(inputs["present"].sum())
    return {
        "z_ptr": Pointer(8 * present * z[0].numel(), 16),
        "sums_ptr": Pointer(4 * present * z[0].numel(), 16),
        "present_ptr": Pointer(z.shape[0], 1, cached=True),
    }


SPEC = KernelSpec(
    "bank_step",
    "s_c = Σ grad_i over y_i = c; z_c ← clip(z_c − alpha·sign(s_c), −eps, eps) for present c",
    (
        Variant(
            name="bank_step",
            op=bank_step,
            reference=bank_step_reference,
            launcher=_launch_step,
            inputs=_step_inputs,
            dtypes=_DTYPES,
            pointers=_step_pointers,
            elements=lambda inputs: inputs["grad"].numel(),
            launches=2,
            replaces=12,
            mutates=("z",),
            traffic_sizes=("small", "small100"),
        ),
        Variant(
            name="bank_accumulate",
            op=bank_accumulate,
            reference=bank_accumulate_reference,
            launcher=_launch_accumulate,
            inputs=_accumulate_inputs,
            dtypes=_DTYPES,
            pointers=_accumulate_pointers,
            elements=lambda inputs: inputs["grad"].numel(),
            launches=2,
            replaces=6,
            traffic_sizes=("small", "small100"),
        ),
        Variant(
            name="bank_update",
            op=bank_update,
            reference=bank_update_reference,
            launcher=_launch_update,
            inputs=_update_inputs,
            dtypes=(torch.float32,),
            pointers=_update_pointers,
            elements=lambda inputs: inputs["z"].numel(),
            launches=1,
            replaces=6,
            mutates=("z",),
        ),
    ),
)
