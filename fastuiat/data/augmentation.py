"""How stored bytes become training images: pure functions of seed, epoch and sample.

In integers up to the last division, so that all devices and both loaders give the same bits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastuiat.data.batch import on_device
from fastuiat_kernels import augment, noise_key, philox_uint32

Kind = Literal["crop", "resized-crop", "none"]
SCALE = (0.08, 1.0)
RATIO = (3 / 4, 4 / 3)
"""Share of an image's area, and width to height, of a resized crop: torchvision's own defaults."""


class Draws(NamedTuple):
    """How samples are augmented: shifts int64 in 0 … 2·pad (pad is none), flip bool, of one shape;
    `box` int64 (…, 4) of a resized crop: top, left, height, width in pixels.

    Drawn for a whole epoch at once: the generator is some 280 operators, which for one batch at a
    time keep the host too busy (benchmarks/DECISIONS.md).
    """

    shift_y: Tensor
    shift_x: Tensor
    flip: Tensor
    box: Tensor | None = None

    def row(self, i: int) -> Draws:
        box = None if self.box is None else self.box[i]
        return Draws(self.shift_y[i], self.shift_x[i], self.flip[i], box)


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Of images of a size: `crop` out of a zero border of an eighth of their side (4 pixels of 32),
    `resized-crop` of a random part, or `none`; mirrored by chance where `flip`."""

    kind: Kind = "crop"
    flip: bool
    resolution: int = 32

    @property
    def pad(self) -> int:
        return self.resolution // 8 if self.kind == "crop" else 0

    def draw(self, seed: int, epoch: int, index: Tensor, device: torch.device) -> Draws:
        """The draws of an epoch on a device, for samples `index` int64 (…) on the host."""
        draws = draw(seed, epoch, on_device(index, device), flip=self.flip, pad=self.pad)
        if self.kind != "resized-crop":
            return draws
        box = draw_boxes(seed, epoch, index, self.resolution)
        return draws._replace(box=on_device(box, device))

    def apply(self, images: Tensor, draws: Draws) -> Tensor:
        """Images uint8 (B, R, R, 3) as fp32 (B, 3, R, R) in [0, 1], channels-last."""
        if draws.box is not None:
            images = resized_crop(images, draws.box)
        return augment(images, draws.shift_y, draws.shift_x, draws.flip, pad=self.pad)


def draw(seed: int, epoch: int, index: Tensor, *, flip: bool, pad: int = 4) -> Draws:
    """The draws of an epoch for samples `index` int64 (…), a pure function of (seed, epoch, index).

    `pad` is in pixels. Not of the step: a sample looks the same in any batch of an epoch.
    """
    key = on_device(noise_key(seed, epoch, 0, "augment"), index.device)
    words = philox_uint32(key, index.flatten(), 1)
    # 32 random bits modulo 9: the bias is below 3e-9.
    shift_y, shift_x = words[:, 0] % (2 * pad + 1), words[:, 1] % (2 * pad + 1)
    mirrored = (words[:, 2] & 1).bool() if flip else torch.zeros_like(words[:, 2]).bool()
    return Draws(*(drawn.view(index.shape) for drawn in (shift_y, shift_x, mirrored)))


def draw_boxes(seed: int, epoch: int, index: Tensor, resolution: int) -> Tensor:
    """Top, left, height and width in pixels, int64 (…, 4), for samples `index` on the host.

    The area is uniform in SCALE, the ratio log-uniform in RATIO; a side that sticks out is cut off.
    On the host alone: exponentials and roots differ between devices.
    """
    words = philox_uint32(noise_key(seed, epoch, 0, "resized-crop"), index.flatten(), 1)
    area, ratio, top, left = (words.double() * 2.0**-32).unbind(dim=1)
    area = resolution**2 * (SCALE[0] + (SCALE[1] - SCALE[0]) * area)
    low, high = map(math.log, RATIO)
    root = torch.exp((low + (high - low) * ratio) / 2)
    height, width = (
        (side.round().clamp(1, resolution)) for side in (area.sqrt() / root, area.sqrt() * root)
    )
    top, left = (
        (place * (resolution + 1 - side)).floor() for place, side in ((top, height), (left, width))
    )
    return torch.stack((top, left, height, width), dim=1).long().view(*index.shape, 4)


def resized_crop(images: Tensor, box: Tensor) -> Tensor:
    """The boxes int64 (B, 4) of images uint8 (B, R, R, C), enlarged to (B, R, R, C).

    Bilinear between the centres of pixels, rows first, exact in integers: to a whole byte at the
    end, halves upwards.
    """
    batch, side = images.shape[0], images.shape[1]
    rows = _between(box[:, 0], box[:, 2], side)
    columns = _between(box[:, 1], box[:, 3], side)
    each = torch.arange(batch, device=images.device)[:, None]
    first, second, weight = rows
    weight = weight[:, :, None, None]
    lines = images[each, first] * (2 * side - weight) + images[each, second] * weight
    first, second, weight = (values[:, None, :] for values in columns)
    each, line = each[:, :, None], torch.arange(side, device=images.device)[None, :, None]
    weight = weight[..., None]
    mixed = lines[each, line, first] * (2 * side - weight) + lines[each, line, second] * weight
    unit = (2 * side) ** 2
    return ((mixed + unit // 2) // unit).to(torch.uint8)


def _between(begin: Tensor, length: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """(pixel, next pixel, weight of the next in 1/(2·side)) for `side` places, int (B, side).

    Place i lies at (i + ½)·length/side − ½ in a stretch that begins at `begin`.
    """
    place = 2 * torch.arange(side, device=begin.device) + 1
    at = (place * length[:, None] - side).clamp(min=0)  # in 1/(2·side)
    first = at // (2 * side)
    second = torch.minimum(first + 1, length[:, None] - 1)
    weight = (at - first * 2 * side).to(torch.int32)
    return begin[:, None] + first, begin[:, None] + second, weight
