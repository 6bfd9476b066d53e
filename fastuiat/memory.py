"""The two memories of the method: the universal bank z and the probability memory P."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastuiat.distributed import Ranks
from fastuiat_kernels import (
    bank_accumulate,
    bank_apply,
    bank_step,
    bank_update,
    memory_update,
    noise_key,
    philox_uint32,
)
from fastuiat_kernels.philox import normal

BANK_START_STD = 0.001
HALF_PRECISION_BYTES = 250e6
"""P is kept in fp16 where fp32 would need more than this."""


class Joint(nn.Module):
    """State of a method that all parts of a batch move together, on all ranks.

    Where `together` is set, by whoever takes batches in parts, nothing moves before `finish`.
    """

    together = False

    def sums(self) -> list[Tensor]:
        """What is to be summed over the ranks, in place, before `finish`."""
        return []

    def finish(self, ranks: Ranks) -> None:
        """Move by the sums, and take over what the other ranks made."""

    def metrics(self) -> dict[str, Tensor]:
        """What the log says of the last move."""
        return {}


class UniversalBank(Joint):
    """z: one perturbation per class, fp32 (K, C, H, W), starting as 0.001·N(0, 1) (Algorithm 1).

    Drawn on the CPU from the seed, so that every device starts from the same numbers.
    """

    z: Tensor
    flipped: Tensor
    """Share of z's elements, of the classes in the batch, whose sign the last step changed."""

    def __init__(self, num_classes: int, image_shape: tuple[int, int, int], seed: int = 0) -> None:
        super().__init__()
        channels, height, width = image_shape
        count = channels * height * width
        words = philox_uint32(
            noise_key(seed, stream="bank"), torch.arange(num_classes), -(-count // 4)
        )
        z = normal(words)[:, :count].reshape(num_classes, height, width, channels)
        self.register_buffer("z", BANK_START_STD * z.permute(0, 3, 1, 2))
        self.register_buffer("flipped", torch.zeros(()), persistent=False)
        self._sums: tuple[Tensor, Tensor] | None = None
        self._move: dict[str, float] = {}

    def apply_to(self, x: Tensor, y: Tensor) -> Tensor:
        """clip(x + z[y], 0, 1), channels-last as z is."""
        return bank_apply(x.to(memory_format=torch.channels_last), self.z, y)

    def step(self, grad: Tensor, y: Tensor, *, alpha: float, eps: float) -> None:
        """One sign step of the present classes down the class sums of grad (B, C, H, W)."""
        if not self.together:
            present = torch.zeros(len(self.z), device=y.device).index_fill_(0, y, 1.0)
            with self._watched(present):
                bank_step(self.z, grad, y, alpha=alpha, eps=eps)
            return
        self._move = {"alpha": alpha, "eps": eps}
        sums, seen = bank_accumulate(grad, y, len(self.z))
        present = seen.to(sums.dtype)
        if self._sums is None:
            self._sums = sums, present
        else:
            for total, part in zip(self._sums, (sums, present), strict=True):
                total += part

    @contextmanager
    def _watched(self, present: Tensor) -> Iterator[None]:
        """Count the signs that change meanwhile, of the classes that are `present` (K,)."""
        before = self.z.sign()
        yield
        flips = (self.z.sign() != before).to(present.dtype).mean(dim=(1, 2, 3))
        self.flipped = flips.sum() / present.sum()

    def sums(self) -> list[Tensor]:
        return list(self._sums or ())

    def finish(self, ranks: Ranks) -> None:
        if self._sums is None:
            return
        sums, counts = self._sums
        present = counts > 0
        with self._watched(present.to(sums.dtype)):
            bank_update(self.z, sums, present, **self._move)
        self._sums = None

    def metrics(self) -> dict[str, Tensor]:
        return {"z_flipped": self.flipped}


class ProbabilityMemory(Joint):
    """P (N, K): the target probabilities last used for each sample, and whether it has any."""

    probs: Tensor
    seen: Tensor

    def __init__(self, num_samples: int, num_classes: int) -> None:
        super().__init__()
        needs_half = 4 * num_samples * num_classes > HALF_PRECISION_BYTES
        dtype = torch.float16 if needs_half else torch.float32
        self.register_buffer("probs", torch.zeros(num_samples, num_classes, dtype=dtype))
        self.register_buffer("seen", torch.zeros(num_samples, dtype=torch.bool))
        self._written: list[Tensor] = []

    def update(self, index: Tensor, p: Tensor, *, gamma: float) -> Tensor:
        """Mix p (B, K) with what is stored (eq. 8), store the mixture and return it."""
        if self.together:
            self._written.append(index)
        return memory_update(self.probs, self.seen, index, p, gamma=gamma)

    def recall(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Stored probabilities fp32 (B, K) and which of them are real, bool (B,)."""
        return self.probs[index].float(), self.seen[index]

    def finish(self, ranks: Ranks) -> None:
        if self._written and ranks.world > 1:
            index = torch.cat(self._written)
            everyone = ranks.gathered(index)
            self.probs[everyone] = ranks.gathered(self.probs[index])
            self.seen[everyone] = True
        self._written.clear()


def sizes_in_words(method: nn.Module) -> list[str]:
    """A line for each z and P that a method holds."""
    lines = []
    for name, letter in (("z", "z"), ("probs", "P")):
        for buffer in (b for n, b in method.named_buffers() if n.rpartition(".")[2] == name):
            shape = " × ".join(f"{length:,}" for length in buffer.shape)
            dtype = str(buffer.dtype).removeprefix("torch.")
            lines.append(f"{letter}: {shape} in {dtype}, {buffer.nbytes / 1e6:,.1f} MB")
    return lines
