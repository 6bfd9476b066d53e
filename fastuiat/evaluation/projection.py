"""FAB's projection onto a hyperplane within the box [0, 1], without its sort.

For a point t and the plane w·x = b, FAB (Croce and Hein 2020) looks for the smallest step in L∞
that reaches the plane and stays in the box. Its step is ±min(λ, room) in each coordinate, room
being the way left to the box on the side that the plane is on, and λ solves

    Σ |w| min(λ, room) = |w·t − b|,

concave and piecewise linear in λ. The package sorts the coordinates by their room and searches
among the sums up to each; Newton's method from below meets the same λ after a few rounds of sums
(one to four on 128 random planes), for it cannot pass the root, and is there once no coordinate
changes sides.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastuiat.fast.torch_internals import say_once


def projection_linf(points: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """Step d (B, D) from `points` (B, D) to the planes w·x = b, w (B, D), b (B,), all fp32.

    Where the box does not reach the plane, d leads to the corner nearest to it; where w is 0, d is.
    As the package's `projection_linf` to rounding.
    """
    gap = (w * points).sum(1) - b
    # Masks are kept as floats: on a CPU `where` takes ten times as long as a product.
    way = w.sign() * torch.where(gap >= 0, -1.0, 1.0)[:, None]  # to the face at 1 or 0, or none
    room = way.clamp_min(0.0).addcmul(way, points, value=-1.0)
    weight, gap = w.abs(), gap.abs()
    step = gap / weight.sum(1)  # exact while no coordinate has reached the box
    free = torch.empty_like(room)
    before = torch.gt(room, step[:, None], out=torch.empty_like(room))
    tiny = torch.finfo(step.dtype).tiny
    while True:
        rising = (weight * before).sum(1)
        reached = (weight * torch.minimum(room, step[:, None])).sum(1)
        # Rounding must not move it back: only so is it certain to end.
        step = torch.maximum(step, step + (gap - reached) / rising.clamp_min(tiny))
        torch.gt(room, step[:, None], out=free)
        if torch.equal(free, before):
            break
        free, before = before, free
    within = gap < (weight * room).sum(1)
    return way * torch.where(within, step, torch.inf)[:, None].minimum(room)


@contextlib.contextmanager
def fast_projection(fab: Any) -> Iterator[None]:
    """The package's FAB by the projection of this file meanwhile, where it has one to replace."""
    bases = [c for c in type(fab).__mro__ if c.__name__ == "FABAttack"]
    module: Any = next((sys.modules[c.__module__] for c in bases), None)
    if not hasattr(module, "projection_linf"):
        say_once("AutoAttack's FAB has no projection_linf to replace: it projects itself, slower")
        yield
        return
    its_own, module.projection_linf = module.projection_linf, projection_linf
    try:
        yield
    finally:
        module.projection_linf = its_own
