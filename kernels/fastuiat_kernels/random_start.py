"""random_start: clip(x + noise, lo, hi), the first point of an attack.

    uniform: noise = eps·(2u − 1), u ∈ [0, 1)        normal: noise = eps·n, n ~ N(0, 1)

Shapes: x (B, C, H, W) channels-last or contiguous, index int64 (B,), key int64 (2,). Noise is
numbered in NHWC order whatever the layout of x, so both get the same values, for any block size.
Uniform starts are equal bit for bit on every device; normals to 4 ulp. The kernel takes fp32 x;
other dtypes the reference.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.library import triton_op

from fastuiat_kernels import checks
from fastuiat_kernels.launch import blocks, takes_kernel, tl, triton, wrap_triton
from fastuiat_kernels.philox import (
    noise_key,
    normal,
    normal_pair,
    philox_uint32,
    philox_words,
    uniform,
    unit_uniform,
)
from fastuiat_kernels.spec import (
    Inputs,
    KernelSpec,
    Pointer,
    SampleInputs,
    Size,
    Tolerance,
    Variant,
    generator,
    images,
)

# A group of four numbers per 16-byte access and two of them per thread (128 threads): Philox keeps
# a dozen words alive per group, and more groups per thread would only add registers.
_BLOCK = 1024
_NUM_WARPS = 4


def random_start_reference(
    x: Tensor, index: Tensor, key: Tensor, *, eps: float, kind: str, lo: float, hi: float
) -> Tensor:
    batch, channels, height, width = x.shape
    elements = channels * height * width
    words = philox_uint32(key.to(x.device), index, -(-elements // 4))
    noise = uniform(words) * 2 - 1 if kind == "uniform" else normal(words)
    noise = noise[:, :elements].reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    return (x + eps * noise).clamp(lo, hi)


@triton.jit
def _numbers(w0, w1, w2, w3, NORMAL: tl.constexpr):
    if NORMAL:
        n0, n1 = normal_pair(w0, w1)
        n2, n3 = normal_pair(w2, w3)
    else:
        n0, n1 = unit_uniform(w0) * 2 - 1, unit_uniform(w1) * 2 - 1
        n2, n3 = unit_uniform(w2) * 2 - 1, unit_uniform(w3) * 2 - 1
    return n0, n1, n2, n3


@triton.jit
def _random_start_kernel(
    x_ptr,
    index_ptr,
    key_ptr,
    out_ptr,
    eps,
    lo,
    hi,
    CHANNELS: tl.constexpr,
    PIXELS: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    NORMAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    elements: tl.constexpr = CHANNELS * PIXELS
    sample = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    offsets = first + tl.arange(0, BLOCK)
    if CHANNELS_LAST:  # storage order is the noise's: each group is four neighbours
        group = first // 4 + tl.arange(0, BLOCK // 4)
        w0, w1, w2, w3 = philox_words(key_ptr, index_ptr, sample, group)
        n0, n1, n2, n3 = _numbers(w0, w1, w2, w3, NORMAL)
        noise = tl.reshape(tl.join(tl.join(n0, n2), tl.join(n1, n3)), [BLOCK])
    else:  # neighbours belong to other groups: each makes its group and keeps one number
        position = (offsets % PIXELS) * CHANNELS + offsets // PIXELS
        w0, w1, w2, w3 = philox_words(key_ptr, index_ptr, sample, position // 4)
        n0, n1, n2, n3 = _numbers(w0, w1, w2, w3, NORMAL)
        place = position % 4
        noise = tl.where(place < 2, tl.where(place == 0, n0, n1), tl.where(place == 2, n2, n3))
    inside = offsets < elements
    x = tl.load(x_ptr + sample * elements + offsets, mask=inside)
    # Fused with 0, the product is rounded before the sum, as in the reference.
    out = x + tl.fma(noise, tl.cast(eps, tl.float32), 0.0)
    out = tl.maximum(out, tl.cast(lo, tl.float32), propagate_nan=tl.PropagateNan.ALL)
    out = tl.minimum(out, tl.cast(hi, tl.float32), propagate_nan=tl.PropagateNan.ALL)
    tl.store(out_ptr + sample * elements + offsets, out, mask=inside)


def _launch(
    x: Tensor, index: Tensor, key: Tensor, eps: float, kind: str, lo: float, hi: float
) -> Tensor:
    batch, channels, height, width = x.shape
    out = torch.empty_like(x)
    grid = (batch, blocks(channels * height * width, _BLOCK))
    wrap_triton(_random_start_kernel)[grid](
        x,
        index,
        key,
        out,
        eps,
        lo,
        hi,
        CHANNELS=channels,
        PIXELS=height * width,
        CHANNELS_LAST=checks.channels_last("x", x),
        NORMAL=kind == "normal",
        BLOCK=_BLOCK,
        num_warps=_NUM_WARPS,
    )
    return out


@triton_op("fastuiat::random_start", mutates_args={})
def _random_start(
    x: Tensor, index: Tensor, key: Tensor, eps: float, kind: str, lo: float, hi: float
) -> Tensor:
    if x.is_cuda:
        return _launch(x, index, key, eps, kind, lo, hi)
    return random_start_reference(x, index, key, eps=eps, kind=kind, lo=lo, hi=hi)


def random_start(
    x: Tensor,
    index: Tensor,
    key: Tensor,
    *,
    eps: float,
    kind: Literal["uniform", "normal"] = "uniform",
    lo: float = 0.0,
    hi: float = 1.0,
) -> Tensor:
    """A random point near x (B, C, H, W), in x's layout.

    `eps` is the half-width of the uniform, or the standard deviation of the normal, in pixel units;
    `index` int64 (B,) the samples' numbers, any int64; `key` int64 (2,) from `noise_key`. NaN in x
    stays NaN. ValueError on an integer x, another layout, a wrong index, key or kind. Noise:
    Salmon et al., SC 2011.
    """
    checks.floating(x=x)
    checks.channels_last("x", x)
    checks.same_device(x=x, index=index)
    checks.indices("index", index, 2**63 - 1, x.shape[0])
    if key.dtype != torch.int64 or key.shape != (2,):
        raise ValueError(f"key must be int64 of shape (2,), got {key.dtype} {tuple(key.shape)}")
    if kind not in ("uniform", "normal"):
        raise ValueError(f"kind must be 'uniform' or 'normal', got {kind!r}")
    if takes_kernel(x) and x.dtype == torch.float32:
        return _random_start(x, index, key.to(x.device), eps, kind, lo, hi)
    return random_start_reference(x, index, key, eps=eps, kind=kind, lo=lo, hi=hi)


def _inputs(kind: str, channels_last: bool) -> SampleInputs:
    def inputs(size: Size, dtype: torch.dtype, device: torch.device) -> Inputs:
        random = generator(size)
        x = images(size, size.batch, random, device)
        return {
            "x": x if channels_last else x.contiguous(),
            "index": torch.randperm(size.samples, generator=random)[: size.batch].to(device),
            "key": noise_key(0, stream="sample").to(device),
            "eps": 8 / 255,
            "kind": kind,
            "lo": 0.0,
            "hi": 1.0,
        }

    return inputs


def _pointers(inputs: Inputs) -> dict[str, Pointer]:
    n = inputs["x"].numel()
    return {
        "x_ptr": Pointer(4 * n, 16),
        "out_ptr": Pointer(4 * n, 16),
        "index_ptr": Pointer(8 * inputs["index"].numel(), 8, cached=True),
        "key_ptr": Pointer(16, 4, cached=True),  # of each word only the lower half counts
    }


def _variant(kind: str, channels_last: bool, replaces: int) -> Variant:
    return Variant(
        name=f"random_start, {kind}, {'channels-last' if channels_last else 'contiguous'}",
        op=random_start,
        reference=random_start_reference,
        launcher=_launch,
        inputs=_inputs(kind, channels_last),
        dtypes=(torch.float32,),
        pointers=_pointers,
        elements=lambda inputs: inputs["x"].numel(),
        launches=1,
        replaces=replaces,
        # x + eps·n: 4 ulp of a normal of up to 5.8 times eps = 8/255 stay below one ulp of 1.
        tolerance=None if kind == "uniform" else Tolerance(rtol=0, atol=2.0**-23),
    )


SPEC = KernelSpec(
    "random_start",
    "clip(x + eps·(2u − 1), lo, hi) or clip(x + eps·n, lo, hi)",
    (
        _variant("uniform", True, 274),
        _variant("uniform", False, 274),
        _variant("normal", True, 285),
        _variant("normal", False, 285),
    ),
)
