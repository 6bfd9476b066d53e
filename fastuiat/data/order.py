"""Which samples form which batch: a pure function of the settings, the epoch and the step."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastuiat.config import UserError

IMAGES_PER_MIXED_EPOCH = 50_000


def generator(*names: object) -> np.random.Generator:
    """A generator that depends on the names alone, on any machine."""
    digest = hashlib.sha256(repr(names).encode()).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))


def validation_split(
    num: int, val_size: int, seed: int, train_size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted (train, validation) indices, `train_size` of those left over or all of them.

    UserError where so many are not left to train on.
    """
    if val_size >= num:
        raise UserError(f"--val-size {val_size} leaves nothing of {num} images to train on")
    left = num - val_size
    if train_size is not None and train_size > left:
        raise UserError(f"--train-size {train_size} is more than the {left} images to train on")
    shuffled = generator(seed, "validation").permutation(num)
    end = num if train_size is None else val_size + train_size
    return np.sort(shuffled[val_size:end]), np.sort(shuffled[:val_size])


@dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """The order of a run.

    Originals are the entries of `train_index`; generated images are first_extra … +num_extra−1.
    Without generated images an epoch is one permutation, its incomplete last batch dropped. With
    them a batch holds round(batch_size·extra_share) drawn anew from the pool, the rest originals
    without replacement over cycles of their own, and an epoch is 50,000 images.
    """

    seed: int
    train_index: np.ndarray
    batch_size: int
    num_extra: int = 0
    first_extra: int = 0
    extra_share: float = 0.0
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        originals = self.batch_size - self.extra_per_batch
        if originals > len(self.train_index):
            raise UserError(
                f"--batch-size {self.batch_size} is larger than the {len(self.train_index)} "
                "training images"
            )
        if self.extra_per_batch > self.num_extra:
            raise UserError(
                f"a batch takes {self.extra_per_batch} generated images, "
                f"but the pool holds {self.num_extra}"
            )
        if self.batch_size % self.world:
            raise UserError(f"--batch-size {self.batch_size} does not divide by {self.world} ranks")

    @property
    def extra_per_batch(self) -> int:
        return round(self.batch_size * self.extra_share) if self.num_extra else 0

    @property
    def steps_per_epoch(self) -> int:
        if self.num_extra:
            return -(-IMAGES_PER_MIXED_EPOCH // self.batch_size)
        return len(self.train_index) // self.batch_size

    def batches(self, epoch: int) -> np.ndarray:
        """Sample indices of one epoch (from 1), int64 (steps, B / world): this rank's part.

        Every world-th sample, so that each rank has its share of the generated ones.
        """
        return self.own(self.whole(epoch))

    def own(self, rows: Any) -> Any:
        """This rank's part of whole batches (steps, B), dense."""
        if self.world == 1:
            return rows
        own = rows[:, self.rank :: self.world]
        return own.copy() if isinstance(own, np.ndarray) else own.contiguous()

    def whole(self, epoch: int) -> np.ndarray:
        """Sample indices of one epoch (from 1), int64 (steps, B): those of all ranks."""
        steps, batch = self.steps_per_epoch, self.batch_size
        if not self.num_extra:
            shuffled = generator(self.seed, "order", epoch).permutation(self.train_index)
            rows = shuffled[: steps * batch].reshape(steps, batch)
        else:
            rows = np.concatenate([self._originals(epoch), self._generated(epoch)], axis=1)
        return rows.astype(np.int64)

    def _originals(self, epoch: int) -> np.ndarray:
        """This epoch's stretch of the endless row of cycles, (steps, originals per batch)."""
        width = self.batch_size - self.extra_per_batch
        count = self.steps_per_epoch * width
        if width == 0:
            return np.empty((self.steps_per_epoch, 0), np.int64)
        size = len(self.train_index)
        first, last = (epoch - 1) * count // size, (epoch * count - 1) // size
        stretch = np.concatenate(self._cycles(first, last))
        begin = (epoch - 1) * count - first * size
        return stretch[begin : begin + count].reshape(-1, width)

    def _cycles(self, first: int, last: int) -> list[np.ndarray]:
        """The permutations of some cycles in a row."""
        begin = first
        while self._depends_on_the_one_before(begin):
            begin -= 1
        previous, cycles = self._shuffled(begin - 1), []
        for cycle in range(begin, last + 1):
            previous = self._cycle(cycle, previous)
            if cycle >= first:
                cycles.append(previous)
        return cycles

    def _overhang(self, cycle: int) -> int:
        """Samples of the cycle before in the batch that a cycle begins in."""
        width = self.batch_size - self.extra_per_batch
        return cycle * len(self.train_index) % width

    def _depends_on_the_one_before(self, cycle: int) -> bool:
        """Whether a cycle follows from more than the plain shuffle of the one before.

        The end of that one is its plain shuffle unless its own first batch reaches that far, which
        deferral then changes. A cycle without overhang follows from none, and there is one in as
        many cycles as a batch has originals.
        """
        overhang, width = self._overhang(cycle), self.batch_size - self.extra_per_batch
        return overhang > 0 and 2 * width + overhang > len(self.train_index)

    def _cycle(self, cycle: int, previous: np.ndarray) -> np.ndarray:
        """The permutation of one cycle behind the one before.

        The batch that straddles its beginning starts with the end of the cycle before, so samples
        that occur there are put off behind that batch, in their order: the first batch's part of
        this cycle takes the next samples instead.
        """
        width, overhang = self.batch_size - self.extra_per_batch, self._overhang(cycle)
        own = self._shuffled(cycle)
        if overhang == 0:
            return own
        tail = previous[-overhang:]
        needed = width - overhang
        clear = np.flatnonzero(~np.isin(own, tail))[:needed]
        chosen = np.zeros(len(own), bool)
        chosen[clear] = True
        return np.concatenate([own[chosen], own[~chosen]])

    def _shuffled(self, cycle: int) -> np.ndarray:
        return generator(self.seed, "cycle", cycle).permutation(self.train_index)

    def _generated(self, epoch: int) -> np.ndarray:
        """Anew for each batch, without repeats inside it."""
        random = generator(self.seed, "generated", epoch)
        draw = functools.partial(random.choice, self.num_extra, self.extra_per_batch, replace=False)
        rows = [draw(shuffle=False) for _ in range(self.steps_per_epoch)]
        return np.stack(rows).astype(np.int64) + self.first_extra
