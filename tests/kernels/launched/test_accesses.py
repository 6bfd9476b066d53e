"""What a kernel reads and writes, access by access, under the interpreter."""

from __future__ import annotations

import importlib

import pytest
import torch

from fastuiat_kernels import SIZES, SPECS, Size
from fastuiat_kernels.audit.traffic import count_launch
from fastuiat_kernels.launch import watched

CPU = torch.device("cpu")
VARIANTS = {variant.name: variant for spec in SPECS for variant in spec.variants}


def module(name: str):
    return importlib.import_module(f"fastuiat_kernels.{name}")


@pytest.mark.parametrize("classes", [10, 100, 1000])
def test_bank_reads_each_gradient_once_whatever_the_classes(classes):
    size = Size(64, 3, 4, 4, classes, 1)
    variant = VARIANTS["bank_step"]
    inputs = variant.inputs(size, torch.float32, CPU)
    before, bytes_read = inputs["z"].clone(), {}
    expected = variant.reference(**inputs | {"z": before.clone()})

    def watcher(launch, run):
        bytes_read.update({k: total for k, (total, _) in count_launch(launch, run).items()})

    with watched(watcher):
        variant.launcher(**inputs)
    assert torch.equal(inputs["z"], expected)
    present = inputs["y"].unique()
    assert bytes_read["grad_ptr"] == 4 * inputs["grad"].numel()
    assert bytes_read["z_ptr"] == 8 * len(present) * size.elements
    absent = ~torch.isin(torch.arange(classes), present)
    assert torch.equal(inputs["z"][absent], before[absent])


@pytest.mark.parametrize("label", [-1, 3, 2**40, -(2**40)])
def test_labels_out_of_range_touch_no_memory(label):
    """`count_launch` raises on any access outside the arguments."""
    y, x = torch.tensor([1, label, 2]), torch.rand(3, 2, 3, 3)
    z, probs = torch.zeros(3, 2, 3, 3), torch.full((3, 3), 1 / 3)
    bank, memory = module("bank_step"), module("memory_update")
    with watched(lambda launch, run: count_launch(launch, run)):
        applied = module("bank_apply")._launch(x, z, y, 0.0, 1.0)
        moved = bank._launch_step(z.clone(), x, y, 0.1, 1.0)
        losses, *_ = module("distill_loss")._launch(probs, probs.clone(), y, 1.0)
        stored, seen = torch.zeros(3, 3), torch.zeros(3, dtype=torch.bool)
        mixed = memory._launch(stored, seen, y, probs, 0.9)
    assert applied[1].isnan().all() and not applied[[0, 2]].isnan().any()
    assert (moved[0] == 0).all() and (moved[1:] != 0).all()
    assert losses.isnan().tolist() == [False, True, False]
    assert mixed[1].isnan().all() and not mixed[[0, 2]].isnan().any()
    assert seen.tolist() == [False, True, True] and not stored.isnan().any()


@pytest.mark.parametrize("name", VARIANTS)
def test_bytes_are_at_the_floor(name):
    """Counted bytes equal what the spec declares: no kernel moves more, no floor is inflated."""
    variant = VARIANTS[name]
    odd = Size(8, 3, 12, 12, 7, 20)
    size = odd if variant.sizes is SIZES else variant.sizes["small"]
    inputs = variant.inputs(size, variant.dtypes[0], CPU)
    floor, counted, launched = variant.pointers(inputs), {}, []

    def watcher(launch, run):
        launched.append(launch)
        for pointer, (total, distinct) in count_launch(launch, run).items():
            moved = distinct if floor[pointer].cached else total
            counted[pointer] = counted.get(pointer, 0) + moved

    with watched(watcher):
        variant.launcher(**inputs)
    assert counted == {pointer: declared.bytes for pointer, declared in floor.items()}
    assert len(launched) == variant.launches


@pytest.mark.parametrize(("channels", "width", "blocks"), [(64, 4, 1), (128, 8, 1), (192, 4, 3)])
def test_convolution_reads_each_pixel_for_each_tap_that_meets_it(channels, width, blocks):
    """What lies beside the image is not read; each block of filters reads the rest once more."""
    conv = VARIANTS["conv3x3, alone"]
    inputs = conv.inputs(Size(1, channels, width, width, 10, 1), torch.float16, CPU)
    counted = {}
    with watched(lambda launch, run: counted.update(count_launch(launch, run))):
        conv.launcher(**inputs)
    meetings = (3 * width - 2) ** 2  # of 9 taps and all pixels: those inside
    assert counted["x_desc"] == (
        2 * channels * meetings * blocks,
        2 * channels * width**2,
    )
    assert counted["weight_desc"] == (2 * 9 * channels**2,) * 2


@pytest.mark.parametrize(("height", "width"), [(8, 32), (4, 32)])
def test_an_image_s_gradient_is_read_once_for_each_row_of_taps(height, width):
    """Three times, but for what lies beside the image."""
    variant, counted = VARIANTS["conv3x3_sign_step"], {}
    inputs = variant.inputs(Size(2, 64, height, width, 10, 1), torch.float16, CPU)
    with watched(lambda launch, run: counted.update(count_launch(launch, run))):
        variant.launcher(**inputs)
    pixels = 2 * width * height
    assert counted["grad_desc"] == (2 * 64 * (3 * pixels - 2 * 2 * width), 2 * 64 * pixels)
    assert counted["weight_desc"][1] == 2 * 3 * 64 * 16
    assert counted["x_ref_ptr"][0] == counted["out_ptr"][0] == 4 * 3 * pixels


@pytest.mark.parametrize(("channels", "width", "blocks"), [(64, 4, 1), (128, 8, 2)])
def test_strided_convolutions_read_each_pixel_for_each_tap_that_meets_it(channels, width, blocks):
    """There and back again: the gradient's four products meet what the convolution met. The
    shortcut meets each pixel of out once."""
    size = Size(1, channels, width, width, 10, 1)
    meetings, pixels = (3 * width - 1) ** 2, width**2
    counted = {}
    for name in ("strided3x3", "strided3x3_backward"):
        inputs = VARIANTS[name].inputs(size, torch.float16, CPU)
        with watched(lambda launch, run: counted.update(count_launch(launch, run))):
            VARIANTS[name].launcher(**inputs)
        filters = 2 * channels
        assert counted["weight_desc"][1] == 2 * 9 * channels * filters
        assert counted["weight1_desc"][1] == 2 * channels * filters
    # A program takes 64 filters, or backward 64 channels, of which there are half as many.
    assert counted["x_desc"][0] == 2 * channels * (meetings + pixels) * 2 * blocks
    assert counted["grad_desc"][0] == 2 * filters * meetings * blocks
    assert counted["grad1_desc"][0] == 2 * filters * pixels * blocks
