"""What the ranks of one training share. Nothing else imports torch.distributed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among those that train one network; alone, it exchanges nothing.

    Every rank makes the same calls in the same order, and gets the same bits from each.
    """

    rank: int = 0
    world: int = 1

    def add_up(self, values: Tensor) -> None:
        """The sum of `values` over all ranks, in place."""
        if self.world > 1:
            dist.all_reduce(values)

    def gathered(self, rows: Tensor) -> Tensor:
        """`rows` (n, …) of all ranks, one rank behind the other: (world·n, …)."""
        if self.world == 1:
            return rows
        everyone = [torch.empty_like(rows) for _ in range(self.world)]
        dist.all_gather(everyone, rows)
        return torch.cat(everyone)


ALONE = Ranks()


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
