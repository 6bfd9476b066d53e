"""bank_step: move the universal perturbation bank by the class sums (Algorithm 1, lines 10–12).

    s_c = Σ_{i: y_i = c} grad_i      z_c ← clip(z_c − alpha·sign(s_c), −eps, eps)   for present c

Shapes: z (K, C, H, W), grad (B, C, H, W), y int64 (B,). The sum is at least fp32 and runs in batch
order, so it is the same at every call: near 0 another order would flip a whole step. A class that
is absent from the batch keeps its z bit for bit. sign(0) = sign(NaN) = 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastuiat_kernels import checks


def bank_accumulate_reference(grad: Tensor, y: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(grad.dtype, torch.float32)
    sums = torch.empty_like(grad[:1].expand(num_classes, *grad.shape[1:]), dtype=dtype)
    if grad.ndim == 4:
        sums = sums.contiguous(memory_format=torch.channels_last)
    sums.zero_()
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


def bank_accumulate(grad: Tensor, y: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Class sums (K, C, H, W), and which classes are present, bool (K,)."""
    checks.floating(grad=grad)
    checks.same_device(grad=grad, y=y)
    checks.indices("y", y, num_classes, grad.shape[0])
    return bank_accumulate_reference(grad, y, num_classes)


def bank_update(z: Tensor, sums: Tensor, present: Tensor, *, alpha: float, eps: float) -> Tensor:
    """Step and project the present classes of z in place; returns z."""
    checks.floating(z=z, sums=sums)
    checks.same_device(z=z, sums=sums, present=present)
    if z.shape != sums.shape:
        raise ValueError(f"sums has shape {tuple(sums.shape)}, z has {tuple(z.shape)}")
    if present.dtype != torch.bool or present.shape != z.shape[:1]:
        raise ValueError(f"present must be bool ({z.shape[0]},), got {present.dtype}")
    return bank_update_reference(z, sums, present, alpha, eps)


def bank_step(z: Tensor, grad: Tensor, y: Tensor, *, alpha: float, eps: float) -> Tensor:
    """`bank_accumulate` then `bank_update`: one descent step of the bank, in place; returns z."""
    sums, present = bank_accumulate(grad, y, z.shape[0])
    return bank_update(z, sums, present, alpha=alpha, eps=eps)
