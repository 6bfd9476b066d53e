"""The work that a step bench repeats: a method at some point of its run, on synthetic batches.

Everything here is a fresh copy: nothing of a run is read or touched.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastuiat import methods
from fastuiat.bench.baselines import NaiveStep
from fastuiat.bench.passes import Op, forward_flops, inventory
from fastuiat.data import Batch, Order, ResidentLoader
from fastuiat.distributed import ALONE, Ranks
from fastuiat.memory import ProbabilityMemory
from fastuiat.methods import Method
from fastuiat.models import build_model
from fastuiat.targets import OneOffTarget
from fastuiat.training.step import TrainingStep

CIFAR_SIDE = 32
"""Pixels."""
CIFAR_SAMPLES = 50_000
"""P is as large as in a real run, whatever few samples the bench visits."""
ENDLESS = 1_000_000
"""Steps that the learning rate is planned for: more than a bench takes."""
BATCHES = 4
"""Different batches that the steps go around."""


@dataclass(frozen=True)
class Phase:
    """A stretch of epochs in which a method's step does the same work."""

    name: str
    epoch: int
    """An epoch of it."""
    share: float
    """Its part of all epochs."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One step to be measured."""

    arch: str = "resnet-18"
    method: str = "uiat"
    batch_size: int = 128
    phase: Phase | None = None
    """None: the last epoch."""
    num_classes: int = 10
    resolution: int = CIFAR_SIDE
    """Pixels a side."""
    num_samples: int = CIFAR_SAMPLES
    """Rows of P."""
    epochs: int = 100
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the method that differ from its defaults."""

    @property
    def epoch(self) -> int:
        return self.phase.epoch if self.phase else self.epochs

    @property
    def name(self) -> str:
        parts = [self.arch, f"b{self.batch_size}", self.method]
        parts += [f"{self.resolution}px"] if self.resolution != CIFAR_SIDE else []
        return "/".join(parts + ([self.phase.name] if self.phase else []))

    def to_json(self) -> dict[str, Any]:
        return {
            "arch": self.arch,
            "method": self.method,
            "batch_size": self.batch_size,
            "phase": self.phase.name if self.phase else None,
            "epoch": self.epoch,
            "epochs": self.epochs,
            "num_classes": self.num_classes,
            "resolution": self.resolution,
            "settings": self.settings,
        }


def phases(case: Case) -> list[Phase]:
    """What the method does at different times of its run; none where it is always the same."""
    for module in make_method(case).modules():
        if isinstance(module, OneOffTarget):
            at, last = module.epoch, case.epochs
            parts = (("before", at - 1, at - 1), ("at", at, 1), ("after", at + 1, last - at))
            return [Phase(name, epoch, n / last) for name, epoch, n in parts if n > 0]
    return []


def make_net(case: Case, device: torch.device) -> nn.Module:
    torch.manual_seed(case.seed)
    with device:
        return build_model(case.arch, case.num_classes)


def samples_of(case: Case) -> int:
    return max(case.num_samples, BATCHES * case.batch_size)


def make_method(case: Case) -> Method:
    return methods.create(
        case.method,
        num_classes=case.num_classes,
        num_samples=samples_of(case),
        image_shape=(3, case.resolution, case.resolution),
        epochs=case.epochs,
        seed=case.seed,
        **case.settings,
    )


def make_loader(case: Case, device: torch.device, ranks: Ranks = ALONE) -> ResidentLoader:
    """Noise as images: no arithmetic here takes longer for some values than for others.

    Each of several ranks has its part of every batch.
    """
    random = np.random.default_rng(case.seed)
    count = BATCHES * case.batch_size
    images = random.integers(0, 256, (count, case.resolution, case.resolution, 3), dtype=np.uint8)
    labels = random.integers(0, case.num_classes, count)
    order = Order(
        seed=case.seed,
        train_index=np.arange(count),
        batch_size=case.batch_size,
        rank=ranks.rank,
        world=ranks.world,
    )
    return ResidentLoader(images, labels, order, device=device, flip=True)


class Probe(nn.Module):
    """The least that counts as a classifier: a linear layer on the mean colour."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, num_classes)

    def forward(self, x: Tensor, return_features: bool = False) -> Any:
        features = x.mean(dim=(2, 3))
        logits = self.linear(features)
        return (logits, features) if return_features else logits


def visited_method(case: Case, device: torch.device) -> Method:
    """The method on the device, its memories filled as if it had met every batch before."""
    method: Any = make_method(case)
    probe = Probe(case.num_classes)
    for role in method.requires:
        method.helpers[role] = probe
    if any(isinstance(module, ProbabilityMemory) for module in method.modules()):
        for batch in make_loader(case, torch.device("cpu")).epoch(case.epoch):
            method.loss(probe, batch)
    for role in method.requires:
        method.helpers[role] = make_net(case, device).eval()
    return method.to(device)


def make_step(
    case: Case,
    device: torch.device,
    *,
    precision: str,
    compiled: bool,
    ranks: Ranks = ALONE,
    net: nn.Module | None = None,
) -> TrainingStep:
    """The step of `fastuiat train`, as it stands somewhere in the case's phase.

    `net` takes the place of the case's.
    """
    step = TrainingStep(
        make_net(case, device) if net is None else net,
        visited_method(case, device),
        total_steps=ENDLESS,
        precision=precision,
        compile=compiled,
        ranks=ranks,
    )
    step.view.regions.strict = True  # else a row of compiled steps could be one of eager ones
    return step


def training_step(
    case: Case, device: torch.device, *, precision: str, compiled: bool, replayed: bool = True
) -> Callable[[], object]:
    """One optimiser step of `fastuiat train` per call, on the next batch; unless `replayed`, each
    kernel launched by the host."""
    step = make_step(case, device, precision=precision, compiled=compiled)
    step.view.regions.replayed &= replayed
    batches = itertools.cycle(list(make_loader(case, device).epoch(case.epoch)))
    return lambda: step(next(batches))


def meta_batch(case: Case, ranks: Ranks = ALONE) -> Batch:
    """The first batch as shapes only; the host still knows its indices."""
    real = next(make_loader(case, torch.device("cpu"), ranks).epoch(case.epoch))
    x, y, index = (t.to("meta") for t in (real.x, real.y, real.index))
    return Batch(x, y, index, real.epoch, real.step, real.seed, real.index)


def floor_inventory(case: Case) -> list[Op]:
    """The convolutions and matrix products of one eager step of the method, in fp32."""
    meta = torch.device("meta")
    net = make_net(case, meta).train()
    method, batch = visited_method(case, meta), meta_batch(case)
    return inventory(lambda: method.loss(net, batch).loss.backward())


def pass_flops(case: Case) -> int:
    """F of the case's net and batch."""
    return forward_flops(make_net(case, torch.device("meta")), meta_batch(case).x)


def helper_net(case: Case, device: torch.device) -> nn.Module | None:
    """The net that the method asks beside its own, if any: it only has to cost what one costs."""
    return make_net(case, device).eval() if methods.get(case.method).requires else None


def naive_step(case: Case, device: torch.device) -> NaiveStep:
    """The method as it is usually written, on a net of its own."""
    return NaiveStep(
        case.method,
        make_net(case, device),
        helper=helper_net(case, device),
        phase=case.phase.name if case.phase else None,
        num_classes=case.num_classes,
        num_samples=samples_of(case),
        resolution=case.resolution,
        device=device,
    )


def naive_training_step(case: Case, device: torch.device) -> Callable[[], None]:
    """One optimiser step of the naive code per call, on the next batch."""
    step = naive_step(case, device)
    batches = itertools.cycle(
        [(b.x.contiguous(), b.y, b.index) for b in make_loader(case, device).epoch(case.epoch)]
    )
    return lambda: step(*next(batches))


def naive_inventory(case: Case) -> list[Op]:
    """The convolutions and matrix products of one naive step."""
    step, batch = naive_step(case, torch.device("meta")), meta_batch(case)
    return inventory(lambda: step.backward(batch.x.contiguous(), batch.y, batch.index))
