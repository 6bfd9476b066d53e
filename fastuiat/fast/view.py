"""The view of a network that methods are given: its weights cast, its regions compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastuiat.device import DTYPES
from fastuiat.fast import fused
from fastuiat.fast.folding import Folded
from fastuiat.fast.fused import Fused
from fastuiat.fast.regions import GradientsInHand, Regions, trainable, with_gradients
from fastuiat.fast.synced import is_synced
from fastuiat.fast.torch_internals import foreach_copy_
from fastuiat.models import Classifier
from fastuiat.models.normalised import NormalisedClassifier
from fastuiat.network import (
    BatchNormMode,
    Features,
    Function,
    Stem,
    batchnorm_mode,
    last_linear,
    offers_features,
)

KINDS = (nn.Conv2d, nn.Linear)
"""Layers whose weights are cast."""


def folding_pays(device: torch.device, dtype: torch.dtype, regions: Regions) -> bool:
    return regions.compiled and dtype == torch.bfloat16 and device.type == "cpu"


class FrozenNet(nn.Module):
    """The network with weights in the compute dtype that take no gradient.

    Whatever keeps its dtype shares storage with the live network, BatchNorm's statistics included;
    the rest is cast by `refresh`, once per training step and not once per attack step. Other
    people's networks run under autocast too, for layers that this leaves in fp32.

    In eval mode BatchNorm is folded into the convolutions where that was measured to be faster:
    compiled in bf16 on a CPU, and on GPUs in blocks that are one operator. Weights
    are not kept in oneDNN's own order, which was no faster (benchmarks/DECISIONS.md).
    """

    def __init__(self, live: nn.Module, dtype: torch.dtype, regions: Regions) -> None:
        super().__init__()
        self.dtype = dtype
        self.net = copy.deepcopy(live)
        self._casts: list[tuple[Tensor, Tensor]] = []
        self._pairs = list(zip(live.modules(), self.net.modules(), strict=True))
        self.own = isinstance(live, Classifier | NormalisedClassifier)
        for owner, twin in self._pairs:
            # Of a class derived from these, other people's may do arithmetic on its weights.
            plain = isinstance(owner, KINDS) if self.own else type(owner) in KINDS
            cast = plain and dtype != torch.float32
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
        has_features = not offers_features(live) and last_linear(live) is not None
        self._features = Features(self.net) if has_features else None
        self._folded: Folded | Fused | None = None
        if fused.wanted(live, device, dtype):
            self._folded = Fused(live, self.net, dtype)
        elif isinstance(live, Classifier) and folding_pays(device, dtype, regions):
            self._folded = Folded(live, self.net)
        self._fold_is_due = True
        self.gradient_counts = torch.zeros(2, dtype=torch.int64, device=device)
        regions.kept.append(self.gradient_counts)
        self._counted = 0

    def refresh(self) -> None:
        """Cast the live weights anew, and follow buffers that a forward of the live net set."""
        if not self.own:
            for owner, twin in self._pairs:
                for name, buffer in owner.named_buffers(recurse=False):
                    if getattr(twin, name) is not buffer:
                        setattr(twin, name, buffer)
        if self._casts:
            foreach_copy_([c for c, _ in self._casts], [live for _, live in self._casts])
        self.statistics_moved()

    def statistics_moved(self) -> None:
        """Call after every forward in training mode, the live network's as well."""
        self._fold_is_due = True

    @contextmanager
    def mode(self, bn: BatchNormMode) -> Iterator[None]:
        """Meanwhile forwards are in this mode; what the live network holds in eval mode stays."""
        outer, self.bn = self.bn, bn
        if bn == "eval":
            self._fold()
        else:
            for owner, twin in self._pairs:
                twin.training = owner.training
            self.training = self.net.training
        try:
            with batchnorm_mode(self, bn):
                yield
        finally:
            self.bn = outer
            if bn == "train":
                self.statistics_moved()

    def _fold(self) -> None:
        if self._folded and self._fold_is_due:
            self._folded.refresh(self._regions)
        self._fold_is_due = False

    def _called(self, x: Tensor) -> nn.Module:
        folded = self._folded if self.bn == "eval" else None
        return folded.net if folded and folded.takes(x) else self.net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self._called(x)(x.to(self.dtype))
        if self._features is not None:
            self._features.drop()
        return logits

    def with_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K), and features (B, D): the input of the last linear layer."""
        if self._features is not None:
            return self._called(x)(x.to(self.dtype)), self._features.take()
        both: tuple[Tensor, Tensor] = self._called(x)(x.to(self.dtype), return_features=True)
        return both

    def parted(self, x: Tensor) -> tuple[Stem | None, Callable[[Tensor], Tensor]]:
        fused = self._folded if isinstance(self._folded, Fused) and self.bn == "eval" else None
        return (fused.stem, fused.behind) if fused and fused.steps(x) else (None, self)

    def region(self, function: Function) -> Function:
        """`function(net, …)` compiled whole, once per BatchNorm mode and shape."""
        return self._regions(function, self.bn, modes_of(self.net))

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
        self.regions = Regions(compiled=compiled, replayed=device.type == "cuda")
        if is_synced(net):
            self.regions.exchanging = {"train", "batch"}
        self.shadow = FrozenNet(net, self.dtype, self.regions)
        self.loss_scale: Tensor | None = None
        self._parameters = tuple(net.parameters())

    def autocast(self) -> AbstractContextManager[Any]:
        if self.dtype == torch.float32:
            return nullcontext()
        # Around the regions, not in them: a region with autocast inside is not cached on disk.
        return torch.autocast(self.device.type, self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        self.shadow.statistics_moved()
        with self.autocast():
            logits: Tensor = self.regions(forward, "train", modes_of(self.net))(self.net, x)
        return logits

    def training_region(self, function: Function) -> Function:
        """`function(net, …) -> (loss, …)` on the live network.

        Compiled or recorded, it is one graph that holds the backward too: measured equal in speed
        to a graph for each on the CPU, and Inductor drops channels-last in graphs of a backward
        alone (pytorch#189239). The loss then only hands the gradients out, at one `backward()`.
        """

        def eager(*inputs: Any) -> Any:
            self.shadow.statistics_moved()
            with self.autocast():
                loss, *others = function(self.net, *inputs)
            return loss, *(other.detach() for other in others)

        def whole(*inputs: Any) -> Any:
            self.shadow.statistics_moved()
            scale, both = self.loss_scale, with_gradients(function)
            flags = tuple(p.requires_grad for p in self._parameters)
            with self.autocast():
                run = self.regions(both, "train", modes_of(self.net), flags)
                loss, gradients, others = run(self.net, scale, *inputs)
            return GradientsInHand.apply(loss, scale, gradients, *trainable(self.net)), *others

        return whole if self.regions.whole else eager

    @contextmanager
    def frozen(self, bn: BatchNormMode = "eval") -> Iterator[FrozenNet]:
        context = nullcontext() if self.shadow.own else self.autocast()
        with self.shadow.mode(bn), context:
            yield self.shadow

    def eagerly(self) -> AbstractContextManager[None]:
        """Meanwhile no region is compiled or recorded, nor one that is used."""
        return self.regions.eagerly()

    def gradient_metrics(self) -> dict[str, Tensor]:
        """FrozenNet.gradient_metrics of the attacks since the last call."""
        return self.shadow.gradient_metrics()

    def refresh(self) -> None:
        """Call after every change of the weights."""
        self.shadow.refresh()


def modes_of(net: nn.Module) -> tuple[bool, ...]:
    """Which of its modules are in training mode: a graph is of one pattern."""
    return tuple(module.training for module in net.modules())


def forward(net: nn.Module, x: Tensor) -> Tensor:
    logits: Tensor = net(x)
    return logits
