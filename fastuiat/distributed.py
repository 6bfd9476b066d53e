"""What the ranks of one training or evaluation share. Nothing else imports torch.distributed."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from fastuiat.config import UserError
from fastuiat.presence import Presence
from fastuiat.torchrun import RankFailed, place

T = TypeVar("T")
MEETING = 600.0
"""Seconds in which all ranks must have come."""
PATIENCE = 24 * 3600.0
"""Seconds that ranks wait for each other by default. A rank that is killed is noticed at once; one
batch of an attack may take hours on a CPU."""
LONGEST = 365 * 24 * 3600.0
BEHIND_HOSTS = 60.0
"""Seconds that devices wait longer than hosts: NCCL ends the process without a word of ours."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train or evaluate one network; alone, it exchanges nothing.

    Every rank makes the same calls in the same order, and gets the same bits from each. RankFailed
    where another rank is gone.
    """

    rank: int = 0
    world: int = 1
    hosts: Any = None
    """The group by which the ranks' hosts speak, where their devices have one of their own."""
    presence: Presence | None = None
    """What is known of the others where an exchange fails."""

    def __deepcopy__(self, memo: object) -> Ranks:
        """The same, in a copied net too: a group has no copy."""
        return self

    @property
    def is_first(self) -> bool:
        """Whether this one speaks and writes for all."""
        return self.rank == 0

    def add_up(self, values: Tensor) -> None:
        """The sum of `values` over all ranks, in place."""
        if self.world > 1:
            with self._exchange():
                dist.all_reduce(values)

    def gathered(self, rows: Tensor) -> Tensor:
        """`rows` (n, …) of all ranks, one rank behind the other: (world·n, …)."""
        if self.world == 1:
            return rows
        everyone = [torch.empty_like(rows) for _ in range(self.world)]
        with self._exchange():
            dist.all_gather(everyone, rows)
        return torch.cat(everyone)

    def loudest(self, asked: int) -> int:
        """The largest of what each rank asks for. By the hosts alone: no device is waited for."""
        if self.world == 1:
            return asked
        word = torch.tensor(asked)
        with self._exchange():
            dist.all_reduce(word, dist.ReduceOp.MAX, group=self.hosts)
        return int(word)

    def of_all(self, value: T) -> list[T]:
        """The plain `value` of each rank, by rank."""
        if self.world == 1:
            return [value]
        everyone: list[Any] = [None] * self.world
        with self._exchange():
            dist.all_gather_object(everyone, value, group=self.hosts)
        return everyone

    def at_step(self, step: int) -> None:
        """What a failure of the exchanges from here on is said to be at; steps count from 1."""
        if self.presence:
            self.presence.step = step

    @contextlib.contextmanager
    def _exchange(self) -> Iterator[None]:
        """What PyTorch raises where a rank is gone, in one line with its number."""
        if self.presence:
            self.presence.exchanges += 1
        try:
            yield
        except RuntimeError as error:
            raise self._failed(error) from error

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """The same of exchanges inside, which compiled code or a backward makes by itself."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, RankFailed) or not is_of_an_exchange(error):
                raise
            raise self._failed(error) from error

    def _failed(self, error: RuntimeError) -> RankFailed:
        # gloo's begin with a place in its source and end with advice
        text = re.sub(r"^\[\S+\] ", "", " ".join(str(error).split())).split(". ")[0][:200]
        if self.presence is None:
            return RankFailed(f"a rank has ended or hangs, and the others end with it ({text})")
        who, where = self.presence.absent(), self.presence.where()
        return RankFailed(
            f"{who} has ended or hangs: it did not come to {where}, and the others end with it"
            f" ({text})"
        )

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        """What one rank raises inside, all raise behind it. No exchange may be inside.

        A UserError or an OSError as it is, with the rank that met it; RankFailed for any other.
        """
        if self.world == 1:
            yield
            return
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        try:
            told = self.of_all(None if own is None else in_words(own, self.rank))
        except RankFailed as lost:
            raise own or lost from None
        if own is not None:
            raise own
        for theirs in told:
            if theirs is not None:
                raise theirs

    def from_first(self, make: Callable[[], T]) -> T:
        """What `make()` gives on rank 0, which alone calls it, on every rank."""
        if self.world == 1:
            return make()
        made: list[T] = []
        with self.agreed():
            if self.is_first:
                made.append(make())
        return self.of_all(made)[0][0]

    def after_first(self, make: Callable[[], T]) -> T:
        """`make()`, by rank 0 before the others: it may fetch or prepare what they then find."""
        if self.world == 1:
            return make()
        made: list[T] = []
        for turn_of_first in (True, False):
            with self.agreed():
                if self.is_first == turn_of_first:
                    made.append(make())
        return made[0]

    def refuse_differences(self, seen: Mapping[str, object]) -> None:
        """UserError where a rank sees something else than rank 0; by what it is, in words."""
        everyone = self.of_all({name: str(value) for name, value in seen.items()})
        for rank, theirs in enumerate(everyone):
            for name, value in everyone[0].items():
                own = theirs.get(name, "none")
                if own != value:
                    raise UserError(
                        f"rank {rank} has another {name} than rank 0 ({own}, not {value}): all"
                        " ranks need the same"
                    )


ALONE = Ranks()


def is_of_an_exchange(error: RuntimeError) -> bool:
    """Whether NCCL or gloo, which has no type of its own, has raised it."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def in_words(error: Exception, rank: int) -> Exception:
    """The error as other ranks raise it; of the user's it stays one."""
    if isinstance(error, UserError):
        return UserError(f"rank {rank}: {error}" if rank else str(error))
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename)
    text = " ".join(str(error).split())[:200]
    return RankFailed(f"rank {rank} failed: {type(error).__name__}: {text}")


class SumOverRanks(torch.autograd.Function):
    """The sum over all ranks of a tensor that each has of its own; differentiable, twice as well.

    What a rank's value is worth to the others' losses comes back the same way.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return SumOverRanks.apply(gradient)


def ranks_of_this_process() -> Ranks:
    """As the process group says; alone where there is none."""
    if not (dist.is_available() and dist.is_initialized()):
        return ALONE
    return Ranks(dist.get_rank(), dist.get_world_size())


@contextlib.contextmanager
def process_group(device: torch.device, *, patience: float = PATIENCE) -> Iterator[Ranks]:
    """The ranks that torchrun has started this process among, while it is open; ALONE without it.

    NCCL between CUDA devices, each rank on the card of its number on its machine, which becomes
    the current one; gloo between CPUs. A rank that waits longer than `patience` seconds for another
    raises RankFailed. UserError on fewer cards than ranks, and where not all ranks come.
    """
    here = place()
    if here.world == 1:
        yield ALONE
        return
    if device.type == "cuda":
        cards = torch.cuda.device_count()
        if here.local_world > cards:
            raise UserError(
                f"{here.local_world} ranks on this machine, which has {cards} of the CUDA devices "
                f"that each needs one of: torchrun --nproc-per-node {cards}, or --device cpu"
            )
        torch.cuda.set_device(here.local_rank)
    backend, later = ("nccl", BEHIND_HOSTS) if device.type == "cuda" else ("gloo", 0.0)
    store, seconds = meet(device.type), min(patience, LONGEST)
    dist.init_process_group(
        backend, store=store, rank=here.rank, world_size=here.world,
        timeout=timedelta(seconds=seconds + later),
    )  # fmt: skip
    presence = Presence(store, here.rank, here.world)
    try:
        timeout = timedelta(seconds=seconds)
        hosts = dist.new_group(backend="gloo", timeout=timeout) if device.type == "cuda" else None
        yield Ranks(here.rank, here.world, hosts, presence)
    except RankFailed:
        assert dist.group.WORLD is not None
        dist.group.WORLD.abort()  # an exchange that no one ends would hold the group open
        raise
    finally:
        presence.close()
        dist.destroy_process_group()


def meet(device: str) -> Any:
    """The store by which the ranks find each other, once all have come with one kind of device."""
    here = place()
    try:
        store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=MEETING)))
        # Ranks that are started again may meet in the store of those before them.
        store = dist.PrefixStore(f"fastuiat-{place().attempt}", store)
        names = [f"rank {rank}" for rank in range(here.world)]
        store.set(names[here.rank], device)
        store.wait(names, timedelta(seconds=MEETING))
        devices = [store.get(name).decode() for name in names]
        read = [f"{name} has read" for name in names]
        store.set(read[here.rank], "")
        if here.rank == 0:  # the store may be of this process, and end with it
            store.wait(read, timedelta(seconds=MEETING))
    except RuntimeError as error:
        raise UserError(
            f"not all of the {here.world} ranks came within {MEETING:.0f} s: see what torchrun says"
            f" of the others, and whether they reach {os.environ['MASTER_ADDR']} from their machine"
        ) from error
    if len(set(devices)) > 1:
        said = ", ".join(f"rank {rank} {name}" for rank, name in enumerate(devices))
        raise UserError(f"the ranks have unlike devices ({said}): give --device to all of them")
    return store
