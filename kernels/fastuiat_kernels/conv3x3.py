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

import functools
from typing import Any

import torch
from torch import Tensor

from fastuiat_kernels import checks
from fastuiat_kernels.conv3x3_kernel import TAPS, Tile, empty_image, launch, tile_for
from fastuiat_kernels.launch import takes_tiles
from fastuiat_kernels.spec import (
    SIZES,
    Inputs,
    KernelSpec,
    Pointer,
    Size,
    Tolerance,
    Variant,
    generator,
    gradients,
)

DTYPES = (torch.bfloat16, torch.float16)


def wide(tensor: Tensor) -> Tensor:
    """In fp32 at least: sums are rounded once, at the end."""
    return tensor if tensor.dtype == torch.float64 else tensor.to(torch.float32)


def unpacked(packed: Tensor, channels: int) -> Tensor:
    """(9·C, K) back to (K, C, 3, 3)."""
    return packed.unflatten(0, (3, 3, channels)).permute(3, 2, 0, 1)


def _product(x: Tensor, packed: Tensor) -> Tensor:
    weight = wide(unpacked(packed, x.shape[1])).contiguous(memory_format=torch.channels_last)
    return torch.nn.functional.conv2d(wide(x), weight, padding=1)


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
        total = total + wide(shift)[:, None, None]
    if residual is not None:
        total = total + wide(residual)
    outs = [total.relu() if relu else total]
    if scale is not None and second_shift is not None:
        scaled = wide(scale)[:, None, None] * total + wide(second_shift)[:, None, None]
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
        total = total + wide(residual)
    if mask is not None:
        total = torch.where(mask > 0, total, 0.0)
    if residual is not None and not both:
        total = total + wide(residual)
    return total.to(grad.dtype).contiguous(memory_format=torch.channels_last)


def _launch_backward(
    grad: Tensor,
    packed: Tensor,
    mask: Tensor | None = None,
    residual: Tensor | None = None,
    both: bool = True,
) -> Tensor:
    return launch(grad, packed, residual=residual, mask=mask, both=both)[0]


def _takes(x: Tensor, packed: Tensor) -> bool:
    return (
        takes_tiles(x, packed)
        and x.dtype in DTYPES
        and packed.dtype == x.dtype
        and x.data_ptr() % 16 == packed.data_ptr() % 16 == 0  # as a descriptor asks
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
    way = launch if _takes(x, packed) else conv3x3_reference
    return way(x, packed, shift, residual, relu, scale, second_shift)


@_conv3x3.register_fake
def _(x, packed, shift, residual, relu, scale, second_shift):  # type: ignore[no-untyped-def]
    made = 1 if scale is None else 2
    return [_like(x, packed.shape[1]) for _ in range(made)]


@torch.library.custom_op("fastuiat::conv3x3_backward", mutates_args=())
def _conv3x3_backward(
    grad: Tensor, packed: Tensor, mask: Tensor | None, residual: Tensor | None, both: bool
) -> Tensor:
    way = _launch_backward if _takes(grad, packed) else conv3x3_backward_reference
    return way(grad, packed, mask, residual, both)


@_conv3x3_backward.register_fake
def _(grad, packed, mask, residual, both):  # type: ignore[no-untyped-def]
    return _like(grad, packed.shape[1])


def _like(x: Tensor, filters: int) -> Tensor:
    return empty_image(x, filters, *x.shape[2:])


def pack_conv3x3(weight: Tensor, *, backward: bool = False) -> Tensor:
    """(K, C, 3, 3), as nn.Conv2d has it, to (9·C, K); `backward`: to (9·K, C), flipped and
    transposed, with which the same product is the gradient of the input. In its own dtype."""
    if weight.ndim != 4 or weight.shape[2:] != (3, 3):
        raise ValueError(f"weight must be (K, C, 3, 3), got {tuple(weight.shape)}")
    if backward:
        weight = weight.flip(2, 3).transpose(0, 1)
    # A channels-last weight would come as a view whose rows do not follow each other.
    return weight.permute(2, 3, 1, 0).reshape(-1, weight.shape[0]).contiguous()


def _checked(name: str, x: Tensor, packed: Tensor, **same: Tensor | None) -> None:
    checks.floating(**{name: x}, packed=packed)
    if x.ndim != 4:
        raise ValueError(f"{name} must be (B, C, H, W), got {tuple(x.shape)}")
    if packed.ndim != 2 or packed.shape[0] != TAPS * x.shape[1]:
        raise ValueError(
            f"packed must be ({TAPS * x.shape[1]}, K) for {x.shape[1]} channels, got "
            f"{tuple(packed.shape)}"
        )
    shape = (x.shape[0], packed.shape[1], *x.shape[2:])
    for other, tensor in same.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{other} must be {shape}, got {tuple(tensor.shape)}")
    present = {other: tensor for other, tensor in same.items() if tensor is not None}
    checks.same_device(**{name: x}, packed=packed, **present)
    checks.only_channels_last(**{name: x}, **present)
    checks.contiguous(packed=packed)


def per_filter(packed: Tensor, **vectors: Tensor | None) -> None:
    """Each is (K,), or None; ValueError that names one which is not."""
    for name, vector in vectors.items():
        if vector is not None:
            if vector.shape != packed.shape[1:]:
                raise ValueError(f"{name} must be ({packed.shape[1]},), got {tuple(vector.shape)}")
            checks.same_device(packed=packed, **{name: vector})
            checks.contiguous(**{name: vector})


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
    Padding 1, stride 1. By the kernel on a GPU that copies tiles by itself (H100, H200, B200) in
    bf16 or fp16 where 64 divides C and K and the image is 32, 16, 8 or 4 pixels wide and high; else
    by PyTorch's convolution, with sums in fp32 at least. Not differentiable. ValueError on other
    shapes, devices or layouts.
    """
    packed = weight if weight.ndim == 2 else pack_conv3x3(weight)
    scale, second_shift = second or (None, None)
    _checked("x", x, packed, residual=residual)
    per_filter(packed, shift=shift, scale=scale, second_shift=second_shift)
    return _given(_conv3x3(x, packed, shift, residual, relu, scale, second_shift))


def _given(outs: list[Tensor]) -> Tensor | tuple[Tensor, Tensor]:
    """[out], or [out, second], as `conv3x3` returns it."""
    return outs[0] if len(outs) == 1 else (outs[0], outs[1])


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


def layer_sizes(channels: int, width: int, small: Size) -> dict[str, Size]:
    """A layer of resnet-18, which has as many filters as channels, for bench and the compiler at
    the batches of these names; `small` for the interpreter."""
    batches = {"cifar10": 128, "cifar100": 512, "classes1000": 4096}
    layers = {
        name: Size(batch, channels, width, width, SIZES[name].classes, 1)
        for name, batch in batches.items()
    }
    return layers | {"small": small}


_SMALL = Size(3, 64, 4, 4, 10, 1)
_SPLIT = Tile(images=8, rows=4, filters=64, split=2)


def _op(
    scale: Tensor | None = None, second_shift: Tensor | None = None, **inputs: Any
) -> Tensor | tuple[Tensor, Tensor]:
    """`conv3x3` by the operator's names."""
    second = None if scale is None or second_shift is None else (scale, second_shift)
    return conv3x3(inputs.pop("x"), inputs.pop("packed"), second=second, **inputs)


def _inputs(size: Size, dtype: torch.dtype, device: torch.device, *given: str) -> Inputs:
    """x, packed, and those of the others that are named; the values of a layer behind another."""
    random, channels = generator(size), size.channels
    images = [gradients(size, dtype, random, device) for _ in range(2)]
    weight = torch.randn(channels, channels, 3, 3, generator=random) / (4.5 * channels) ** 0.5
    vectors = torch.randn(3, channels, generator=random).to(device)
    return {
        "x": images[0].relu(),
        "packed": pack_conv3x3(weight).to(device, dtype),
        "shift": vectors[0] if "shift" in given else None,
        "residual": images[1] if "residual" in given else None,
        "relu": "relu" in given,
        "scale": vectors[1] if "second" in given else None,
        "second_shift": vectors[2] if "second" in given else None,
    }


def _backward_inputs(size: Size, dtype: torch.dtype, device: torch.device, both: bool) -> Inputs:
    inputs = _inputs(size, dtype, device, "residual")
    mask = gradients(size, dtype, generator(size), device).relu()
    names = {"grad": inputs["x"] - 0.5, "packed": inputs["packed"], "mask": mask}
    return names | {"residual": inputs["residual"], "both": both}


def _pointers(inputs: Inputs, split: int = 1) -> dict[str, Pointer]:
    """Without hardware that copies tiles these come by one element."""
    x = inputs["x"] if "x" in inputs else inputs["grad"]
    packed, size = inputs["packed"], x.element_size()
    filters = packed.shape[1]
    of_out = size * filters * x.numel() // x.shape[1]
    pointers = {
        "x_desc": Pointer(size * x.numel(), size, cached=True),
        "weight_desc": Pointer(size * packed.numel(), size, cached=True),
        "out_ptr": Pointer(of_out, 16),
    }
    for name in ("shift", "scale", "second_shift"):
        if inputs.get(name) is not None:
            pointers[f"{name}_ptr"] = Pointer(4 * filters, 4, cached=True)
    for name in ("residual", "mask"):
        if inputs.get(name) is not None:
            pointers[f"{name}_ptr"] = Pointer(of_out, 16)
    if inputs.get("scale") is not None:
        pointers["second_ptr"] = Pointer(of_out, 16)
    if split > 1:
        pointers["part_ptr"] = Pointer(2 * split * 4 * (of_out // size), 16)
    return pointers


def _out_elements(inputs: Inputs) -> int:
    x = inputs["x"] if "x" in inputs else inputs["grad"]
    return x.numel() // x.shape[1] * inputs["packed"].shape[1]


def _variant(
    name: str, *given: str, replaces: int, sizes: dict[str, Size], split: Tile | None = None
) -> Variant:
    return Variant(
        name=name,
        op=_op,
        reference=lambda **inputs: _given(conv3x3_reference(**inputs)),
        launcher=lambda **inputs: _given(launch(**inputs, tile=split)),
        inputs=lambda *where: _inputs(*where, *given),
        pointers=functools.partial(_pointers, split=split.split if split else 1),
        launches=2 if split else 1,
        replaces=replaces,
        sizes=sizes,
        **_SAME,
    )


def _backward_variant(name: str, *, both: bool, replaces: int, sizes: dict[str, Size]) -> Variant:
    return Variant(
        name=name,
        op=lambda both, **inputs: conv3x3_backward(**inputs, masked="both" if both else "product"),
        reference=conv3x3_backward_reference,
        launcher=_launch_backward,
        inputs=functools.partial(_backward_inputs, both=both),
        pointers=_pointers,
        launches=1,
        replaces=replaces,
        sizes=sizes,
        **_SAME,
    )


_SAME: dict[str, Any] = {
    "dtypes": DTYPES,
    "elements": _out_elements,
    "flops": lambda inputs: 2 * inputs["packed"].shape[0] * _out_elements(inputs),
    "by_tiles": True,
    "tolerance": Tolerance(rtol=1e-5, atol=1e-4, roundings=1),
}

SPEC = KernelSpec(
    "conv3x3",
    "conv(x, w) + shift + residual, then max(·, 0) and a second max(scale·sum + b, 0); the "
    "gradient of x, masked",
    (
        _variant(
            "conv3x3", "shift", "residual", "relu", replaces=9, sizes=layer_sizes(64, 32, _SMALL)
        ),
        _variant("conv3x3, alone", replaces=5, sizes=layer_sizes(64, 16, Size(1, 64, 8, 8, 10, 1))),
        _variant(
            "conv3x3, second",
            "shift",
            "residual",
            "second",
            replaces=12,
            sizes=layer_sizes(128, 16, _SMALL),
        ),
        _variant(
            "conv3x3, split",
            "shift",
            "residual",
            "relu",
            replaces=9,
            sizes=layer_sizes(512, 4, Size(3, 128, 4, 4, 10, 1)),
            split=_SPLIT,
        ),
        _backward_variant(
            "conv3x3_backward, both", both=True, replaces=10, sizes=layer_sizes(256, 8, _SMALL)
        ),
        _backward_variant(
            "conv3x3_backward, product", both=False, replaces=10, sizes=layer_sizes(512, 4, _SMALL)
        ),
    ),
)
