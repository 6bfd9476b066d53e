"""A 3×3 convolution of stride 1 with what follows it in a frozen net, in one launch.

    sum = conv(x, w) + shift + residual     out = max(sum, 0)     second = max(scale·sum + b, 0)
    gradient of x = (conv(g, w') + residual)·[mask > 0]   or   conv(g, w')·[mask > 0] + residual

x (B, C, H, W), out (B, K, H, W), channels-last, bf16 or fp16 with sums in fp32 that are rounded
once; w (K, C, 3, 3), packed to (9·C, K); w' is w flipped and transposed. Padding is zero.

An implicit product of matrices: a program takes whole rows of pixels and a block of filters, and
goes over the nine taps and the channels; what lies beside the image a tensor descriptor fills with
zeros. Repeatable to the bit: also where the sum is split among programs, whose parts are added in
order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastuiat_kernels import checks
from fastuiat_kernels.launch import blocks, takes_kernel, tl, triton, wrap_triton

_DTYPES = (torch.bfloat16, torch.float16)
_TAPS = 9
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


_TILES: dict[tuple[int, int], Tile] = {
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
    tile = _TILES.get((height, 128)) if filters % 128 == 0 else None
    tile = tile or _TILES.get((height, 64))
    if tile is None:
        return None
    steps = _TAPS * channels // tile.channels
    fits = channels % tile.channels == 0 and steps % tile.split == 0
    return tile if fits else Tile(tile.images, tile.rows, tile.filters)


def _wide(tensor: Tensor) -> Tensor:
    """In fp32 at least: sums are rounded once, at the end."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


def unpacked(packed: Tensor, channels: int) -> Tensor:
    """(9·C, K) back to (K, C, 3, 3)."""
    return packed.unflatten(0, (3, 3, channels)).permute(3, 2, 0, 1)


def _product(x: Tensor, packed: Tensor) -> Tensor:
    weight = _wide(unpacked(packed, x.shape[1])).contiguous(memory_format=torch.channels_last)
    return torch.nn.functional.conv2d(_wide(x), weight, padding=1)


def conv3x3_reference(
    x: Tensor,
    packed: Tensor,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    scale: Tensor | None = None,
    second_shift: Tensor | None = None,
) -> list[Tensor]:
    total = _product(x, packed)
    if shift is not None:
        total = total + _wide(shift)[:, None, None]
    if residual is not None:
        total = total + _wide(residual)
    outs = [total.relu() if relu else total]
    if scale is not None and second_shift is not None:
        scaled = _wide(scale)[:, None, None] * total + _wide(second_shift)[:, None, None]
        outs.append(scaled.relu())
    return [out.to(x.dtype).contiguous(memory_format=torch.channels_last) for out in outs]


def conv3x3_backward_reference(
    grad: Tensor,
    packed: Tensor,
    mask: Tensor | None = None,
    residual: Tensor | None = None,
    both: bool = True,
) -> Tensor:
    total = _product(grad, packed)
    if residual is not None and both:
        total = total + _wide(residual)
    if mask is not None:
        total = torch.where(mask > 0, total, 0.0)
    if residual is not None and not both:
        total = total + _wide(residual)
    return total.to(grad.dtype).contiguous(memory_format=torch.channels_last)


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


def _launch(
    x: Tensor,
    packed: Tensor,
    shift: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
    scale: Tensor | None = None,
    second_shift: Tensor | None = None,
    mask: Tensor | None = None,
    both: bool = True,
) -> list[Tensor]:
    from triton.tools.tensor_descriptor import TensorDescriptor

    batch, channels, height, width = x.shape
    filters = packed.shape[1]
    tile = tile_for(height, width, channels, filters)
    assert tile is not None
    out = x.new_empty((batch, height, width, filters)).permute(0, 3, 1, 2)
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
        STEPS=_TAPS * channels // tile.channels // tile.split,
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


def _takes(x: Tensor, packed: Tensor) -> bool:
    return (
        takes_kernel(x, packed)
        and x.dtype in _DTYPES
        and packed.dtype == x.dtype
        and tile_for(x.shape[2], x.shape[3], x.shape[1], packed.shape[1]) is not None
    )


@torch.library.custom_op("fastuiat::conv3x3", mutates_args=())
def _conv3x3(
    x: Tensor,
    packed: Tensor,
    shift: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    scale: Tensor | None,
    second_shift: Tensor | None,
) -> list[Tensor]:
    way = _launch if _takes(x, packed) else conv3x3_reference
    return way(x, packed, shift, residual, relu, scale, second_shift)


@_conv3x3.register_fake
def _(x, packed, shift, residual, relu, scale, second_shift):  # type: ignore[no-untyped-def]
    made = 1 if scale is None else 2
    return [_like(x, packed.shape[1]) for _ in range(made)]


@torch.library.custom_op("fastuiat::conv3x3_backward", mutates_args=())
def _conv3x3_backward(
    grad: Tensor, packed: Tensor, mask: Tensor | None, residual: Tensor | None, both: bool
) -> Tensor:
    if _takes(grad, packed):
        return _launch(grad, packed, residual=residual, mask=mask, both=both)[0]
    return conv3x3_backward_reference(grad, packed, mask, residual, both)


@_conv3x3_backward.register_fake
def _(grad, packed, mask, residual, both):  # type: ignore[no-untyped-def]
    return _like(grad, packed.shape[1])


def _like(x: Tensor, filters: int) -> Tensor:
    batch, _, height, width = x.shape
    return x.new_empty((batch, height, width, filters)).permute(0, 3, 1, 2)


def pack_conv3x3(weight: Tensor, *, backward: bool = False) -> Tensor:
    """(K, C, 3, 3), as nn.Conv2d has it, to (9·C, K); `backward`: to (9·K, C), flipped and
    transposed, with which the same product is the gradient of the input. In its own dtype."""
    if weight.ndim != 4 or weight.shape[2:] != (3, 3):
        raise ValueError(f"weight must be (K, C, 3, 3), got {tuple(weight.shape)}")
    if backward:
        weight = weight.flip(2, 3).transpose(0, 1)
    return weight.permute(2, 3, 1, 0).reshape(-1, weight.shape[0])


def _checked(name: str, x: Tensor, packed: Tensor, **same: Tensor | None) -> None:
    checks.floating(**{name: x}, packed=packed)
    if x.ndim != 4:
        raise ValueError(f"{name} must be (B, C, H, W), got {tuple(x.shape)}")
    if packed.ndim != 2 or packed.shape[0] != _TAPS * x.shape[1]:
        raise ValueError(
            f"packed must be ({_TAPS * x.shape[1]}, K) for {x.shape[1]} channels, got "
            f"{tuple(packed.shape)}"
        )
    shape = (x.shape[0], packed.shape[1], *x.shape[2:])
    for other, tensor in same.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{other} must be {shape}, got {tuple(tensor.shape)}")
    present = {other: tensor for other, tensor in same.items() if tensor is not None}
    checks.same_device(**{name: x}, packed=packed, **present)
    if not torch.compiler.is_compiling():
        for other, tensor in {name: x, **present}.items():
            if not tensor.is_contiguous(memory_format=torch.channels_last):
                raise ValueError(f"{other} must be channels-last, got strides {tensor.stride()}")


def _per_filter(packed: Tensor, **vectors: Tensor | None) -> None:
    for name, vector in vectors.items():
        if vector is not None and vector.shape != packed.shape[1:]:
            raise ValueError(f"{name} must be ({packed.shape[1]},), got {tuple(vector.shape)}")


def conv3x3(
    x: Tensor,
    weight: Tensor,
    shift: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    relu: bool = False,
    second: tuple[Tensor, Tensor] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """sum = conv(x, weight) + shift + residual, or its positive part with `relu`.

    x (B, C, H, W) channels-last; weight (K, C, 3, 3), or packed; shift (K,), fp32 on a GPU;
    residual (B, K, H, W) in the dtype and layout of x, as what comes back. `second=(scale, shift)`,
    each (K,): max(scale·sum + shift, 0) as well, of the sum before it is rounded. NaN stays NaN.
    Padding 1, stride 1. By the kernel on a GPU in bf16 or fp16 where 64 divides C and K and the
    image is 32, 16, 8 or 4 pixels wide and high; else by PyTorch's convolution, with sums in fp32
    at least. Not differentiable. ValueError on other shapes, devices or layouts.
    """
    packed = weight if weight.ndim == 2 else pack_conv3x3(weight)
    scale, second_shift = second or (None, None)
    _checked("x", x, packed, residual=residual)
    _per_filter(packed, shift=shift, scale=scale, second_shift=second_shift)
    outs = _conv3x3(x, packed, shift, residual, relu, scale, second_shift)
    return outs[0] if second is None else (outs[0], outs[1])


def conv3x3_backward(
    grad: Tensor,
    packed: Tensor,
    *,
    mask: Tensor | None = None,
    residual: Tensor | None = None,
    masked: str = "both",
) -> Tensor:
    """The gradient (B, C, H, W) of a convolution's input from that of its output (B, K, H, W).

    packed (9·K, C) by `pack_conv3x3(weight, backward=True)`. `residual` is a gradient that comes
    by a shortcut; `mask` a stored activation: where it is not above 0 no gradient comes through,
    of the sum of both (`masked="both"`, a net that activates behind the shortcut) or of the product
    alone (`masked="product"`, one that activates before it). Otherwise as `conv3x3`.
    """
    if masked not in ("both", "product"):
        raise ValueError(f"masked must be 'both' or 'product', got {masked!r}")
    _checked("grad", grad, packed, mask=mask, residual=residual)
    return _conv3x3_backward(grad, packed, mask, residual, masked == "both")
