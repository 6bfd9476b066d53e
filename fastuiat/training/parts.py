"""A batch in parts, one after another on a device and side by side on several, that make one step.

A part is trained on as a batch of its own: its attacks, its forwards, its BatchNorm statistics.
What they make is then summed over the parts and, in one exchange, over all ranks: gradients and
BatchNorm's running statistics to their means, and the class gradients that move z before their sign
is taken. So a rank with four parts is four ranks with one part, to rounding.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from fastuiat.config import UserError
from fastuiat.data.batch import Batch
from fastuiat.distributed import Ranks
from fastuiat.fast.torch_internals import foreach_add_, foreach_copy_, foreach_mul_
from fastuiat.memory import Joint
from fastuiat.methods import StepOutput

COUNTS = frozenset({"grad_nonfinite"})
"""Metrics that are sums over the batch; all others are means."""


def cut(batch: Batch, parts: int) -> list[Batch]:
    """The batch in so many parts, each of every parts-th image; UserError where one has more."""
    if len(batch.y) % parts:
        raise UserError(f"a batch of {len(batch.y)} images does not divide into {parts} parts")

    def part(rows: slice) -> Batch:
        return dataclasses.replace(
            batch, x=batch.x[rows].contiguous(memory_format=torch.channels_last),
            y=batch.y[rows].contiguous(), index=batch.index[rows].contiguous(),
            host_index=None if batch.host_index is None else batch.host_index[rows].contiguous(),
        )  # fmt: skip

    return [part(slice(i, None, parts)) for i in range(parts)]


class Parts:
    """The sums of one step: `begin`, then `add` behind the backward of each part, then `finish`."""

    def __init__(self, net: nn.Module, method: nn.Module, ranks: Ranks, per_rank: int) -> None:
        self.net, self.ranks, self.per_rank = net, ranks, per_rank
        self.joint = [module for module in method.modules() if isinstance(module, Joint)]
        for module in self.joint:
            module.together = True

    @property
    def count(self) -> int:
        """Parts of all ranks."""
        return self.per_rank * self.ranks.world

    def number(self, i: int) -> int:
        """Of this rank's part i, among those of all ranks."""
        return self.ranks.rank + i * self.ranks.world

    def begin(self) -> None:
        """Remember the statistics that every part begins from."""
        self._before = {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        self._trained: list[nn.Parameter] = []
        self._sums: list[Tensor] = []
        self._metrics: dict[str, Tensor] = {}

    def _statistics(self) -> list[Tensor]:
        return [buffer for buffer in self.net.buffers() if buffer.is_floating_point()]

    @torch.no_grad()
    def add(self, out: StepOutput, *, last: bool) -> None:
        """Take a part's gradients out of the parameters, and what it made of the statistics.

        All but the last leave the statistics as they found them.
        """
        trained = [p for p in self.net.parameters() if p.grad is not None]
        made = [dense(p.grad) for p in trained if p.grad is not None]
        made += [statistic.clone() for statistic in self._statistics()]
        metrics = {"loss": out.loss.detach(), **out.metrics}
        if not self._trained:
            self._trained, self._sums, self._metrics = trained, made, metrics
        else:
            foreach_add_(self._sums, made)
            self._metrics = {name: self._metrics[name] + value for name, value in metrics.items()}
        for parameter in trained:
            parameter.grad = None
        if not last:
            for name, buffer in self.net.named_buffers():
                buffer.copy_(self._before[name])

    @torch.no_grad()
    def finish(self, late: dict[str, Tensor]) -> StepOutput:
        """Gradients, statistics and the method's state as all parts make them; loss and metrics.

        `late` are metrics of all parts of this rank together.
        """
        parts = {name: value / self.per_rank for name, value in self._metrics.items()}
        named = {name: value.to(self._sums[0].dtype) for name, value in (parts | late).items()}
        metrics = torch.stack(list(named.values()))
        if self.ranks.world > 1:
            moved = [values for module in self.joint for values in module.sums()]
            self._exchange([*self._sums, *moved, metrics])
        foreach_mul_(self._sums, torch.tensor(1 / self.count))
        for parameter, gradient in zip(self._trained, self._sums, strict=False):
            parameter.grad = gradient
        if statistics := self._statistics():  # a net without BatchNorm has none
            foreach_copy_(statistics, self._sums[len(self._trained) :])
        for module in self.joint:
            module.finish(self.ranks)
        shares = {
            name: value if name in COUNTS else value / self.ranks.world
            for name, value in zip(named, metrics.unbind(), strict=True)
        }
        for module in self.joint:  # what z did is known only now
            shares |= {k: v for k, v in module.metrics().items() if k in shares}
        return StepOutput(shares.pop("loss"), shares)

    def _exchange(self, tensors: list[Tensor]) -> None:
        """The sums over all ranks in place of the tensors, by one call for each dtype."""
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            runs = [run_of(tensor) for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat(runs)
            self.ranks.add_up(flat)
            foreach_copy_(runs, list(flat.split([run.numel() for run in runs])))


def dense(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of it without gaps."""
    if tensor.is_contiguous() or tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor
    return tensor.contiguous()


def run_of(tensor: Tensor) -> Tensor:
    """The memory of a dense tensor from end to end, (N,)."""
    return tensor.as_strided((tensor.numel(),), (1,))
