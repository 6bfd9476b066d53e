"""Counter-based noise: Philox 4×32-10 (Salmon et al., SC 2011).

A number is a pure function of (key, sample index, position), so the same sample meets the same
noise in any batch, on any device, with any block size. `key` holds the two 32-bit words of the
Philox key as int64; the counter is (group, 0, index low, index high), and group g yields the
numbers at positions 4g … 4g+3. Integers and uniforms are equal bit for bit on every device.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor

from fastuiat_kernels.launch import tl, triton

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


class Noise(NamedTuple):
    """What fixes the noise of a batch: `key` int64 (2,), `index` int64 (B,) sample indices."""

    key: Tensor
    index: Tensor  # type: ignore[assignment]  # tuple.index is shadowed on purpose


def noise_key(seed: int, epoch: int = 0, step: int = 0, stream: str = "") -> Tensor:
    """The key of one stream of noise: int64 (2,) on the CPU, each word in 0 … 2³²−1."""
    digest = hashlib.sha256(repr((seed, epoch, step, stream)).encode()).digest()
    words = [int.from_bytes(digest[i : i + 4], "little") for i in (0, 4)]
    return torch.tensor(words, dtype=torch.int64)


def _multiply(a: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32 × 32-bit product, in halves that never overflow int64."""
    low = a * (constant & 0xFFFF)
    high = a * (constant >> 16)
    return (high + (low >> 16)) >> 16, (low + ((high & 0xFFFF) << 16)) & _MASK


def philox_uint32(key: Tensor, index: Tensor, groups: int) -> Tensor:
    """Random 32-bit words as int64 (B, 4·groups), for sample indices `index` int64 (B,)."""
    c0 = torch.arange(groups, device=index.device).expand(index.shape[0], groups)
    c1 = torch.zeros_like(c0)
    c2 = (index & _MASK)[:, None].expand_as(c0)
    c3 = ((index >> 32) & _MASK)[:, None].expand_as(c0)
    k0, k1 = key[0], key[1]
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack((c0, c1, c2, c3), dim=-1).flatten(1)


def uniform(words: Tensor) -> Tensor:
    """fp32 uniforms in [0, 1) from the upper 24 bits of each word: exact, never 1."""
    return (words >> 8).to(torch.float32) * 2.0**-24


def normal(words: Tensor) -> Tensor:
    """fp32 standard normals by Box–Muller from neighbouring words (even count in the last dim)."""
    first, second = words.unflatten(-1, (-1, 2)).unbind(-1)
    radius = torch.sqrt(-2.0 * torch.log(uniform(first) + 2.0**-24))  # the log never meets 0
    angle = uniform(second) * (2.0 * torch.pi)
    return torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1).flatten(-2)


@triton.jit
def philox_words(key_ptr, index_ptr, sample, group):
    """The four words (uint32) of each group of one sample, as `philox_uint32` numbers them."""
    seed = (tl.load(key_ptr + 1) << 32) | tl.load(key_ptr)
    index = tl.load(index_ptr + sample)
    zero = tl.zeros_like(group)
    low, high = index.to(tl.uint32), (index >> 32).to(tl.uint32)
    return tl.philox(seed, group, zero, zero.to(tl.uint32) + low, zero.to(tl.uint32) + high)


@triton.jit
def unit_uniform(word):
    """`uniform` of one word: exact."""
    return (word >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2⁻²⁴


@triton.jit
def normal_pair(first, second):
    """`normal` of two words, to 4 ulp.

    Written out in fp32 because the GPU's own log and cosine are approximations whose relative error
    is unbounded near log 1 and at the zeros of the cosine.
    """
    radius = tl.sqrt_rn(-2.0 * _log_up_to_1(unit_uniform(first) + 5.9604644775390625e-08))
    # A fused product with 0 is a product that is rounded: the angle must be the reference's own,
    # for near a zero of the cosine its rounding is all that counts.
    angle = tl.fma(unit_uniform(second), 6.2831854820251465, 0.0)
    cosine, sine = _cos_sin(angle)
    return radius * cosine, radius * sine


@triton.jit
def _log_up_to_1(v):
    """log v, v in [2⁻²⁴, 1]: v = 2ᵉ·(1 + f) with 1 + f in [√½, √2), and the atanh series of f."""
    bits = v.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23  # the bits of √½
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    e = exponent.to(tl.float32)
    s = tl.div_rn(f, 2.0 + f)  # log(1 + f) = 2·atanh s
    t = s * s
    tail = t * (2 / 3 + t * (2 / 5 + t * (2 / 7 + t * (2 / 9))))
    half = 0.5 * f * f
    # ln 2 in two parts, the first short enough that its product with e is exact.
    return e * 0.693145751953125 + (f - (half - s * (half + tail) - e * 1.4286068203094172e-06))


@triton.jit
def _cos_sin(angle):
    """cos and sin for an angle in [0, 2π]: the nearest multiple of π/2 taken off in three parts."""
    quadrant = tl.floor(angle * 0.6366197723675814 + 0.5)
    # π/2 = 1.5703125 + 4.8381090e-4 + 1.589e-8: the first two products are exact for q up to 4.
    r = angle - quadrant * 1.5703125
    r = r - quadrant * 0.0004838109016418457
    r = r - quadrant * 1.5893254773528197e-08
    t = r * r
    sine = r + r * t * (-1 / 6 + t * (1 / 120 + t * (-1 / 5040 + t * (1 / 362880))))
    cosine = 1.0 - (
        0.5 * t - t * t * (1 / 24 + t * (-1 / 720 + t * (1 / 40320 + t * (-1 / 3628800))))
    )
    turn = quadrant.to(tl.int32) & 3
    swap = (turn & 1) == 1
    cosine_out = tl.where(swap, sine, cosine)
    sine_out = tl.where(swap, cosine, sine)
    cosine_out = tl.where((turn == 1) | (turn == 2), -cosine_out, cosine_out)
    sine_out = tl.where(turn >= 2, -sine_out, sine_out)
    return cosine_out, sine_out
