"""What a ResNet's block that halves the image does first: both of its convolutions of stride 2.

    out = max(conv3×3(x, w, stride 2) + s, 0)        shortcut = conv1×1(x, v, stride 2) + t
    gradient of x = (conv3×3's of g + conv1×1's of g′)·[mask > 0]

x (B, C, H, W), out and shortcut (B, K, H/2, W/2), channels-last, bf16 or fp16 with sums in fp32
that are rounded once. The way is that of conv3x3.py: a product of filters and pixels over taps and
channels. The image is read as (B, H/2, 2, W/2, 2·C), in which every second pixel is a neighbour.
The gradient of pixels in even and odd rows and columns meets 1, 2, 2 and 4 taps: four products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastuiat_kernels.conv3x3 import _DTYPES
from fastuiat_kernels.launch import blocks, takes_kernel, tl, triton, wrap_triton

_BLOCK_IN = 64
"""Channels in one step of a sum."""


@dataclass(frozen=True)
class Tile:
    images: int
    rows: int
    warps: int = 4
    stages: int = 4
    filters: int = 64


_TILES: dict[int, Tile] = {
    16: Tile(images=1, rows=8),
    8: Tile(images=2, rows=8),
    4: Tile(images=4, rows=4),
}
_BACKWARD_TILES: dict[int, Tile] = {
    16: Tile(images=1, rows=8),
    8: Tile(images=2, rows=8),
    4: Tile(images=4, rows=4),
}
"""By the resolution of out, in whose pixels they count."""


def pack_strided(weight: Tensor, *, backward: bool = False) -> Tensor:
    """(K, C, n, n) to (n²·C, K); `backward`: to (n²·K, C), neither flipped nor transposed else."""
    order = (2, 3, 0, 1) if backward else (2, 3, 1, 0)
    return weight.permute(order).reshape(-1, weight.shape[1 if backward else 0])


def _unpacked(packed: Tensor, rows: int, backward: bool) -> Tensor:
    size = 3 if packed.shape[0] == 9 * rows else 1
    weight = packed.unflatten(0, (size, size, rows))
    weight = weight.permute(2, 3, 0, 1) if backward else weight.permute(3, 2, 0, 1)
    return weight if weight.dtype == torch.float64 else weight.float()


def strided3x3_reference(
    x: Tensor, packed: Tensor, shift: Tensor, packed1: Tensor, shift1: Tensor
) -> list[Tensor]:
    wide = x if x.dtype == torch.float64 else x.float()
    conv = torch.nn.functional.conv2d
    out = conv(wide, _unpacked(packed, x.shape[1], False), stride=2, padding=1)
    short = conv(wide, _unpacked(packed1, x.shape[1], False), stride=2)
    out = (out + shift[:, None, None]).relu()
    short = short + shift1[:, None, None]
    return [t.to(x.dtype).contiguous(memory_format=torch.channels_last) for t in (out, short)]


def strided3x3_backward_reference(
    grad: Tensor, grad1: Tensor, packed: Tensor, packed1: Tensor, mask: Tensor | None
) -> Tensor:
    wide, wide1 = (g if g.dtype == torch.float64 else g.float() for g in (grad, grad1))
    weight, weight1 = (_unpacked(p, grad.shape[1], True) for p in (packed, packed1))
    transposed = torch.nn.functional.conv_transpose2d
    total = transposed(wide, weight, stride=2, padding=1, output_padding=1)
    total = total + transposed(wide1, weight1, stride=2, output_padding=1)
    if mask is not None:
        total = torch.where(mask > 0, total, 0.0)
    return total.to(grad.dtype).contiguous(memory_format=torch.channels_last)


@triton.jit
def _strided3x3_kernel(
    x_desc,
    weight_desc,
    weight1_desc,
    shift_ptr,
    shift1_ptr,
    out_ptr,
    short_ptr,
    pixels,
    row_tiles,
    channels,
    filters,
    IMAGES: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    IN_TAP: tl.constexpr,
):
    PIXELS: tl.constexpr = IMAGES * ROWS * WIDTH
    tile = tl.program_id(0) // (filters // BLOCK_K)
    k = (tl.program_id(0) % (filters // BLOCK_K)) * BLOCK_K
    row = (tile % row_tiles) * ROWS
    image = (tile // row_tiles) * IMAGES
    pixel = (image * row_tiles * ROWS + row) * WIDTH + tl.arange(0, PIXELS)
    filter = k + tl.arange(0, BLOCK_K)
    offsets = pixel.to(tl.int64)[:, None] * filters + filter[None, :]
    inside = (pixel < pixels)[:, None]
    total = tl.zeros((BLOCK_K, PIXELS), tl.float32)
    for step in range(0, 9 * IN_TAP):
        tap = step // IN_TAP
        c = (step % IN_TAP) * BLOCK_C
        down, right = tap // 3, tap % 3
        # Row 2i − 1 is the odd one of pair i − 1; 2i and 2i + 1 are those of pair i.
        x = x_desc.load(
            [
                image,
                row + (down + 1) // 2 - 1,
                (down + 1) % 2,
                (right + 1) // 2 - 1,
                (right + 1) % 2 * channels + c,
            ]
        ).reshape(PIXELS, BLOCK_C)
        weight = weight_desc.load([tap * channels + c, k])
        total = tl.dot(weight.T, x.T, total)
    out = total.T + tl.load(shift_ptr + filter)[None, :]
    out = tl.maximum(out, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out_ptr + offsets, out.to(out_ptr.dtype.element_ty), mask=inside)
    total = tl.zeros((BLOCK_K, PIXELS), tl.float32)
    for step in range(0, IN_TAP):
        c = step * BLOCK_C
        x = x_desc.load([image, row, 0, 0, c]).reshape(PIXELS, BLOCK_C)
        total = tl.dot(weight1_desc.load([c, k]).T, x.T, total)
    short = total.T + tl.load(shift1_ptr + filter)[None, :]
    tl.store(short_ptr + offsets, short.to(short_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _strided3x3_backward_kernel(
    grad_desc,
    grad1_desc,
    weight_desc,
    weight1_desc,
    mask_ptr,
    out_ptr,
    pixels,
    row_tiles,
    filters,
    channels,
    MASK: tl.constexpr,
    IMAGES: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IN_TAP: tl.constexpr,
):
    PIXELS: tl.constexpr = IMAGES * ROWS * WIDTH
    # Odd rows and columns, whose sums are the longest, first.
    odd_row = 1 - tl.program_id(1) // 2
    odd_column = 1 - tl.program_id(1) % 2
    tile = tl.program_id(0) // (channels // BLOCK_C)
    c = (tl.program_id(0) % (channels // BLOCK_C)) * BLOCK_C
    row = (tile % row_tiles) * ROWS
    image = (tile // row_tiles) * IMAGES
    total = tl.zeros((BLOCK_C, PIXELS), tl.float32)
    for step in range(0, (1 + odd_row) * (1 + odd_column) * IN_TAP):
        tap = step // IN_TAP
        k = (step % IN_TAP) * BLOCK_K
        i, j = tap // (1 + odd_column), tap % (1 + odd_column)
        # An even row is met by the middle of the filter alone; an odd one by its top, from the next
        # row of out, and by its bottom.
        down, right = 1 - odd_row + 2 * i * odd_row, 1 - odd_column + 2 * j * odd_column
        grad = grad_desc.load([image, row + odd_row * (1 - i), odd_column * (1 - j), k])
        weight = weight_desc.load([(down * 3 + right) * filters + k, c])
        total = tl.dot(weight.T, grad.reshape(PIXELS, BLOCK_K).T, total)
    # The shortcut takes even pixels of even rows.
    for step in range(0, (1 - odd_row) * (1 - odd_column) * IN_TAP):
        k = step * BLOCK_K
        grad = grad1_desc.load([image, row, 0, k]).reshape(PIXELS, BLOCK_K)
        total = tl.dot(weight1_desc.load([k, c]).T, grad.T, total)
    total = total.T
    pixel = (image * row_tiles * ROWS + row) * WIDTH + tl.arange(0, PIXELS)
    line, column = pixel // WIDTH, pixel % WIDTH  # lines of all images, one after another
    target = (2 * line + odd_row) * (2 * WIDTH) + 2 * column + odd_column
    offsets = target.to(tl.int64)[:, None] * channels + (c + tl.arange(0, BLOCK_C))[None, :]
    inside = (pixel < pixels)[:, None]
    if MASK:
        total = tl.where(tl.load(mask_ptr + offsets, mask=inside, other=0.0) > 0, total, 0.0)
    tl.store(out_ptr + offsets, total.to(out_ptr.dtype.element_ty), mask=inside)


def _launch(
    x: Tensor, packed: Tensor, shift: Tensor, packed1: Tensor, shift1: Tensor
) -> list[Tensor]:
    from triton.tools.tensor_descriptor import TensorDescriptor

    batch, channels, height, width = (*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)
    filters, tile = packed.shape[1], _TILES[height]
    outs = [_empty(x, filters, height, width) for _ in range(2)]
    pairs = x.permute(0, 2, 3, 1).view(batch, height, 2, width, 2 * channels)
    row_tiles = height // tile.rows
    wrap_triton(_strided3x3_kernel)[
        (blocks(batch, tile.images) * row_tiles * (filters // tile.filters),)
    ](
        TensorDescriptor.from_tensor(pairs, [tile.images, tile.rows, 1, width, _BLOCK_IN]),
        TensorDescriptor.from_tensor(packed, [_BLOCK_IN, tile.filters]),
        TensorDescriptor.from_tensor(packed1, [_BLOCK_IN, tile.filters]),
        shift,
        shift1,
        *outs,
        batch * height * width,
        row_tiles,
        channels,
        filters,
        IMAGES=tile.images,
        ROWS=tile.rows,
        WIDTH=width,
        BLOCK_K=tile.filters,
        BLOCK_C=_BLOCK_IN,
        IN_TAP=channels // _BLOCK_IN,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return outs


def _launch_backward(
    grad: Tensor, grad1: Tensor, packed: Tensor, packed1: Tensor, mask: Tensor | None
) -> Tensor:
    from triton.tools.tensor_descriptor import TensorDescriptor

    batch, filters, height, width = grad.shape
    channels, tile = packed.shape[1], _BACKWARD_TILES[height]
    out = _empty(grad, channels, 2 * height, 2 * width)
    row_tiles = height // tile.rows
    block = [tile.images, tile.rows, width, _BLOCK_IN]
    wrap_triton(_strided3x3_backward_kernel)[
        (blocks(batch, tile.images) * row_tiles * (channels // tile.filters), 4)
    ](
        TensorDescriptor.from_tensor(grad.permute(0, 2, 3, 1), block),
        TensorDescriptor.from_tensor(grad1.permute(0, 2, 3, 1), block),
        TensorDescriptor.from_tensor(packed, [_BLOCK_IN, tile.filters]),
        TensorDescriptor.from_tensor(packed1, [_BLOCK_IN, tile.filters]),
        mask,
        out,
        batch * height * width,
        row_tiles,
        filters,
        channels,
        MASK=mask is not None,
        IMAGES=tile.images,
        ROWS=tile.rows,
        WIDTH=width,
        BLOCK_C=tile.filters,
        BLOCK_K=_BLOCK_IN,
        IN_TAP=filters // _BLOCK_IN,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out


def _empty(x: Tensor, channels: int, height: int, width: int) -> Tensor:
    return x.new_empty((x.shape[0], height, width, channels)).permute(0, 3, 1, 2)


def _takes(x: Tensor, packed: Tensor, height: int) -> bool:
    return (
        takes_kernel(x, packed)
        and x.dtype in _DTYPES
        and packed.dtype == x.dtype
        and x.shape[2] == x.shape[3]
        and height in _TILES
        and x.shape[1] % _BLOCK_IN == packed.shape[1] % _BLOCK_IN == 0
    )


def strided3x3(
    x: Tensor, packed: Tensor, shift: Tensor, packed1: Tensor, shift1: Tensor
) -> list[Tensor]:
    """[out, shortcut] (B, K, H/2, W/2) of x (B, C, H, W) channels-last, H and W even.

    packed (9·C, K) and packed1 (C, K) by `pack_strided`; shifts (K,), fp32 on a GPU. Not
    differentiable.
    """
    way = _launch if _takes(x, packed, x.shape[2] // 2) else strided3x3_reference
    return way(x, packed, shift, packed1, shift1)


def strided3x3_backward(
    grad: Tensor, grad1: Tensor, packed: Tensor, packed1: Tensor, mask: Tensor | None = None
) -> Tensor:
    """The gradient (B, C, H, W) of x from those of the two sums, (B, K, H/2, W/2) each.

    packed (9·K, C) and packed1 (K, C) by `pack_strided(…, backward=True)`; nothing comes through
    where `mask` (B, C, H, W) is not above 0.
    """
    way = _launch_backward if _takes(grad, packed, grad.shape[2]) else strided3x3_backward_reference
    return way(grad, grad1, packed, packed1, mask)
