"""One optimiser step of a method at full speed, for the trainer's loop or one of your own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastuiat.config import OptimizerConfig, UserError
from fastuiat.convolutions import repeatable
from fastuiat.data.batch import Batch, on_device
from fastuiat.device import missing_for_compilation, resolve_precision
from fastuiat.distributed import ALONE, Ranks
from fastuiat.fast.synced import sync_batchnorm
from fastuiat.fast.view import TrainingView
from fastuiat.methods import Method, StepOutput
from fastuiat.network import Features, offers_features
from fastuiat.training.averaging import Averaged
from fastuiat.training.optim import (
    BatchNormMomentum,
    lay_out_state,
    make_optimizer,
    set_for_step,
)
from fastuiat.training.parts import Parts, cut

logger = logging.getLogger(__name__)
SGD = OptimizerConfig()


@contextmanager
def draws_of(seed: int, step: int, device: torch.device, part: int = 0) -> Iterator[None]:
    """PyTorch's own draws, such as dropout's, are meanwhile a function of (seed, step, part)."""
    own = ((seed << 32) + step + (part << 52)) & ((1 << 63) - 1)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(own)
        for each in devices:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(own)
        yield


def refuse_net(net: nn.Module) -> None:
    """UserError on a net that cannot be trained as it is."""
    parameters, name = list(net.parameters()), type(net).__name__
    if not any(p.requires_grad for p in parameters):
        raise UserError(f"{name} has no parameter that takes a gradient")
    if others := {p.dtype for p in parameters if p.is_floating_point()} - {torch.float32}:
        raise UserError(f"{name} has parameters in {others.pop()}: give it in fp32 (net.float())")


class TrainingStep:
    """A network, a method and an optimiser, ready to be called with a batch at a time.

    Weights are cast once a step for all forwards of the attack and the target, which run in
    `precision`; those and the training forward with its backward are compiled, and on a GPU
    recorded and replayed. The network may be any classifier from (B, C, H, W) in [0, 1] to logits
    (B, K): it stays where it is, in fp32, with channels-last weights. What of it is frozen stays
    so: parameters without gradients, and modules that a net in training mode holds in eval mode.

    Weights may be changed between steps, in place; what a forward keeps in buffers as well.

    net: on the device that trains it. method: by `create_method`; the nets that it `requires` are
    in its `helpers`. total_steps: the steps that the learning rate is planned for. optimizer: what
    SGD does, or an optimizer of your own, which is taken as it is. weight_averaging: decay of the
    averaged weights; 0 for none. precision: auto, fp32, bf16 or fp16. compile: where a compiler is
    missing it is said on the log, and the step is eager. accumulate: each batch is taken in so many
    parts, one after another, in that part of the memory: gradients are their mean, BatchNorm takes
    each part's own statistics. ranks: those that train the network together, each of which is
    called with its own rows of the batch. batchnorm: local, each rank's statistics, or sync, the
    whole batch's. UserError on a network without the features that the
    method uses, on fp16 without CUDA.

    >>> import torch, fastuiat
    >>> net = fastuiat.build_model("wrn-10-1", num_classes=10)
    >>> method = fastuiat.create_method("uiat", num_classes=10, num_samples=64, epochs=2)
    >>> step = fastuiat.TrainingStep(net, method, total_steps=4, compile=False)
    >>> x, y, index = torch.rand(8, 3, 32, 32), torch.arange(8), torch.arange(8)
    >>> out = step(x, y, index, epoch=1)
    >>> sorted(out.metrics)[:2]
    ['grad_nonfinite', 'grad_zero_share']
    """

    def __init__(
        self,
        net: nn.Module,
        method: Method,
        *,
        total_steps: int,
        optimizer: OptimizerConfig | torch.optim.Optimizer = SGD,
        weight_averaging: float = 0.0,
        precision: str = "auto",
        compile: bool = True,
        accumulate: int = 1,
        ranks: Ranks = ALONE,
        batchnorm: str = "local",
    ) -> None:
        for name, value in (("total_steps", total_steps), ("accumulate", accumulate)):
            if value < 1:
                raise UserError(f"{name} must be positive, got {value}")
        refuse_net(net)
        self.device = next(net.parameters()).device
        self.net = net.to(memory_format=torch.channels_last)
        self.method = method.to(self.device)
        self.total_steps = total_steps
        self.precision = resolve_precision(precision, self.device)
        self.compiled = compile
        if compile and (missing := missing_for_compilation(self.device)):
            logger.warning("not compiling: %s", missing)
            self.compiled = False
        if batchnorm == "sync" and accumulate > 1:
            raise UserError(
                "--batchnorm sync takes the statistics of a whole batch, and --accumulate cuts it "
                "in parts: leave one of them out"
            )
        if batchnorm == "sync" and ranks.world > 1:
            sync_batchnorm(self.net, ranks)
        if method.uses_features and not offers_features(net):
            Features(net).remove()  # UserError where it has none
        self.view = self._view_of(net)
        self.config: OptimizerConfig | None = None
        if isinstance(optimizer, OptimizerConfig):
            self.config, optimizer = optimizer, make_optimizer(net, optimizer)
        self.optimizer = optimizer
        lay_out_state(optimizer)
        self.batchnorm = BatchNormMomentum(
            self.view, self.config.batchnorm_momentum if self.config else None
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self._one = torch.ones((), device=self.device)
        self._averaging = Averaged(net, weight_averaging) if weight_averaging else None
        self._parts: Parts | None = None
        if accumulate > 1 or ranks.world > 1:
            self._parts = Parts(net, self.method, ranks, accumulate)
        self.taken = 0
        """Steps so far."""
        self._helper_views: dict[nn.Module, TrainingView] = {}
        self._modes: list[bool] = []
        self._epoch, self._in_epoch = 0, 0

    def _view_of(self, net: nn.Module) -> TrainingView:
        try:
            return TrainingView(
                net, device=self.device, precision=self.precision, compiled=self.compiled
            )
        except RuntimeError as error:
            raise UserError(f"{type(net).__name__} cannot be copied: {error}") from error

    @contextmanager
    def _helpers_viewed(self) -> Iterator[None]:
        """The nets that the method asks beside its own are meanwhile at the same speed."""
        helpers = self.method.helpers
        given = dict(helpers)
        for role, helper in given.items():
            if isinstance(helper, nn.Module):
                if helper not in self._helper_views:
                    self._helper_views[helper] = self._view_of(helper.to(self.device))
                self._helper_views[helper].refresh()
                helpers[role] = self._helper_views[helper]
        try:
            yield
        finally:
            helpers.update(given)

    def _in_training_mode(self) -> None:
        """As it was when it last was in training mode, after an evaluation by `net.eval()`."""
        modules = list(self.net.modules())
        if not self.net.training:
            self.net.train()
            for module, mode in zip(modules, self._modes, strict=False):
                module.training = mode
        self._modes = [module.training for module in modules]

    @property
    def averaged(self) -> nn.Module | None:
        """The network with averaged weights, in eval mode; None where nothing is averaged."""
        return self._averaging.net if self._averaging else None

    def __call__(
        self,
        x: Tensor | Batch,
        y: Tensor | None = None,
        index: Tensor | None = None,
        *,
        epoch: int | None = None,
    ) -> StepOutput:
        """One step on a Batch, or on what it is made of.

        Nothing here waits for the device, but for an optimizer of the caller's in fp16.

        x float (B, C, H, W) in [0, 1]; y int64 (B,); index int64 (B,), each sample's number in
        0 … num_samples − 1; epoch from 1. The loss comes back detached. ValueError on other shapes
        and types, UserError behind the last of `total_steps`.
        """
        if self.taken >= self.total_steps:
            raise UserError(f"this TrainingStep was made for {self.total_steps} steps")
        batch = x if isinstance(x, Batch) else self._batch(x, y, index, epoch)
        with repeatable():
            return self._take(batch)

    def _batch(self, x: Tensor, y: Tensor | None, index: Tensor | None, epoch: int | None) -> Batch:
        if y is None or index is None or epoch is None:
            raise ValueError("give a Batch, or x, y, index and epoch")
        if x.ndim != 4 or not x.is_floating_point():
            raise ValueError(
                f"x must be float (B, C, H, W) in [0, 1], got {x.dtype} {tuple(x.shape)}"
            )
        for name, values in (("y", y), ("index", index)):
            if values.shape != x.shape[:1] or values.dtype != torch.int64:
                raise ValueError(
                    f"{name} must be int64 ({x.shape[0]},), got {values.dtype} "
                    f"{tuple(values.shape)}"
                )
        if epoch < 1:
            raise ValueError(f"epochs count from 1, got {epoch}")
        if epoch != self._epoch:
            self._epoch, self._in_epoch = epoch, 0
        x = on_device(x.float().contiguous(memory_format=torch.channels_last), self.device)
        on_host = index if index.device.type == "cpu" else None
        y, index = on_device(y, self.device), on_device(index, self.device)
        batch = Batch(x, y, index, epoch, self._in_epoch, self.method.seed, on_host)
        self._in_epoch += 1
        return batch

    def _take(self, batch: Batch) -> StepOutput:
        if self.config:
            set_for_step(self.optimizer, self.config, self.taken, self.total_steps)
        self._in_training_mode()
        self.view.refresh()  # whatever has changed the weights since
        if self.scaler.is_enabled():
            self.view.loss_scale = self.scaler.scale(self._one)
        with self.batchnorm.during(self.taken), self._helpers_viewed():
            out = self._in_parts(batch) if self._parts else self._backward(batch)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self._averaging:
            self._averaging.update(self.taken)
        self.taken += 1
        return out

    def _backward(self, batch: Batch, part: int = 0) -> StepOutput:
        """The batch's loss, detached, and its gradients in the parameters."""
        with draws_of(self.method.seed, self.taken, self.device, part):
            out = self.method.loss(self.view, batch)
            self.optimizer.zero_grad(set_to_none=True)
            if self.config is None:  # a caller's optimizer may hold a part of the parameters
                self.net.zero_grad(set_to_none=True)
            self.scaler.scale(out.loss).backward()
        metrics = out.metrics if self._parts else {**out.metrics, **self.view.gradient_metrics()}
        return StepOutput(out.loss.detach(), metrics)

    def _in_parts(self, batch: Batch) -> StepOutput:
        """The same of a batch that is taken in parts, with those of the other ranks."""
        assert self._parts is not None
        self._parts.ranks.at_step(self.taken + 1)
        self._parts.begin()
        cuts = cut(batch, self._parts.per_rank)
        with self._parts.ranks.watched():  # `sync` exchanges inside forward and backward
            for i, part in enumerate(cuts):
                out = self._backward(part, self._parts.number(i))
                self._parts.add(out, last=i + 1 == len(cuts))
                self.view.shadow.statistics_moved()
        return self._parts.finish(self.view.gradient_metrics())

    def state_dict(self) -> dict[str, Any]:
        """What a step made of the same settings needs to go on to the bit."""
        return {
            "step": self.taken,
            "model": self.net.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "method": self.method.state_dict(),
            "position": [self._epoch, self._in_epoch],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()`; it may hold more, as a run's checkpoint does.

        UserError where one of them has averaged weights and the other none.
        """
        if (self.averaged is None) != (state["averaged"] is None):
            raise UserError("only one of this step and the state averages weights")
        self.net.load_state_dict(state["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        lay_out_state(self.optimizer)
        self.scaler.load_state_dict(state["scaler"])
        self.method.load_state_dict(state["method"])
        self.taken = state["step"]
        self._epoch, self._in_epoch = state.get("position", (0, 0))
