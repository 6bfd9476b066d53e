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
