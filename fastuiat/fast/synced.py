"""BatchNorm over the batch of all ranks, of the same statistics as one process has with all of it.

PyTorch's own SyncBatchNorm takes no CPU, is not compiled, and is not differentiable twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastuiat.config import UserError
from fastuiat.distributed import Ranks, SumOverRanks
from fastuiat.fast.torch_internals import norm_layers


def statistics(x: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, int]:
    """(mean (C,), biased variance (C,), number of values each is of) over all ranks, x (B, C, …).

    Each rank's own mean and squared deviations from it are gathered and combined: sums of squares
    would cancel. The gathering is a sum of vectors that are 0 in all places but one, so that a
    single kind of exchange serves the forward and both backwards.
    """
    dims = [d for d in range(x.dim()) if d != 1]
    own = x.mean(dim=dims)
    shape = [1, -1, *[1] * (x.dim() - 2)]
    deviation = (x - own.view(shape)).square().sum(dim=dims)
    places = torch.zeros(ranks.world, 1, 1, dtype=x.dtype, device=x.device)
    places[ranks.rank] = 1
    means, deviations = SumOverRanks.apply(places * torch.stack([own, deviation])).unbind(dim=1)
    here = x.numel() // x.shape[1]
    mean = means.mean(dim=0)
    squares = deviations.sum(dim=0) + here * (means - mean).square().sum(dim=0)
    return mean, squares / (here * ranks.world), here * ranks.world


class _Synced:
    """The forward of a BatchNorm whose statistics are those of the global batch."""

    ranks: Ranks

    def forward(self: Any, x: Tensor) -> Tensor:
        if not self.training:
            out: Tensor = super().forward(x)  # type: ignore[misc]
            return out
        values = x if x.dtype == torch.float64 else x.float()
        mean, variance, count = statistics(values, self.ranks)
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach() * (count / (count - 1)))
        shape = [1, -1, *[1] * (x.dim() - 2)]
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        shift = self.bias if self.affine else torch.zeros_like(mean)
        normal = (values - mean.view(shape)) * scale.view(shape) + shift.view(shape)
        return normal.to(x.dtype)

    @torch.no_grad()
    def _track(self: Any, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:
            share = 1.0 / self.num_batches_tracked.to(mean.dtype)
        for running, new in ((self.running_mean, mean), (self.running_var, variance)):
            running.copy_((1 - share) * running + share * new)


class SyncedBatchNorm1d(_Synced, nn.BatchNorm1d): ...


class SyncedBatchNorm2d(_Synced, nn.BatchNorm2d): ...


class SyncedBatchNorm3d(_Synced, nn.BatchNorm3d): ...


SYNCED: dict[type[nn.Module], Any] = {
    nn.BatchNorm1d: SyncedBatchNorm1d,
    nn.BatchNorm2d: SyncedBatchNorm2d,
    nn.BatchNorm3d: SyncedBatchNorm3d,
}


def sync_batchnorm(net: nn.Module, ranks: Ranks) -> None:
    """Give every BatchNorm of the net the statistics of all ranks, in place, names unchanged."""
    for module in net.modules():
        if not isinstance(module, norm_layers()) or isinstance(module, _Synced):
            continue
        if type(module) not in SYNCED:
            raise UserError(
                f"{type(module).__name__} is no BatchNorm of PyTorch: take --batchnorm local"
            )
        module.__class__ = SYNCED[type(module)]
        module.ranks = ranks  # type: ignore[assignment]


def is_synced(net: nn.Module) -> bool:
    """Whether a forward in training mode waits for other ranks."""
    return any(isinstance(module, _Synced) for module in net.modules())
