"""augment: bytes to pixels, zero-padded crop and flip in one pass.

    out[b, c, i, j] = padded[b, i + shift_y[b], j', c] / 255,   j' = j + shift_x[b], mirrored first
                                                                where flip[b]

Shapes: images uint8 (B, H, W, C); shift_y, shift_x int64 (B,) in 0 … 2·pad (pad = no shift); flip
bool (B,). The result is fp32 (B, C, H, W), channels-last. The division is IEEE-exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastuiat_kernels import checks


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


def augment(
    images_u8: Tensor, shift_y: Tensor, shift_x: Tensor, flip: Tensor, *, pad: int = 4
) -> Tensor:
    """Cropped and flipped pixels in [0, 1], fp32 (B, C, H, W) channels-last."""
    if images_u8.dtype != torch.uint8 or images_u8.ndim != 4:
        raise ValueError(
            f"images_u8 must be uint8 (B, H, W, C), got {images_u8.dtype} {tuple(images_u8.shape)}"
        )
    checks.same_device(images_u8=images_u8, shift_y=shift_y, shift_x=shift_x, flip=flip)
    checks.indices("shift_y", shift_y, 2 * pad + 1, images_u8.shape[0])
    checks.indices("shift_x", shift_x, 2 * pad + 1, images_u8.shape[0])
    if flip.dtype != torch.bool or flip.shape != shift_y.shape:
        raise ValueError(f"flip must be bool ({images_u8.shape[0]},), got {flip.dtype}")
    return augment_reference(images_u8, shift_y, shift_x, flip, pad)
