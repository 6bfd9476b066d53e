"""What a ResNet's block that halves the image does first: both of its convolutions of stride 2.

    out = max(conv3×3(x, w, stride 2) + s, 0)        shortcut = conv1×1(x, v, stride 2) + t
    gradient of x = (conv3×3's of g + conv1×1's of g′)·[mask > 0]

x (B, C, H, W), out and shortcut (B, K, H/2, W/2), channels-last, bf16 or fp16 with sums in fp32
that are rounded once; w (K, C, 3, 3) with a padding of one zero and v (K, C, 1, 1), packed to
(9·C, K) and (C, K).

The way is that of conv3x3.py: a product of filters and pixels over taps and channels. The image is
read as (B, H/2, 2, W/2, 2·C), in which every second pixel is a neighbour. The gradient of pixels in
even and odd rows and columns meets 1, 2, 2 and 4 taps: four products in one launch. Repeatable to
the bit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fastuiat_kernels import checks
from fastuiat_kernels.conv3x3 import DTYPES, layer_sizes, per_filter, wide
from fastuiat_kernels.conv3x3_kernel import TAPS, empty_image
from fastuiat_kernels.launch import takes_tiles
from fastuiat_kernels.spec import (
    Inputs,
    KernelSpec,
    Pointer,
    Size,
    Tolerance,
    Variant,
    generator,
    gradients,
)
from fastuiat_kernels.strided3x3_kernel import launch, launch_backward, takes_layer


def _unpacked(packed: Tensor, rows: int, backward: bool) -> Tensor:
    """Back to (K, C, n, n), in fp32 at least; `rows` of each tap."""
    size = 3 if packed.shape[0] == TAPS * rows else 1
    weight = packed.unflatten(0, (size, size, rows))
    weight = weight.permute(2, 3, 0, 1) if backward else weight.permute(3, 2, 0, 1)
    return wide(weight).contiguous(memory_format=torch.channels_last)


def _rounded(total: Tensor, dtype: torch.dtype) -> Tensor:
    return total.to(dtype).contiguous(memory_format=torch.channels_last)


def strided3x3_reference(
    x: Tensor, packed: Tensor, shift: Tensor, packed1: Tensor, shift1: Tensor
) -> tuple[Tensor, Tensor]:
    conv, image, channels = torch.nn.functional.conv2d, wide(x), x.shape[1]
    out = conv(image, _unpacked(packed, channels, False), stride=2, padding=1)
    short = conv(image, _unpacked(packed1, channels, False), stride=2)
    out = (out + wide(shift)[:, None, None]).relu()
    short = short + wide(shift1)[:, None, None]
    return _rounded(out, x.dtype), _rounded(short, x.dtype)


def strided3x3_backward_reference(
    grad: Tensor, grad1: Tensor, packed: Tensor, packed1: Tensor, mask: Tensor | None = None
) -> Tensor:
    weight, weight1 = (_unpacked(p, grad.shape[1], True) for p in (packed, packed1))
    transposed = torch.nn.functional.conv_transpose2d
    total = transposed(wide(grad), weight, stride=2, padding=1, output_padding=1)
    total = total + transposed(wide(grad1), weight1, stride=2, output_padding=1)
    if mask is not None:
        total = torch.where(mask > 0, total, 0.0)
    return _rounded(total, grad.dtype)


def _takes(height: int, width: int, image: Tensor, *others: Tensor) -> bool:
    """Whether the kernel takes what a descriptor reads: an image, others, and the weights last."""
    return (
        takes_tiles(image, *others)
        and image.dtype in DTYPES
        and all(tensor.dtype == image.dtype for tensor in others)
        and all(tensor.data_ptr() % 16 == 0 for tensor in (image, *others))  # as it asks
        and takes_layer(height, width, image.shape[1], others[-1].shape[1])
    )


@torch.library.custom_op("fastuiat::strided3x3", mutates_args=())
def _strided3x3(
    x: Tensor, packed: Tensor, shift: Tensor, packed1: Tensor, shift1: Tensor
) -> tuple[Tensor, Tensor]:
    takes = _takes(x.shape[2] // 2, x.shape[3] // 2, x, packed, packed1)
    way = launch if takes else strided3x3_reference
    return way(x, packed, shift, packed1, shift1)


@_strided3x3.register_fake
def _(x, packed, shift, packed1, shift1):  # type: ignore[no-untyped-def]
    shape = packed.shape[1], x.shape[2] // 2, x.shape[3] // 2
    return empty_image(x, *shape), empty_image(x, *shape)


@torch.library.custom_op("fastuiat::strided3x3_backward", mutates_args=())
def _strided3x3_backward(
    grad: Tensor, grad1: Tensor, packed: Tensor, packed1: Tensor, mask: Tensor | None
) -> Tensor:
    takes = _takes(*grad.shape[2:], grad, grad1, packed, packed1)
    way = launch_backward if takes else strided3x3_backward_reference
    return way(grad, grad1, packed, packed1, mask)


@_strided3x3_backward.register_fake
def _(grad, grad1, packed, packed1, mask):  # type: ignore[no-untyped-def]
    return empty_image(grad, packed.shape[1], 2 * grad.shape[2], 2 * grad.shape[3])


def pack_strided(weight: Tensor, *, backward: bool = False) -> Tensor:
    """(K, C, n, n), as nn.Conv2d has it, n 3 or 1, to (n²·C, K); `backward`: to (n²·K, C), taps in
    the same order. In its own dtype; it may share its memory."""
    if weight.ndim != 4 or weight.shape[2:] not in ((3, 3), (1, 1)):
        raise ValueError(f"weight must be (K, C, 3, 3) or (K, C, 1, 1), got {tuple(weight.shape)}")
    order = (2, 3, 0, 1) if backward else (2, 3, 1, 0)
    return weight.permute(order).reshape(-1, weight.shape[1 if backward else 0]).contiguous()


def _check_weights(image: Tensor, packed: Tensor, packed1: Tensor) -> None:
    rows = image.shape[1]
    if packed.ndim != 2 or packed.shape[0] != TAPS * rows:
        raise ValueError(
            f"packed must be ({TAPS * rows}, n) for {rows} channels, got {tuple(packed.shape)}"
        )
    if packed1.shape != (rows, packed.shape[1]):
        raise ValueError(f"packed1 must be {(rows, packed.shape[1])}, got {tuple(packed1.shape)}")
    checks.contiguous(packed=packed, packed1=packed1)


def strided3x3(
    x: Tensor, packed: Tensor, shift: Tensor, packed1: Tensor, shift1: Tensor
) -> tuple[Tensor, Tensor]:
    """(out, shortcut), each (B, K, H/2, W/2), of x (B, C, H, W) channels-last, H and W even.

    packed (9·C, K) and packed1 (C, K) by `pack_strided`; shifts (K,), fp32 on a GPU. NaN stays NaN.
    By the kernel on a GPU that copies tiles by itself (H100, H200, B200) in bf16 or fp16 where 64
    divides C and K and the image is 32, 16 or 8 pixels wide and high; else by PyTorch's
    convolutions, with sums in fp32 at least. Not differentiable. ValueError on other shapes,
    devices or layouts.
    """
    checks.floating(x=x, packed=packed, shift=shift, packed1=packed1, shift1=shift1)
    if x.ndim != 4 or x.shape[2] % 2 or x.shape[3] % 2:
        raise ValueError(f"x must be (B, C, H, W) with even H and W, got {tuple(x.shape)}")
    _check_weights(x, packed, packed1)
    checks.same_device(x=x, packed=packed, packed1=packed1)
    checks.only_channels_last(x=x)
    per_filter(packed, shift=shift, shift1=shift1)
    return _strided3x3(x, packed, shift, packed1, shift1)


def strided3x3_backward(
    grad: Tensor, grad1: Tensor, packed: Tensor, packed1: Tensor, mask: Tensor | None = None
) -> Tensor:
    """The gradient (B, C, H, W) of x from those of the two sums, (B, K, H/2, W/2) each.

    packed (9·K, C) and packed1 (K, C) by `pack_strided(…, backward=True)`. `mask` (B, C, H, W) is a
    stored activation: no gradient comes through where it is not above 0. Otherwise as `strided3x3`.
    """
    checks.floating(grad=grad, grad1=grad1, packed=packed, packed1=packed1)
    if grad.ndim != 4:
        raise ValueError(f"grad must be (B, K, H, W), got {tuple(grad.shape)}")
    if grad1.shape != grad.shape:
        raise ValueError(f"grad1 must be {tuple(grad.shape)}, got {tuple(grad1.shape)}")
    _check_weights(grad, packed, packed1)
    batch, _, height, width = grad.shape
    shape = (batch, packed.shape[1], 2 * height, 2 * width)
    if mask is not None and mask.shape != shape:
        raise ValueError(f"mask must be {shape}, got {tuple(mask.shape)}")
    present = {} if mask is None else {"mask": mask}
    checks.same_device(grad=grad, grad1=grad1, packed=packed, packed1=packed1, **present)
    checks.only_channels_last(grad=grad, grad1=grad1, **present)
    return _strided3x3_backward(grad, grad1, packed, packed1, mask)


def _inputs(size: Size, dtype: torch.dtype, device: torch.device, *, backward: bool) -> Inputs:
    """Weights and shifts of a layer with twice as many filters as channels, whose out is of `size`
    but for them; names end on 1 where they are the shortcut's."""
    random, channels = generator(size), size.channels
    filters = 2 * channels
    weights = {
        "packed": torch.randn(filters, channels, 3, 3, generator=random) / (4.5 * channels) ** 0.5,
        "packed1": torch.randn(filters, channels, 1, 1, generator=random) / channels**0.5,
    }
    packed = {
        name: pack_strided(weight, backward=backward).to(device, dtype)
        for name, weight in weights.items()
    }
    larger = replace(size, height=2 * size.height, width=2 * size.width)
    x = gradients(larger, dtype, random, device).relu()
    if backward:
        of_out = replace(size, channels=filters)
        names = ("grad", "grad1")
        return {n: gradients(of_out, dtype, random, device) for n in names} | packed | {"mask": x}
    shift, shift1 = torch.randn(2, filters, generator=random).to(device)
    return {"x": x} | packed | {"shift": shift, "shift1": shift1}


def _pointers(inputs: Inputs) -> dict[str, Pointer]:
    x, packed = inputs["x"], inputs["packed"]
    size, filters = x.element_size(), packed.shape[1]
    of_out = size * filters * (x.numel() // x.shape[1] // 4)
    return {
        "x_desc": Pointer(size * x.numel(), size, cached=True),
        **_weight_pointers(inputs),
        "shift_ptr": Pointer(4 * filters, 4, cached=True),
        "shift1_ptr": Pointer(4 * filters, 4, cached=True),
        "out_ptr": Pointer(of_out, 16),
        "short_ptr": Pointer(of_out, 16),
    }


def _backward_pointers(inputs: Inputs) -> dict[str, Pointer]:
    grad = inputs["grad"]
    size = grad.element_size()
    of_x = size * inputs["packed"].shape[1] * 4 * (grad.numel() // grad.shape[1])
    pointers = {
        "grad_desc": Pointer(size * grad.numel(), size, cached=True),
        "grad1_desc": Pointer(size * grad.numel(), size, cached=True),
        **_weight_pointers(inputs),
        "out_ptr": Pointer(of_x, 16),
    }
    return pointers if inputs["mask"] is None else pointers | {"mask_ptr": Pointer(of_x, 16)}


def _weight_pointers(inputs: Inputs) -> dict[str, Pointer]:
    """As all that comes by a descriptor: by one element without hardware that copies tiles."""
    named = {"weight_desc": inputs["packed"], "weight1_desc": inputs["packed1"]}
    return {
        name: Pointer(t.element_size() * t.numel(), t.element_size(), cached=True)
        for name, t in named.items()
    }


def _out_pixels(inputs: Inputs) -> int:
    if "x" in inputs:
        return inputs["x"].numel() // inputs["x"].shape[1] // 4
    return inputs["grad"].numel() // inputs["grad"].shape[1]


def _flops(inputs: Inputs) -> int:
    return 2 * _out_pixels(inputs) * (inputs["packed"].numel() + inputs["packed1"].numel())


_OF_RESNET18 = {
    f"{channels} at {2 * width}": Size(128, channels, width, width, 10, 1)
    for channels, width in ((64, 16), (128, 8), (256, 4))
}
"""Channels and width of x; each goes by a tile of its own."""


def _sizes(channels: int, width: int) -> dict[str, Size]:
    """Of out, but for the channels, which are those of x."""
    return layer_sizes(channels, width, Size(3, 64, 4, 4, 10, 1)) | _OF_RESNET18


_SAME: dict[str, Any] = {
    "dtypes": DTYPES,
    "launches": 1,
    "audit_sizes": tuple(_OF_RESNET18),
    "flops": _flops,
    "by_tiles": True,
    "tolerance": Tolerance(rtol=1e-5, atol=1e-4, roundings=1),
}


def _backward_variant(name: str, *, masked: bool, replaces: int, sizes: dict[str, Size]) -> Variant:
    def inputs(size: Size, dtype: torch.dtype, device: torch.device) -> Inputs:
        made = _inputs(size, dtype, device, backward=True)
        return made if masked else made | {"mask": None}

    return Variant(
        name=name,
        op=strided3x3_backward,
        reference=strided3x3_backward_reference,
        launcher=launch_backward,
        inputs=inputs,
        pointers=_backward_pointers,
        elements=lambda inputs: 4 * _out_pixels(inputs) * inputs["packed"].shape[1],
        replaces=replaces,
        sizes=sizes,
        **_SAME,
    )


SPEC = KernelSpec(
    "strided3x3",
    "max(conv3×3(x, w, stride 2) + s, 0) and conv1×1(x, v, stride 2) + t; the gradient of x, "
    "masked",
    (
        Variant(
            name="strided3x3",
            op=strided3x3,
            reference=strided3x3_reference,
            launcher=launch,
            inputs=lambda *where: _inputs(*where, backward=False),
            pointers=_pointers,
            elements=lambda inputs: 2 * _out_pixels(inputs) * inputs["packed"].shape[1],
            replaces=12,
            sizes=_sizes(64, 16),
            **_SAME,
        ),
        _backward_variant("strided3x3_backward", masked=False, replaces=9, sizes=_sizes(256, 4)),
        _backward_variant(
            "strided3x3_backward, masked",
            masked=True,
            replaces=12,
            sizes=_sizes(128, 8),
        ),
    ),
)
