"""The kernel of conv3x3.py: what a program takes, the product, what follows it, and the launch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastuiat_kernels.launch import blocks, tl, triton, wrap_triton

TAPS = 9
_FINISH_BLOCK = 1024


@dataclass(frozen=True)
class Tile:
    """What one program takes, and how; the fastest of those tried on an H100
    (benchmarks/DECISIONS.md)."""

    images: int
    rows: int
    filters: int
    channels: int = 64
    """In one step of the sum."""
    split: int = 1
    """Programs that share one sum, where the grid would leave the device half empty."""
    warps: int = 4
    stages: int = 4


TILES: dict[tuple[int, int], Tile] = {
    (32, 64): Tile(images=1, rows=8, filters=64),
    (16, 64): Tile(images=1, rows=8, filters=64),
    (16, 128): Tile(images=1, rows=8, filters=128, warps=8),
    (8, 64): Tile(images=2, rows=8, filters=64),
    (8, 128): Tile(images=1, rows=8, filters=128),
    (4, 64): Tile(images=8, rows=4, filters=64),
    (4, 128): Tile(images=4, rows=4, filters=128, channels=128),
}
"""By the resolution, and the filters that a program can take: 128 where they divide K."""


def tile_for(height: int, width: int, channels: int, filters: int) -> Tile | None:
    """How the kernel takes a layer; None of one that it does not take."""
    if height != width or channels % 64 or filters % 64:
        return None
    tile = TILES.get((height, 128)) if filters % 128 == 0 else None
    tile = tile or TILES.get((height, 64))
    if tile is None:
        return None
    steps = TAPS * channels // tile.channels
    fits = channels % tile.channels == 0 and steps % tile.split == 0
    return tile if fits else Tile(tile.images, tile.rows, tile.filters)


@triton.jit
def _finish(
    total,
    offsets,
    filters,
    inside,
    shift_ptr,
    residual_ptr,
    mask_ptr,
    out_ptr,
    scale_ptr,
    second_shift_ptr,
    second_ptr,
    SHIFT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    MASK: tl.constexpr,
    BOTH: tl.constexpr,
    RELU: tl.constexpr,
    SECOND: tl.constexpr,
):
    """What follows the product; `filters` is each element's filter, in a shape that broadcasts."""
    if SHIFT:
        total += tl.load(shift_ptr + filters)
    if RESIDUAL:
        residual = tl.load(residual_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        if BOTH:
            total += residual
    if MASK:
        total = tl.where(tl.load(mask_ptr + offsets, mask=inside, other=0.0) > 0, total, 0.0)
    if RESIDUAL and not BOTH:
        total += residual
    out = total
    if RELU:
        out = tl.maximum(out, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=inside)
    if SECOND:
        scaled = total * tl.load(scale_ptr + filters) + tl.load(second_shift_ptr + filters)
        scaled = tl.maximum(scaled, 0.0, propagate_nan=tl.PropagateNan.ALL)
        tl.store(second_ptr + offsets, scaled.to(second_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _conv3x3_kernel(
    x_desc,
    weight_desc,
    shift_ptr,
    residual_ptr,
    mask_ptr,
    out_ptr,
    scale_ptr,
    second_shift_ptr,
    second_ptr,
    part_ptr,
    pixels,
    row_tiles,
    channels,
    filters,
    SHIFT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    MASK: tl.constexpr,
    BOTH: tl.constexpr,
    RELU: tl.constexpr,
    SECOND: tl.constexpr,
    IMAGES: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STEPS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    PIXELS: tl.constexpr = IMAGES * ROWS * WIDTH
    tile = tl.program_id(0) // (filters // BLOCK_K)
    k = (tl.program_id(0) % (filters // BLOCK_K)) * BLOCK_K
    row = (tile % row_tiles) * ROWS
    image = (tile // row_tiles) * IMAGES
    part = tl.program_id(1)
    in_tap = channels // BLOCK_C
    # Filters by pixels, not pixels by filters: the tensor cores take their second operand from
    # shared memory as the descriptor laid it there, where a first one of four dims would go through
    # registers.
    total = tl.zeros((BLOCK_K, PIXELS), tl.float32)
    for step in range(part * STEPS, (part + 1) * STEPS):
        tap = step // in_tap
        c = (step % in_tap) * BLOCK_C
        x = x_desc.load([image, row + tap // 3 - 1, tap % 3 - 1, c]).reshape(PIXELS, BLOCK_C)
        weight = weight_desc.load([tap * channels + c, k])
        total = tl.dot(weight.T, x.T, total)
    total = total.T
    # Whole rows of one image, or whole images: pixels that follow each other.
    pixel = (image * row_tiles * ROWS + row) * WIDTH + tl.arange(0, PIXELS)
    filter = k + tl.arange(0, BLOCK_K)
    offsets = pixel.to(tl.int64)[:, None] * filters + filter[None, :]
    inside = (pixel < pixels)[:, None]
    if SPLIT > 1:
        own = part_ptr + part.to(tl.int64) * pixels * filters
        tl.store(own + offsets, total, mask=inside)
    else:
        _finish(
            total,
            offsets,
            filter[None, :],
            inside,
            shift_ptr,
            residual_ptr,
            mask_ptr,
            out_ptr,
            scale_ptr,
            second_shift_ptr,
            second_ptr,
            SHIFT,
            RESIDUAL,
            MASK,
            BOTH,
            RELU,
            SECOND,
        )


@triton.jit
def _add_parts_kernel(
    part_ptr,
    shift_ptr,
    residual_ptr,
    mask_ptr,
    out_ptr,
    scale_ptr,
    second_shift_ptr,
    second_ptr,
    n,
    filters,
    SHIFT: tl.constexpr,
    RESIDUAL: tl.constexpr,
    MASK: tl.constexpr,
    BOTH: tl.constexpr,
    RELU: tl.constexpr,
    SECOND: tl.constexpr,
    SPLIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < n
    total = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(SPLIT):
        total += tl.load(part_ptr + part * n.to(tl.int64) + offsets, mask=inside, other=0.0)
    _finish(
        total,
        offsets,
        (offsets % filters).to(tl.int32),
        inside,
        shift_ptr,
        residual_ptr,
        mask_ptr,
        out_ptr,
        scale_ptr,
        second_shift_ptr,
        second_ptr,
        SHIFT,
        RESIDUAL,
        MASK,
        BOTH,
        RELU,
        SECOND,
    )


def empty_image(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    """(B, channels, height, width), channels-last, otherwise as x."""
    return x.new_empty((x.shape[0], height, width, channels)).permute(0, 3, 1, 2)


def launch(
    x: Tensor,
    packed: Tensor,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    scale: Tensor | None = None,
    second_shift: Tensor | None = None,
    mask: Tensor | None = None,
    both: bool = True,
    tile: Tile | None = None,
) -> list[Tensor]:
    """[out], or [out, second]. `tile`: another than the table's."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    batch, channels, height, width = x.shape
    filters = packed.shape[1]
    tile = tile or tile_for(height, width, channels, filters)
    assert tile is not None and TAPS * channels // tile.channels % tile.split == 0
    out = empty_image(x, filters, height, width)
    second = None if scale is None else torch.empty_like(out)
    pixels, row_tiles = batch * height * width, height // tile.rows
    flags = {
        "SHIFT": shift is not None,
        "RESIDUAL": residual is not None,
        "MASK": mask is not None,
        "BOTH": both,
        "RELU": relu,
        "SECOND": second is not None,
    }
    parts = None
    if tile.split > 1:
        parts = x.new_empty((tile.split, pixels, filters), dtype=torch.float32)
    programs = blocks(batch, tile.images) * row_tiles * (filters // tile.filters)
    wrap_triton(_conv3x3_kernel)[(programs, tile.split)](
        TensorDescriptor.from_tensor(
            x.permute(0, 2, 3, 1), [tile.images, tile.rows, width, tile.channels]
        ),
        TensorDescriptor.from_tensor(packed, [tile.channels, tile.filters]),
        shift,
        residual,
        mask,
        out,
        scale,
        second_shift,
        second,
        parts,
        pixels,
        row_tiles,
        channels,
        filters,
        **flags,
        IMAGES=tile.images,
        ROWS=tile.rows,
        WIDTH=width,
        BLOCK_K=tile.filters,
        BLOCK_C=tile.channels,
        STEPS=TAPS * channels // tile.channels // tile.split,
        SPLIT=tile.split,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if parts is not None:
        n = pixels * filters
        wrap_triton(_add_parts_kernel)[(blocks(n, _FINISH_BLOCK),)](
            parts,
            shift,
            residual,
            mask,
            out,
            scale,
            second_shift,
            second,
            n,
            filters,
            **flags,
            SPLIT=tile.split,
            BLOCK=_FINISH_BLOCK,
            num_warps=4,
        )
    return [out] if second is None else [out, second]
