"""The kernels of strided3x3.py: both convolutions of an image, their gradient, and the launches."""

from __future__ import annotations

from torch import Tensor

from fastuiat_kernels.conv3x3_kernel import Tile, empty_image
from fastuiat_kernels.launch import blocks, tl, triton, wrap_triton

TILES: dict[int, Tile] = {
    16: Tile(images=1, rows=8, filters=64),
    8: Tile(images=2, rows=8, filters=64),
    4: Tile(images=4, rows=4, filters=64),
}
"""By the resolution of out, in whose pixels they count; backward `filters` are channels of x, and
`channels` filters."""


def takes_layer(height: int, width: int, channels: int, filters: int) -> bool:
    """Whether the kernels take a layer of which out is as high and wide."""
    return height == width and height in TILES and channels % 64 == filters % 64 == 0


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


def launch(
    x: Tensor,
    packed: Tensor,
    shift: Tensor,
    packed1: Tensor,
    shift1: Tensor,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """(out, shortcut). `tile`: another than the table's."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    batch, channels, height, width = (*x.shape[:2], x.shape[2] // 2, x.shape[3] // 2)
    filters, tile = packed.shape[1], tile or TILES[height]
    assert tile.split == 1 and channels % tile.channels == filters % tile.filters == 0
    out, short = (empty_image(x, filters, height, width) for _ in range(2))
    pairs = x.permute(0, 2, 3, 1).view(batch, height, 2, width, 2 * channels)
    row_tiles = height // tile.rows
    programs = blocks(batch, tile.images) * row_tiles * (filters // tile.filters)
    wrap_triton(_strided3x3_kernel)[(programs,)](
        TensorDescriptor.from_tensor(pairs, [tile.images, tile.rows, 1, width, tile.channels]),
        TensorDescriptor.from_tensor(packed, [tile.channels, tile.filters]),
        TensorDescriptor.from_tensor(packed1, [tile.channels, tile.filters]),
        shift,
        shift1,
        out,
        short,
        batch * height * width,
        row_tiles,
        channels,
        filters,
        IMAGES=tile.images,
        ROWS=tile.rows,
        WIDTH=width,
        BLOCK_K=tile.filters,
        BLOCK_C=tile.channels,
        IN_TAP=channels // tile.channels,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out, short


def launch_backward(
    grad: Tensor,
    grad1: Tensor,
    packed: Tensor,
    packed1: Tensor,
    mask: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """The gradient of x. `tile`: another than the table's."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    batch, filters, height, width = grad.shape
    channels, tile = packed.shape[1], tile or TILES[height]
    assert tile.split == 1 and filters % tile.channels == channels % tile.filters == 0
    out = empty_image(grad, channels, 2 * height, 2 * width)
    row_tiles = height // tile.rows
    block = [tile.images, tile.rows, width, tile.channels]
    programs = blocks(batch, tile.images) * row_tiles * (channels // tile.filters)
    wrap_triton(_strided3x3_backward_kernel)[(programs, 4)](
        TensorDescriptor.from_tensor(grad.permute(0, 2, 3, 1), block),
        TensorDescriptor.from_tensor(grad1.permute(0, 2, 3, 1), block),
        TensorDescriptor.from_tensor(packed, [tile.channels, tile.filters]),
        TensorDescriptor.from_tensor(packed1, [tile.channels, tile.filters]),
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
        BLOCK_K=tile.channels,
        IN_TAP=filters // tile.channels,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    return out
