"""augment: bytes to pixels, zero-padded crop and flip in one pass.

    out[b, c, i, j] = padded[b, i + shift_y[b], j', c] / 255,   j' = j + shift_x[b], mirrored first
                                                                where flip[b]

Shapes: images uint8 (B, H, W, C), contiguous; shift_y, shift_x int64 (B,) in 0 … 2·pad (pad = no
shift); flip bool (B,). The result is fp32 (B, C, H, W), channels-last. The division is IEEE-exact.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import triton_op

from fastuiat_kernels import checks
from fastuiat_kernels.launch import blocks, takes_kernel, tl, triton, wrap_triton
from fastuiat_kernels.spec import Inputs, KernelSpec, Pointer, Size, Variant, generator

# 8 elements per thread: two 16-byte stores. Reads are single bytes, since the crop shifts rows by
# any number of them; 128 neighbouring threads ask for the same few cache lines.
_BLOCK = 1024
_NUM_WARPS = 4


def augment_reference(
    images_u8: Tensor, shift_y: Tensor, shift_x: Tensor, flip: Tensor, pad: int
) -> Tensor:
    batch, height, width, channels = images_u8.shape
    device, tall, wide = images_u8.device, height + 2 * pad, width + 2 * pad
    padded = images_u8.new_zeros(2, batch, tall, wide, channels)
    padded[0, :, pad : pad + height, pad : pad + width] = images_u8
    padded[1] = padded[0].flip(2)
    # A row of the result is `width` neighbouring pixels of a padded row. Taken from the matrix of
    # all such runs, which overlap, it is copied whole: one index per pixel took four times longer.
    runs = padded.as_strided((2 * batch * tall * wide - width + 1, width * channels), (channels, 1))
    image = torch.arange(batch, device=device) + batch * flip
    rows = (image * tall + shift_y)[:, None] + torch.arange(height, device=device)
    columns = torch.where(flip, 2 * pad - shift_x, shift_x)
    crops = runs.index_select(0, (rows * wide + columns[:, None]).flatten())
    pixels = crops.view(images_u8.shape).to(torch.float32).div_(255)
    return pixels.permute(0, 3, 1, 2)


@triton.jit
def _augment_kernel(
    images_ptr,
    shift_y_ptr,
    shift_x_ptr,
    flip_ptr,
    out_ptr,
    pad,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    elements: tl.constexpr = HEIGHT * WIDTH * CHANNELS
    sample = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    channel = offsets % CHANNELS
    row = offsets // CHANNELS // WIDTH + (tl.load(shift_y_ptr + sample) - pad).to(tl.int32)
    column = offsets // CHANNELS % WIDTH
    column = tl.where(tl.load(flip_ptr + sample) != 0, WIDTH - 1 - column, column)
    column += (tl.load(shift_x_ptr + sample) - pad).to(tl.int32)
    there = (offsets < elements) & (row >= 0) & (row < HEIGHT) & (column >= 0) & (column < WIDTH)
    source = (row * WIDTH + column) * CHANNELS + channel
    byte = tl.load(images_ptr + sample * elements + source, mask=there, other=0)
    pixel = tl.div_rn(byte.to(tl.float32), 255.0)
    tl.store(out_ptr + sample * elements + offsets, pixel, mask=offsets < elements)


def _launch(images_u8: Tensor, shift_y: Tensor, shift_x: Tensor, flip: Tensor, pad: int) -> Tensor:
    checks.contiguous_at_launch(images_u8=images_u8)
    batch, height, width, channels = images_u8.shape
    out = torch.empty(images_u8.shape, dtype=torch.float32, device=images_u8.device)
    wrap_triton(_augment_kernel)[(batch, blocks(height * width * channels, _BLOCK))](
        images_u8,
        shift_y,
        shift_x,
        flip,
        out,
        pad,
        HEIGHT=height,
        WIDTH=width,
        CHANNELS=channels,
        BLOCK=_BLOCK,
        num_warps=_NUM_WARPS,
    )
    return out.permute(0, 3, 1, 2)


@triton_op("fastuiat::augment", mutates_args={})
def _augment(images_u8: Tensor, shift_y: Tensor, shift_x: Tensor, flip: Tensor, pad: int) -> Tensor:
    run = _launch if images_u8.is_cuda else augment_reference
    return run(images_u8, shift_y, shift_x, flip, pad)


def augment(
    images_u8: Tensor, shift_y: Tensor, shift_x: Tensor, flip: Tensor, *, pad: int = 4
) -> Tensor:
    """Cropped and flipped pixels in [0, 1], fp32 (B, C, H, W) channels-last.

    `pad` is the zero border in pixels. ValueError on other dtypes, shapes, devices, on images that
    are not contiguous, and on the CPU on shifts out of range; on a GPU such a shift only reaches
    further into the zero border.
    """
    if images_u8.dtype != torch.uint8 or images_u8.ndim != 4:
        raise ValueError(
            f"images_u8 must be uint8 (B, H, W, C), got {images_u8.dtype} {tuple(images_u8.shape)}"
        )
    checks.contiguous(images_u8=images_u8)
    checks.same_device(images_u8=images_u8, shift_y=shift_y, shift_x=shift_x, flip=flip)
    checks.indices("shift_y", shift_y, 2 * pad + 1, images_u8.shape[0])
    checks.indices("shift_x", shift_x, 2 * pad + 1, images_u8.shape[0])
    checks.flags("flip", flip, images_u8.shape[0])
    run = _augment if takes_kernel(images_u8) else augment_reference
    return run(images_u8, shift_y, shift_x, flip, pad)


def _inputs(size: Size, dtype: torch.dtype, device: torch.device) -> Inputs:
    random = generator(size)
    shape = (size.batch, size.height, size.width, size.channels)
    return {
        "images_u8": torch.randint(256, shape, generator=random).to(device, torch.uint8),
        "shift_y": torch.randint(9, (size.batch,), generator=random).to(device),
        "shift_x": torch.randint(9, (size.batch,), generator=random).to(device),
        "flip": (torch.rand(size.batch, generator=random) < 0.5).to(device),
        "pad": 4,
    }


def _pointers(inputs: Inputs) -> dict[str, Pointer]:
    n, batch = inputs["images_u8"].numel(), inputs["flip"].numel()
    _, height, width, channels = inputs["images_u8"].shape
    rows = height - (inputs["shift_y"] - inputs["pad"]).abs()
    columns = width - (inputs["shift_x"] - inputs["pad"]).abs()
    return {
        "images_ptr": Pointer(int((rows * columns).sum()) * channels, 1),
        "out_ptr": Pointer(4 * n, 16),
        "shift_y_ptr": Pointer(8 * batch, 4, cached=True),  # the upper half is not needed
        "shift_x_ptr": Pointer(8 * batch, 4, cached=True),
        "flip_ptr": Pointer(batch, 1, cached=True),
    }


SPEC = KernelSpec(
    "augment",
    "crop of the zero-padded image, mirrored where flip, / 255",
    (
        Variant(
            name="augment",
            op=augment,
            reference=augment_reference,
            launcher=_launch,
            inputs=_inputs,
            dtypes=(torch.uint8,),
            pointers=_pointers,
            elements=lambda inputs: inputs["images_u8"].numel(),
            launches=1,
            replaces=18,
        ),
    ),
)
