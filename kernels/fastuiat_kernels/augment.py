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
    batch, height, width, _ = images_u8.shape
    device = images_u8.device
    rows = torch.arange(height, device=device) + (shift_y[:, None] - pad)
    columns = torch.arange(width, device=device).expand(batch, width)
    columns = torch.where(flip[:, None], width - 1 - columns, columns) + (shift_x[:, None] - pad)
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[
        :, None, :
    ]
    sample = torch.arange(batch, device=device)[:, None, None]
    pixels = images_u8[
        sample, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
    ]
    pixels = pixels.to(torch.float32) / 255 * inside[..., None]
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
