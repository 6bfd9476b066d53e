"""The rows of each class in batch order: how a bank kernel reads each gradient only once.

A first launch sorts the rows of a batch by class, stably and without atomics, so that the order is
the same at every run; programs of the second walk the rows of one class each.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastuiat_kernels.launch import blocks, tl, triton, wrap_triton
from fastuiat_kernels.spec import Pointer

# A program ranks 16 rows against 128 labels at a time: 16 comparisons per thread, and 64 registers
# on sm_90, where 32 rows took 163.
_RANKED = 16
_CHUNK = 128
_NUM_WARPS = 4


@triton.jit
def _group_rows_kernel(
    y_ptr,
    order_ptr,
    starts_ptr,
    batch,
    classes,
    RANKED: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """order: the rows sorted by class, in batch order within one; starts[c]: where c's rows begin.

    A row's place is the number of rows before it in that order, counted outright. Labels out of
    range sort behind all classes, where no class finds them.
    """
    first = tl.program_id(0) * RANKED
    ranks_rows = first < batch
    if ranks_rows:
        own_row = first + tl.arange(0, RANKED)
        own = tl.load(y_ptr + own_row, mask=own_row < batch, other=-1)
        own = tl.where((own >= 0) & (own < classes), own, classes)
    else:  # the programs behind the last row rank the classes: as rows before all of their own
        own_row = tl.zeros([RANKED], tl.int32)
        own = ((first - (batch + RANKED - 1) // RANKED * RANKED) + tl.arange(0, RANKED)).to(
            tl.int64
        )
    place = tl.zeros([RANKED], tl.int32)
    for start in range(0, batch, CHUNK):
        row = start + tl.arange(0, CHUNK)
        label = tl.load(y_ptr + row, mask=row < batch, other=-1)
        label = tl.where((label >= 0) & (label < classes), label, classes)
        before = label[None, :] < own[:, None]
        before |= (label[None, :] == own[:, None]) & (row[None, :] < own_row[:, None])
        place += tl.sum((before & (row < batch)[None, :]).to(tl.int32), axis=1)
    if ranks_rows:
        tl.store(order_ptr + place, own_row, mask=own_row < batch)
    else:
        tl.store(starts_ptr + own, place, mask=own <= classes)


@triton.jit
def _row(grad_ptr, order_ptr, i, last, offsets, inside, ELEMENTS: tl.constexpr):
    """One block of the i-th gradient in class order; 0 behind the last."""
    there = i < last
    row = tl.load(order_ptr + i, mask=there, other=0).to(tl.int64)
    return tl.load(grad_ptr + row * ELEMENTS + offsets, mask=inside & there, other=0.0)


@triton.jit
def class_sum(
    grad_ptr,
    order_ptr,
    first,
    last,
    offsets,
    inside,
    ELEMENTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One block of Σ grad[order[first … last − 1]], added in that order.

    By fours, because one class may hold the whole batch: the numbers of four rows are asked for
    together (seen in the machine code), so that no gradient waits for its own.
    """
    total = tl.zeros([BLOCK], tl.float32)
    for i in range(first, last, 4):
        g0 = _row(grad_ptr, order_ptr, i, last, offsets, inside, ELEMENTS)
        g1 = _row(grad_ptr, order_ptr, i + 1, last, offsets, inside, ELEMENTS)
        g2 = _row(grad_ptr, order_ptr, i + 2, last, offsets, inside, ELEMENTS)
        g3 = _row(grad_ptr, order_ptr, i + 3, last, offsets, inside, ELEMENTS)
        total = total + g0.to(tl.float32)
        total = total + g1.to(tl.float32)
        total = total + g2.to(tl.float32)
        total = total + g3.to(tl.float32)
    return total


def group_rows(y: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Launch it: order int32 (B,) and starts int32 (K + 1,)."""
    batch = y.shape[0]
    order = torch.empty(batch, dtype=torch.int32, device=y.device)
    starts = torch.empty(num_classes + 1, dtype=torch.int32, device=y.device)
    programs = blocks(batch, _RANKED) + blocks(num_classes + 1, _RANKED)
    wrap_triton(_group_rows_kernel)[(programs,)](
        y, order, starts, batch, num_classes, RANKED=_RANKED, CHUNK=_CHUNK, num_warps=_NUM_WARPS
    )
    return order, starts


def grouping_pointers(y: Tensor, num_classes: int) -> dict[str, Pointer]:
    """Written once and read back by every block of the second kernel."""
    return {
        "y_ptr": Pointer(8 * y.numel(), 8, cached=True),
        "order_ptr": Pointer(8 * y.numel(), 4, cached=True),
        "starts_ptr": Pointer(8 * (num_classes + 1), 4, cached=True),
    }
