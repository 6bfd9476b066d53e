"""distill_loss: cross-entropy plus the pull towards a target distribution (paper eq. 7).

    mean over the batch of  −log q_y + lam·Σ_k p_k (log p_k − log q_k),   q = softmax(logits)

Shapes: logits (B, K), target_probs (B, K), y int64 (B,), contiguous rows. At least fp32 inside;
0·log 0 = 0, so target probabilities of exactly 0 are exact. Any NaN, or a +inf logit, makes the
loss NaN. The kernel takes logits in fp32, bf16 or fp16 with fp32 target_probs; others the
reference.

One launch reads a row once and writes its loss and its gradients

    ∂/∂logits_k = q_k − [k = y] + lam·(q_k·Σ_j p_j − p_k)
    ∂/∂p_k      = lam·(log p_k + 1 − log q_k),  at p_k = 0: −lam·log q_k

which the backward pass only scales; the second only where target_probs requires a gradient. Its
value at 0 is a choice: p·log p has an infinite slope there, which a softmax before it multiplies by
0. The gradients are kept in fp32: in fp16 the small q of a confident row would vanish.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.library import triton_op

from fastuiat_kernels import checks
from fastuiat_kernels.launch import next_power_of_2, takes_kernel, tl, triton, wrap_triton
from fastuiat_kernels.spec import (
    Inputs,
    KernelSpec,
    Pointer,
    Size,
    Tolerance,
    Variant,
    generator,
    labels,
    row_width,
)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _num_warps(block: int) -> int:
    # A row is one program, for its sums must meet. Up to 8 elements per thread (two 16-byte
    # accesses in fp32), a single warp for few classes: then the sums need no shared memory.
    return max(1, min(8, block // 256))


def distill_loss_reference(logits: Tensor, target_probs: Tensor, y: Tensor, lam: float) -> Tensor:
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_q = torch.log_softmax(logits.to(dtype), dim=1)
    p = target_probs.to(dtype)
    cross_entropy = -log_q.gather(1, y[:, None])[:, 0]
    divergence = (p * torch.log(torch.where(p == 0, 1.0, p)) - p * log_q).sum(dim=1)
    return (cross_entropy + lam * divergence).mean()


@triton.jit
def _distill_rows_kernel(
    logits_ptr,
    probs_ptr,
    y_ptr,
    losses_ptr,
    grad_ptr,
    target_grad_ptr,
    lam,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
    WITH_TARGET: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    inside = k < CLASSES
    y = tl.load(y_ptr + row)
    logits = tl.load(logits_ptr + row * CLASSES + k, mask=inside, other=float("-inf"))
    p = tl.load(probs_ptr + row * CLASSES + k, mask=inside, other=0.0)
    logits = logits.to(tl.float32)
    lam = tl.cast(lam, tl.float32)  # Inductor hands Python floats over as fp64
    shifted = logits - tl.max(logits, axis=0)
    exps = tl.exp(shifted)
    total = tl.sum(exps, axis=0)
    log_q = tl.where(inside, shifted - tl.log(total), 0.0)
    own = tl.sum(tl.where(k == y, log_q, 0.0), axis=0)
    # A label out of range would leave −log q_y at 0 and the loss plausible.
    own = tl.where((y >= 0) & (y < CLASSES), own, float("nan"))
    log_p = tl.log(tl.where(p == 0, 1.0, p))
    divergence = tl.sum(p * log_p - p * log_q, axis=0)
    tl.store(losses_ptr + row, lam * divergence - own)
    q = exps / total
    grad = q - (k == y).to(tl.float32) + lam * (q * tl.sum(p, axis=0) - p)
    tl.store(grad_ptr + row * CLASSES + k, grad, mask=inside)
    if WITH_TARGET:
        target_grad = lam * (log_p + tl.where(p == 0, 0.0, 1.0) - log_q)
        tl.store(target_grad_ptr + row * CLASSES + k, target_grad, mask=inside)


def _launch(
    logits: Tensor, target_probs: Tensor, y: Tensor, lam: float, with_target: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    checks.contiguous_at_launch(logits=logits, target_probs=target_probs)
    batch, classes = logits.shape
    losses = torch.empty(batch, dtype=torch.float32, device=logits.device)
    grad = torch.empty((batch, classes), dtype=torch.float32, device=logits.device)
    target_grad = torch.empty_like(grad) if with_target else grad.new_empty(0)
    block = next_power_of_2(classes)
    wrap_triton(_distill_rows_kernel)[(batch,)](
        logits,
        target_probs,
        y,
        losses,
        grad,
        target_grad,
        lam,
        CLASSES=classes,
        BLOCK=block,
        WITH_TARGET=with_target,
        num_warps=_num_warps(block),
    )
    return losses, grad, target_grad


def distill_rows_reference(
    logits: Tensor, target_probs: Tensor, y: Tensor, lam: float, with_target: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Each row's loss (B,) and its gradients (B, K), the target's empty where it is not asked for:
    what the kernel writes."""
    log_q = torch.log_softmax(logits.float(), dim=1)
    q, p = log_q.exp(), target_probs.float()
    own = torch.nn.functional.one_hot(y, logits.shape[1])
    cross_entropy = -log_q.gather(1, y[:, None])[:, 0]
    log_p = torch.log(torch.where(p == 0, 1.0, p))
    divergence = (p * log_p - p * log_q).sum(dim=1)
    grad = q - own + lam * (q * p.sum(dim=1, keepdim=True) - p)
    target_grad = lam * (log_p + (p != 0) - log_q) if with_target else grad.new_empty(0)
    return cross_entropy + lam * divergence, grad, target_grad


@triton_op("fastuiat::distill_rows", mutates_args={})
def _distill_rows(
    logits: Tensor, target_probs: Tensor, y: Tensor, lam: float, with_target: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    run = _launch if logits.is_cuda else distill_rows_reference
    return run(logits, target_probs, y, lam, with_target)


def _setup_context(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
) -> None:
    ctx.set_materialize_grads(False)  # nobody differentiates the gradients
    ctx.dtype, ctx.with_target = inputs[0].dtype, inputs[4]
    ctx.save_for_backward(*output[1:])


def _backward(
    ctx: Any, grad_losses: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, Tensor | None, None, None, None]:
    if grad_losses is None:
        return None, None, None, None, None
    grad, target_grad = ctx.saved_tensors
    factor = grad_losses[:, None]
    to_target = target_grad * factor if ctx.with_target else None
    return (grad * factor).to(ctx.dtype), to_target, None, None, None


_distill_rows.register_autograd(_backward, setup_context=_setup_context)


def distill_loss(logits: Tensor, target_probs: Tensor, y: Tensor, *, lam: float) -> Tensor:
    """A scalar, differentiable once in `logits`, and in `target_probs` where that is asked.

    logits and target_probs (B, K), y int64 (B,). ValueError on other dtypes, shapes or devices, on
    rows that are not contiguous, and on the CPU on a label outside 0 … K−1; on a GPU such a label
    makes the loss NaN. Source: the paper's eq. 7.
    """
    checks.floating(logits=logits, target_probs=target_probs)
    checks.same_device(logits=logits, target_probs=target_probs, y=y)
    if logits.ndim != 2 or logits.shape != target_probs.shape:
        raise ValueError(
            f"target_probs has shape {tuple(target_probs.shape)}, logits {tuple(logits.shape)}: "
            "both must be (B, K)"
        )
    checks.contiguous(logits=logits, target_probs=target_probs)
    checks.indices("y", y, logits.shape[1], logits.shape[0])
    fp32 = target_probs.dtype == torch.float32
    if takes_kernel(logits) and fp32 and logits.dtype in _DTYPES:
        with_target = target_probs.requires_grad and torch.is_grad_enabled()
        return _distill_rows(logits, target_probs, y, lam, with_target)[0].mean()
    return distill_loss_reference(logits, target_probs, y, lam)


def _launched_loss(
    logits: Tensor, target_probs: Tensor, y: Tensor, lam: float, *, with_target: bool
) -> Tensor:
    return _launch(logits, target_probs, y, lam, with_target)[0].mean()


def _inputs(size: Size, dtype: torch.dtype, device: torch.device) -> Inputs:
    random = generator(size)
    logits = 3 * torch.randn(size.batch, size.classes, generator=random)
    scores = 3 * torch.randn(size.batch, size.classes, generator=random)
    return {
        "logits": logits.to(device, dtype),
        "target_probs": torch.softmax(scores, dim=1).to(device),
        "y": labels(size, random, device),
        "lam": 3.5,
    }


def _pointers(inputs: Inputs, *, with_target: bool) -> dict[str, Pointer]:
    logits, probs = inputs["logits"], inputs["target_probs"]
    batch, classes = logits.shape
    width = row_width(classes, probs)
    return {
        "logits_ptr": Pointer(logits.numel() * logits.element_size(), row_width(classes, logits)),
        "probs_ptr": Pointer(4 * logits.numel(), width),
        "y_ptr": Pointer(8 * batch, 8),
        "losses_ptr": Pointer(4 * batch, 4),
        "grad_ptr": Pointer(4 * logits.numel(), width),
        "target_grad_ptr": Pointer(4 * logits.numel() if with_target else 0, width),
    }


def _variant(name: str, *, with_target: bool, replaces: int) -> Variant:
    return Variant(
        name=name,
        op=distill_loss,
        reference=distill_loss_reference,
        launcher=partial(_launched_loss, with_target=with_target),
        inputs=_inputs,
        gradients=("logits", "target_probs") if with_target else ("logits",),
        dtypes=_DTYPES,
        pointers=partial(_pointers, with_target=with_target),
        elements=lambda inputs: inputs["logits"].numel(),
        launches=1,
        replaces=replaces,
        # Another order of the sums, and the GPU's own exp and log (2 ulp, and 2⁻²² near log 1).
        tolerance=Tolerance(rtol=1e-5, atol=1e-6),
        audit_sizes=("cifar10", "classes1000"),
        traffic_sizes=("small", "small1000"),
    )


SPEC = KernelSpec(
    "distill_loss",
    "mean of −log q_y + lam·Σ_k p_k (log p_k − log q_k), q = softmax(logits)",
    (
        _variant("distill_loss", with_target=False, replaces=26),
        _variant("distill_loss, both sides", with_target=True, replaces=34),
    ),
)
