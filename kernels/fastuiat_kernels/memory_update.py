"""memory_update: the momentum of the target probabilities (paper eq. 8).

    p ← gamma·P[i] + (1 − gamma)·p  where sample i has been seen, else p;   P[i] ← p;   seen[i] ← 1

Shapes: memory (N, K) fp32 or fp16, seen bool (N,), index int64 (B,) without repeats, probs (B, K).
Exact. NaN in p or in a seen P[i] stays NaN. The kernel takes fp32 probs; others the reference.
"""

from __future__ import annotations

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
    Variant,
    generator,
    row_width,
)

_DTYPES = (torch.float32, torch.float16)


def _num_warps(block: int) -> int:
    # A row is one program: up to 8 elements per thread, two 16-byte accesses in fp32.
    return max(1, min(8, block // 256))


def memory_update_reference(
    memory: Tensor, seen: Tensor, index: Tensor, probs: Tensor, gamma: float
) -> Tensor:
    old = memory[index].to(probs.dtype)
    mixed = torch.where(seen[index][:, None], gamma * old + (1 - gamma) * probs, probs)
    memory.index_copy_(0, index, mixed.to(memory.dtype))
    seen.index_fill_(0, index, True)
    return mixed


@triton.jit
def _memory_update_kernel(
    memory_ptr,
    seen_ptr,
    index_ptr,
    probs_ptr,
    out_ptr,
    gamma,
    rest,
    samples,
    CLASSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, BLOCK)
    inside = k < CLASSES
    sample = tl.load(index_ptr + row)
    known = (sample >= 0) & (sample < samples)
    seen = tl.load(seen_ptr + sample, mask=known, other=0) != 0
    p = tl.load(probs_ptr + row * CLASSES + k, mask=inside)
    old = tl.load(memory_ptr + sample * CLASSES + k, mask=inside & seen, other=0.0)
    # Fused with 0, each product is rounded before the sum, as in the reference.
    kept = tl.fma(old.to(tl.float32), tl.cast(gamma, tl.float32), 0.0)
    mixed = kept + tl.fma(p, tl.cast(rest, tl.float32), 0.0)
    mixed = tl.where(seen, mixed, p)
    mixed = tl.where(known, mixed, float("nan"))
    tl.store(out_ptr + row * CLASSES + k, mixed, mask=inside)
    stored = mixed.to(memory_ptr.dtype.element_ty)
    tl.store(memory_ptr + sample * CLASSES + k, stored, mask=inside & known)
    tl.store(seen_ptr + sample, known, mask=known)


def _launch(memory: Tensor, seen: Tensor, index: Tensor, probs: Tensor, gamma: float) -> Tensor:
    checks.contiguous_at_launch(memory=memory, seen=seen, probs=probs)
    out = torch.empty_like(probs)
    block = next_power_of_2(probs.shape[1])
    wrap_triton(_memory_update_kernel)[(probs.shape[0],)](
        memory,
        seen,
        index,
        probs,
        out,
        gamma,
        1 - gamma,
        memory.shape[0],
        CLASSES=probs.shape[1],
        BLOCK=block,
        num_warps=_num_warps(block),
    )
    return out


@triton_op("fastuiat::memory_update", mutates_args={"memory", "seen"})
def _memory_update(
    memory: Tensor, seen: Tensor, index: Tensor, probs: Tensor, gamma: float
) -> Tensor:
    run = _launch if memory.is_cuda else memory_update_reference
    return run(memory, seen, index, probs, gamma)


def memory_update(
    memory: Tensor, seen: Tensor, index: Tensor, probs: Tensor, *, gamma: float
) -> Tensor:
    """The mixed probabilities (B, K) in the dtype of `probs`; memory and seen change in place.

    gamma = 0 stores `probs` as they are (0·P is added where P was seen). ValueError on other
    dtypes, shapes, devices, on rows that are not contiguous, and on the CPU on an index that is out
    of range or occurs twice. On a GPU an index out of range yields a row of NaN and stores nothing;
    of a repeated one, one row is stored, and which is not determined. Source: the paper's eq. 8.
    """
    checks.floating(memory=memory, probs=probs)
    checks.same_device(memory=memory, seen=seen, index=index, probs=probs)
    if probs.ndim != 2 or memory.ndim != 2 or memory.shape[1] != probs.shape[1]:
        raise ValueError(
            f"probs must be (B, K) and memory (N, K), got {tuple(probs.shape)} and "
            f"{tuple(memory.shape)}"
        )
    checks.indices("index", index, memory.shape[0], probs.shape[0])
    checks.flags("seen", seen, memory.shape[0])
    checks.contiguous(memory=memory, seen=seen, probs=probs)
    on_host = index.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_host and torch.unique(index).numel() != index.numel():
        raise ValueError("index holds a sample twice")
    fp32 = probs.dtype == torch.float32
    run = (
        _memory_update
        if takes_kernel(probs) and fp32 and memory.dtype in _DTYPES
        else memory_update_reference
    )
    return run(memory, seen, index, probs, gamma)


def _inputs(size: Size, dtype: torch.dtype, device: torch.device) -> Inputs:
    random = generator(size)
    shape = (size.samples, size.classes)
    probs = torch.softmax(torch.randn(size.batch, size.classes, generator=random), dim=1)
    return {
        "memory": torch.rand(shape, generator=random).to(device, dtype),
        "seen": (torch.rand(size.samples, generator=random) < 0.75).to(device),
        "index": torch.randperm(size.samples, generator=random)[: size.batch].to(device),
        "probs": probs.to(device),
        "gamma": 0.9,
    }


def _pointers(inputs: Inputs) -> dict[str, Pointer]:
    memory, probs, index = inputs["memory"], inputs["probs"], inputs["index"]
    batch, classes = probs.shape
    touched = batch + int(inputs["seen"][index].sum())  # rows written, and rows read where seen
    return {
        "memory_ptr": Pointer(
            touched * classes * memory.element_size(), row_width(classes, memory)
        ),
        "seen_ptr": Pointer(2 * batch, 1),
        "index_ptr": Pointer(8 * batch, 8),
        "probs_ptr": Pointer(4 * probs.numel(), row_width(classes, probs)),
        "out_ptr": Pointer(4 * probs.numel(), row_width(classes, probs)),
    }


SPEC = KernelSpec(
    "memory_update",
    "p ← gamma·P[i] + (1 − gamma)·p where seen; P[i] ← p; seen[i] ← 1",
    (
        Variant(
            name="memory_update",
            op=memory_update,
            reference=memory_update_reference,
            launcher=_launch,
            inputs=_inputs,
            dtypes=_DTYPES,
            pointers=_pointers,
            elements=lambda inputs: inputs["probs"].numel(),
            launches=1,
            replaces=8,
            mutates=("memory", "seen"),
            audit_sizes=("cifar10", "classes1000"),
            traffic_sizes=("small", "small1000"),
        ),
    ),
)
