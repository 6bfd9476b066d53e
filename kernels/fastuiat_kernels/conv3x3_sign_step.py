"""conv3x3_sign_step: the gradient of an image behind its first convolution, and sign_step by it.

    clip(clip(x' ± alpha·sign(conv(g, w')), x − eps, x + eps), lo, hi)

x and x' (B, C, H, W) images of at most four channels, g (B, K, H, W) the gradient of what a 3×3
convolution of stride 1 with a padding of one zero made of x', all channels-last; w' is its weight
(K, C, 3, 3), flipped and transposed. sign, NaN, ball and box are those of sign_step. The gradient
is never stored, and so never rounded either: its sign, and whether it is zero, are those of the sum
in fp32, where a gradient in fp16 may have underflowed to zero or overflowed.

A product of pixels and 16 columns, a column for each place in a row of taps and each channel: three
rows of taps meet g three times, where nine taps would meet it nine times. What lies above and below
an image a tensor descriptor fills with zeros; then the columns are moved to the left and right by
their taps, and added. A program takes as many whole rows of an image as it holds pixels for.
Repeatable to the bit; where a sum is nothing but rounding, another order of it has another sign.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastuiat_kernels import checks
from fastuiat_kernels.conv3x3 import DTYPES, layer_sizes, wide
from fastuiat_kernels.launch import blocks, takes_tiles, tl, triton, wrap_triton
from fastuiat_kernels.sign_step import add_counts, check_counts, sign_step_reference, take_step
from fastuiat_kernels.spec import (
    Inputs,
    KernelSpec,
    Pointer,
    SampleInputs,
    Size,
    Variant,
    generator,
    images,
)

_SLOTS = 4
"""Columns of a row of taps, and of the channels of one tap: powers of two as `tl` asks."""
_COLUMNS = _SLOTS * _SLOTS
# Four rows of a CIFAR image: 1,024 programs for a batch of 128, of which an H100's multiprocessor
# holds four by their shared memory, with a row of taps of each on its way.
_PIXELS = 128
_FILTERS = 64
_NUM_WARPS = 4
_NUM_STAGES = 3


def pack_image_gradient(weight: Tensor) -> Tensor:
    """(K, C, 3, 3), as nn.Conv2d has it, C at most 4, to (3·K, 16) for `conv3x3_sign_step`: a row
    for each row of taps and filter, a column for each tap in it and channel, zero where there is
    none. In its own dtype."""
    if weight.ndim != 4 or weight.shape[2:] != (3, 3) or weight.shape[1] > _SLOTS:
        raise ValueError(
            f"weight must be (K, C, 3, 3) with C at most {_SLOTS}, got {tuple(weight.shape)}"
        )
    by_rows = weight.flip(2, 3).permute(2, 0, 3, 1)
    spare = (0, _SLOTS - weight.shape[1], 0, _SLOTS - weight.shape[3])
    return torch.nn.functional.pad(by_rows, spare).reshape(-1, _COLUMNS)


def conv3x3_sign_step_reference(
    x_ref: Tensor,
    x_cur: Tensor,
    grad: Tensor,
    packed: Tensor,
    alpha: float,
    eps: float,
    lo: float,
    hi: float,
    counts: Tensor | None = None,
) -> Tensor:
    slots = packed.unflatten(1, (_SLOTS, _SLOTS)).unflatten(0, (3, -1))
    weight = slots[:, :, :3, : x_cur.shape[1]].permute(3, 1, 0, 2)
    weight = wide(weight).contiguous(memory_format=torch.channels_last)
    gradient = torch.nn.functional.conv2d(wide(grad), weight, padding=1)
    return sign_step_reference(x_ref, x_cur, gradient, alpha, eps, lo, hi, counts)


@triton.jit
def _conv3x3_sign_step_kernel(
    grad_desc,
    weight_desc,
    x_ref_ptr,
    x_cur_ptr,
    counts_ptr,
    out_ptr,
    pixels,
    step,
    tiles,
    width,
    filters,
    alpha,
    eps,
    lo,
    hi,
    COUNT: tl.constexpr,
    CHANNELS: tl.constexpr,
    SLOTS: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    IN_ROW: tl.constexpr,
):
    image = tl.program_id(0) // tiles
    start = (tl.program_id(0) % tiles) * step
    total = tl.zeros((PIXELS, SLOTS * SLOTS), tl.float32)
    for part in range(0, 3 * IN_ROW):
        row = part // IN_ROW
        k = (part % IN_ROW) * BLOCK_K
        grad = grad_desc.load([image, start + (row - 1) * width, k]).reshape(PIXELS, BLOCK_K)
        total = tl.dot(grad, weight_desc.load([row * filters + k, 0]), total)
    # Each column of a pixel to its neighbour that the tap is for; none beyond the ends of a row.
    place = tl.arange(0, PIXELS)
    tap = tl.arange(0, SLOTS * SLOTS) // SLOTS
    source = place[:, None] + tap[None, :] - 1
    column = (place % width)[:, None] + tap[None, :] - 1
    there = (column >= 0) & (column < width) & (tap < 3)[None, :]
    moved = tl.gather(total, tl.minimum(tl.maximum(source, 0), PIXELS - 1), 0)
    moved = tl.where(there, moved, 0.0)
    gradient = tl.sum(moved.reshape(PIXELS, SLOTS, SLOTS), 1)
    pixel, channel = start + place, tl.arange(0, SLOTS)
    inside = ((place < step) & (pixel < pixels))[:, None] & (channel < CHANNELS)[None, :]
    offsets = (image.to(tl.int64) * pixels + pixel)[:, None] * CHANNELS + channel[None, :]
    x_ref = tl.load(x_ref_ptr + offsets, mask=inside)
    x_cur = tl.load(x_cur_ptr + offsets, mask=inside)
    out = take_step(x_ref, x_cur, gradient, alpha, eps, lo, hi)
    tl.store(out_ptr + offsets, out, mask=inside)
    if COUNT:
        add_counts(counts_ptr, tl.where(inside, gradient, 1.0))


def _launch(
    x_ref: Tensor,
    x_cur: Tensor,
    grad: Tensor,
    packed: Tensor,
    alpha: float,
    eps: float,
    lo: float,
    hi: float,
    counts: Tensor | None = None,
) -> Tensor:
    from triton.tools.tensor_descriptor import TensorDescriptor

    checks.same_layout_at_launch(x_cur=x_cur, x_ref=x_ref)
    batch, channels, height, width = x_cur.shape
    filters, pixels = grad.shape[1], height * width
    step = _PIXELS // width * width
    tiles = blocks(pixels, step)
    out = torch.empty_like(x_cur)
    wrap_triton(_conv3x3_sign_step_kernel)[(batch * tiles,)](
        TensorDescriptor.from_tensor(
            grad.permute(0, 2, 3, 1).reshape(batch, pixels, filters), [1, _PIXELS, _FILTERS]
        ),
        TensorDescriptor.from_tensor(packed, [_FILTERS, _COLUMNS]),
        x_ref,
        x_cur,
        counts,
        out,
        pixels,
        step,
        tiles,
        width,
        filters,
        alpha,
        eps,
        lo,
        hi,
        COUNT=counts is not None,
        CHANNELS=channels,
        SLOTS=_SLOTS,
        PIXELS=_PIXELS,
        BLOCK_K=_FILTERS,
        IN_ROW=filters // _FILTERS,
        num_warps=_NUM_WARPS,
        num_stages=_NUM_STAGES,
    )
    return out


def _takes(x_ref: Tensor, x_cur: Tensor, grad: Tensor, packed: Tensor) -> bool:
    return (
        takes_tiles(x_ref, x_cur, grad, packed)
        and x_ref.dtype == x_cur.dtype == torch.float32
        and grad.dtype in DTYPES
        and packed.dtype == grad.dtype
        and grad.data_ptr() % 16 == packed.data_ptr() % 16 == 0  # as a descriptor asks
        and grad.shape[1] % _FILTERS == 0
        and grad.shape[3] <= _PIXELS
    )


@torch.library.custom_op("fastuiat::conv3x3_sign_step", mutates_args={"counts"})
def _conv3x3_sign_step(
    x_ref: Tensor,
    x_cur: Tensor,
    grad: Tensor,
    packed: Tensor,
    alpha: float,
    eps: float,
    lo: float,
    hi: float,
    counts: Tensor | None,
) -> Tensor:
    way = _launch if _takes(x_ref, x_cur, grad, packed) else conv3x3_sign_step_reference
    return way(x_ref, x_cur, grad, packed, alpha, eps, lo, hi, counts)


@_conv3x3_sign_step.register_fake
def _(x_ref, x_cur, grad, packed, alpha, eps, lo, hi, counts):  # type: ignore[no-untyped-def]
    return torch.empty_like(x_cur)


def conv3x3_sign_step(
    x_ref: Tensor,
    x_cur: Tensor,
    grad: Tensor,
    packed: Tensor,
    *,
    alpha: float,
    eps: float,
    ascend: bool = True,
    lo: float = 0.0,
    hi: float = 1.0,
    counts: Tensor | None = None,
) -> Tensor:
    """The next attack point, in the dtype and layout of `x_cur`, by the gradient behind the first
    convolution; `ascend=False` descends.

    x_ref, x_cur (B, C, H, W) and grad (B, K, H, W) channels-last, packed (3·K, 16) by
    `pack_image_gradient`; all else as `sign_step`, `counts` too, whose gradients are the elements
    of x_cur's. By the kernel on a GPU that copies tiles by itself (H100, H200, B200), in bf16 or
    fp16 with images in fp32, where 64 divides K and W is at most 128; else by PyTorch's
    convolution, with sums in fp32 at least. Not differentiable. ValueError on other shapes,
    devices or layouts.
    """
    checks.floating(x_ref=x_ref, x_cur=x_cur, grad=grad, packed=packed)
    checks.same_layout(x_cur=x_cur, x_ref=x_ref)
    if x_cur.ndim != 4 or x_cur.shape[1] > _SLOTS:
        raise ValueError(
            f"x_cur must be (B, C, H, W) with C at most {_SLOTS}, got {tuple(x_cur.shape)}"
        )
    batch, _, height, width = x_cur.shape
    if packed.ndim != 2 or packed.shape[0] % 3 or packed.shape[1] != _COLUMNS:
        raise ValueError(f"packed must be (3·K, {_COLUMNS}), got {tuple(packed.shape)}")
    shape = (batch, packed.shape[0] // 3, height, width)
    if grad.shape != shape:
        raise ValueError(f"grad must be {shape}, got {tuple(grad.shape)}")
    checks.same_device(x_cur=x_cur, grad=grad, packed=packed)
    checks.only_channels_last(x_cur=x_cur, grad=grad)
    checks.contiguous(packed=packed)
    check_counts(x_cur, counts)
    signed = alpha if ascend else -alpha
    return _conv3x3_sign_step(x_ref, x_cur, grad, packed, signed, eps, lo, hi, counts)


_CHANNELS = 3


def _inputs(size: Size, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Images, and a gradient and a weight of small whole numbers: their sums are exact in any
    order, and some are zero."""
    random, image = generator(size), Size(**vars(size) | {"channels": _CHANNELS})
    x_ref = images(image, size.batch, random, device)
    moved = 0.06 * (images(image, size.batch, random, device) - 0.5)
    shape = (size.batch, size.height, size.width, size.channels)
    grad = torch.randint(-2, 3, shape, generator=random).to(device, dtype)
    weight = torch.randint(-2, 3, (size.channels, _CHANNELS, 3, 3), generator=random)
    return {
        "x_ref": x_ref,
        "x_cur": (x_ref + moved).clamp(0, 1),
        "grad": grad.permute(0, 3, 1, 2),
        "packed": pack_image_gradient(weight.to(device, dtype)),
        "alpha": 2 / 255,
        "eps": 8 / 255,
        "lo": 0.0,
        "hi": 1.0,
    }


def _counted_inputs(size: Size, dtype: torch.dtype, device: torch.device) -> Inputs:
    inputs = _inputs(size, dtype, device)
    inputs["grad"][:, -1, -1, -1] = float("nan")
    return {**inputs, "counts": torch.zeros(2, dtype=torch.int64, device=device)}


def _pointers(inputs: Inputs) -> dict[str, Pointer]:
    """Without hardware that copies tiles those of descriptors come by one element; an image's, by
    one channel of three."""
    grad, packed, n = inputs["grad"], inputs["packed"], inputs["x_cur"].numel()
    size = grad.element_size()
    pointers = {
        "grad_desc": Pointer(size * grad.numel(), size, cached=True),
        "weight_desc": Pointer(size * packed.numel(), size, cached=True),
    }
    pointers |= {f"{name}_ptr": Pointer(4 * n, 4) for name in ("x_ref", "x_cur", "out")}
    if "counts" in inputs:
        pointers["counts_ptr"] = Pointer(32, 8, cached=True)
    return pointers


def _variant(
    name: str, inputs: SampleInputs, replaces: int, mutates: tuple[str, ...] = ()
) -> Variant:
    return Variant(
        name=name,
        op=conv3x3_sign_step,
        reference=conv3x3_sign_step_reference,
        launcher=_launch,
        inputs=inputs,
        dtypes=DTYPES[::-1],  # fp16, which the interpreter multiplies, first
        pointers=_pointers,
        elements=lambda inputs: inputs["x_cur"].numel(),
        launches=1,
        replaces=replaces,
        mutates=mutates,
        sizes=layer_sizes(64, 32, Size(3, 64, 10, 19, 10, 1)),
        flops=lambda inputs: 2 * 9 * inputs["grad"].numel() * inputs["x_cur"].shape[1],
        by_tiles=True,
    )


SPEC = KernelSpec(
    "conv3x3_sign_step",
    "clip(clip(x' ± alpha·sign(conv(g, w')), x − eps, x + eps), lo, hi)",
    (
        _variant("conv3x3_sign_step", _inputs, 11),
        _variant("conv3x3_sign_step, counted", _counted_inputs, 21, ("counts",)),
    ),
)
