"""The view of a network that methods are given: its weights cast, its regions compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastuiat.device import DTYPES
from fastuiat.fast.folding import Folded
from fastuiat.fast.regions import GradientsInHand, Regions, with_gradients
from fastuiat.models import Classifier
from fastuiat.network import BatchNormMode, batchnorm_mode


class FrozenNet(nn.Module):
    """The network with weights in the compute dtype that take no gradient.

    Whatever keeps its dtype shares storage with the live network, BatchNorm's statistics included;
    the rest is cast by `refresh`, once per training step and not once per attack step.

    BatchNorm in eval mode is folded into the convolutions where that was measured to be faster:
    compiled in bf16 on a CPU (resnet-18, batch 128, two AMX cores, attack step: 0.153 s folded,
    0.176 s not, medians of 25), but not in fp32 (batch 32, one AVX2 core: 2.74 and 2.68 s, medians
    of 15). Weights are not kept in oneDNN's own order: the same layers took as long with either.
    """

    def __init__(self, live: nn.Module, dtype: torch.dtype, regions: Regions) -> None:
        super().__init__()
        self.dtype = dtype
        self.net = copy.deepcopy(live)
        self._casts: list[tuple[Tensor, Tensor]] = []
        for owner, twin in zip(live.modules(), self.net.modules(), strict=True):
            cast = isinstance(owner, nn.Conv2d | nn.Linear) and dtype != torch.float32
            for name, parameter in owner.named_parameters(recurse=False):
                data = parameter.detach()
                value = nn.Parameter(data.to(dtype) if cast else data, requires_grad=False)
                setattr(twin, name, value)
                if cast:
                    self._casts.append((value, data))
            for name, buffer in owner.named_buffers(recurse=False):
                setattr(twin, name, buffer)
        self.bn: BatchNormMode = "eval"
        self._regions = regions
        device = next(live.parameters()).device
        fold = regions.compiled and dtype == torch.bfloat16 and device.type == "cpu"
        self._folded = Folded(live, self.net) if fold and isinstance(live, Classifier) else None
        self._fold_is_due = True
        self.gradient_counts = torch.zeros(2, dtype=torch.int64, device=device)
        regions.kept.append(self.gradient_counts)
        self._counted = 0

    def refresh(self) -> None:
        """Cast the live weights anew."""
        if self._casts:
            torch._foreach_copy_([c for c, _ in self._casts], [live for _, live in self._casts])
        self.statistics_moved()

    def statistics_moved(self) -> None:
        """Call after every forward in training mode, the live network's as well."""
        self._fold_is_due = True

    def begin_eval(self) -> None:
        """Call before forwards in eval mode."""
        if self._folded and self._fold_is_due:
            self._folded.refresh()
        self._fold_is_due = False

    def forward(self, x: Tensor, return_features: bool = False) -> Any:
        net = self._folded.net if self._folded and self.bn == "eval" else self.net
        return net(x.to(self.dtype), return_features)

    def region(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(net, …)` compiled whole, once per BatchNorm mode and shape."""
        return self._regions(function, self.bn)

    def count(self, elements: int) -> Tensor:
        """Where an attack adds how many of so many gradients are 0, and how many not finite."""
        self._counted += elements
        return self.gradient_counts

    def gradient_metrics(self) -> dict[str, Tensor]:
        """The share of zero and the number of non-finite gradients since the last call, on the
        device; nothing where there was no attack."""
        if not self._counted:
            return {}
        zero, nonfinite = self.gradient_counts.unbind()
        metrics = {"grad_zero_share": zero / self._counted, "grad_nonfinite": nonfinite.float()}
        self.gradient_counts.zero_()
        self._counted = 0
        return metrics


class TrainingView:
    """What a method sees as its model: the live network in the chosen arithmetic.

    Calling it is the training forward. `frozen` gives attacks and targets the FrozenNet.
    `loss_scale`, a tensor () or None, is the factor at which gradients run in fp16.
    """

    def __init__(
        self, net: nn.Module, *, device: torch.device, precision: str, compiled: bool
    ) -> None:
        self.net = net
        self.device = device
        self.dtype = DTYPES[precision]
        self.regions = Regions(compiled=compiled)
        self.shadow = FrozenNet(net, self.dtype, self.regions)
        self.loss_scale: Tensor | None = None
        self._parameters = tuple(net.parameters())

    def autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        # Around the regions, not in them: a region with autocast inside is not cached on disk.
        return torch.autocast(self.device.type, self.dtype)

    def __call__(self, x: Tensor, return_features: bool = False) -> Any:
        self.shadow.statistics_moved()
        with self.autocast():
            return self.regions(forward, "train")(self.net, x, return_features)

    def training_region(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(net, …) -> (loss, …)` on the live network.

        Compiled, it is one graph that holds the backward too: measured equal in speed to a graph
        for each on the CPU, and Inductor drops channels-last in graphs of a backward alone
        (pytorch#189239). The loss then only hands the gradients out, at one `backward()`.
        """

        def eager(*inputs: Any) -> Any:
            self.shadow.statistics_moved()
            with self.autocast():
                loss, *others = function(self.net, *inputs)
            return loss, *(other.detach() for other in others)

        def compiled(*inputs: Any) -> Any:
            self.shadow.statistics_moved()
            scale, whole = self.loss_scale, with_gradients(function)
            with self.autocast():
                loss, gradients, others = self.regions(whole, "train")(self.net, scale, *inputs)
            return GradientsInHand.apply(loss, scale, gradients, *self._parameters), *others

        return compiled if self.regions.compiled else eager

    @contextmanager
    def frozen(self, bn: BatchNormMode = "eval") -> Iterator[FrozenNet]:
        outer, self.shadow.bn = self.shadow.bn, bn
        if bn == "eval":
            self.shadow.begin_eval()
        try:
            with batchnorm_mode(self.shadow, bn):
                yield self.shadow
        finally:
            self.shadow.bn = outer
            if bn == "train":
                self.shadow.statistics_moved()

    @contextmanager
    def eagerly(self) -> Iterator[None]:
        """Meanwhile no region is compiled, nor one that is used."""
        compiled, self.regions.compiled = self.regions.compiled, False
        try:
            yield
        finally:
            self.regions.compiled = compiled

    def gradient_metrics(self) -> dict[str, Tensor]:
        """FrozenNet.gradient_metrics of the attacks since the last call."""
        return self.shadow.gradient_metrics()

    def refresh(self) -> None:
        """Call after every change of the weights."""
        self.shadow.refresh()


def forward(net: nn.Module, x: Tensor, return_features: bool) -> Any:
    return net(x, return_features)
