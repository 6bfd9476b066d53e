"""What augmentation does to images: its kinds by independent formulas, and what it depends on."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastuiat.data import Order, ResidentLoader
from fastuiat.data.augmentation import RATIO, SCALE, Augmentation, draw_boxes, resized_crop

CPU = torch.device("cpu")


@pytest.mark.parametrize("side", [16, 40])
def test_a_resized_crop_is_bilinear(side):
    images = torch.randint(256, (30, side, side, 3)).to(torch.uint8)
    box = draw_boxes(0, 1, torch.arange(30), side)
    box[0] = torch.tensor([0, 0, side, side])  # all of it stays as it is
    box[1] = torch.tensor([side - 1, 2, 1, 1])  # one pixel
    found = resized_crop(images, box)
    assert found.dtype == torch.uint8 and torch.equal(found[0], images[0])
    assert (found[1] == images[1, side - 1, 2]).all()
    for image, (top, left, height, width), square in zip(images, box.tolist(), found, strict=True):
        part = image[top : top + height, left : left + width].permute(2, 0, 1).double()
        expected = F.interpolate(part[None], (side, side), mode="bilinear", align_corners=False)
        apart = (square.permute(2, 0, 1) - expected[0]).abs().max()
        assert apart <= 0.5 + 1e-9


def test_boxes_lie_inside_and_are_spread_as_said():
    side, index = 64, torch.arange(4000)
    top, left, height, width = draw_boxes(3, 2, index, side).unbind(dim=1)
    for begin, length in ((top, height), (left, width)):
        assert begin.min() == 0 and length.min() >= 1 and (begin + length).max() == side
    inside = (height < side) & (width < side)
    area, ratio = (height * width)[inside] / side**2, (width / height)[inside]
    assert abs(ratio.log().mean()) < 0.02 and ratio.min() > RATIO[0] * 0.9
    assert ratio.max() < RATIO[1] * 1.1 and area.min() > SCALE[0] * 0.9
    assert (
        abs(np.quantile(area, 0.25) - 0.28) < 0.04
    )  # a quarter of [0.08, 1], few of which are cut
    assert torch.equal(
        draw_boxes(3, 2, index[100:], side)[:5], draw_boxes(3, 2, index, side)[100:105]
    )
    assert not torch.equal(draw_boxes(3, 3, index, side), draw_boxes(3, 2, index, side))
    assert not torch.equal(draw_boxes(4, 2, index, side), draw_boxes(3, 2, index, side))


def batch_of(kind, flip, side=64, n=64):
    images = np.random.default_rng(0).integers(1, 256, (n, side, side, 3), dtype=np.uint8)
    order = Order(seed=1, train_index=np.arange(n), batch_size=n)
    loader = ResidentLoader(
        images, np.zeros(n, np.int64), order, device="cpu", flip=flip, augment=kind
    )
    (batch,) = loader.epoch(1)
    original = torch.from_numpy(images)[batch.index].permute(0, 3, 1, 2).float() / 255
    return batch.x, original


def test_none_leaves_all_but_the_mirroring():
    x, original = batch_of("none", flip=False)
    assert torch.equal(x, original)
    x, original = batch_of("none", flip=True)
    same, mirrored = ((x == other).all(dim=(1, 2, 3)) for other in (original, original.flip(3)))
    assert (same ^ mirrored).all() and 10 < same.sum() < 54


def test_a_crop_goes_out_by_an_eighth_of_the_side():
    x, original = batch_of("crop", flip=False)
    padded = F.pad(original, (8, 8, 8, 8))
    offsets = set()
    for image, border in zip(x, padded, strict=True):
        found = [
            (i, j)
            for i in range(17)
            for j in range(17)
            if torch.equal(border[:, i : i + 64, j : j + 64], image)
        ]
        assert len(found) == 1
        offsets |= set(found)
    assert {0, 16} <= {i for i, _ in offsets} | {j for _, j in offsets}


def test_mirroring_does_not_change_with_the_kind():
    """The same samples are mirrored, whatever else is done to them."""
    flips = [
        Augmentation(kind=kind, flip=True, resolution=32).draw(1, 1, torch.arange(50), CPU).flip
        for kind in ("crop", "resized-crop", "none")
    ]
    assert torch.equal(flips[0], flips[1]) and torch.equal(flips[0], flips[2])
