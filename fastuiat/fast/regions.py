"""The compiled regions: functions of tensors turned into one graph each, forward and backward."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fastuiat.fast.recording import Recorded, Recorder
from fastuiat.fast.torch_internals import (
    compile_alone,
    compiler_errors,
    foreach_mul_,
    while_compiling,
)

logger = logging.getLogger(__name__)
BACKEND = "inductor"
REPEATABLE = {"deterministic": True}
"""Inductor's: no choice by measured time may change the order of a sum, or a resumed process would
go on with other bits. Nor was such a choice faster (benchmarks/DECISIONS.md)."""
Function = Callable[..., Any]


def signature(argument: Any) -> Any:
    """What a graph is specialised to: shape, layout and type of a tensor, else the value itself."""
    if isinstance(argument, Tensor):
        layout = argument.shape, argument.stride(), argument.requires_grad
        return (*layout, argument.dtype, argument.device)
    return tuple(map(signature, argument)) if isinstance(argument, tuple) else argument


class Regions:
    """Functions `f(net, *arguments)` compiled whole, once per mode and signature.

    `replayed`, without compiling: what PyTorch launches for them is recorded all the same, where it
    is a GPU's. A function that the compiler cannot take runs as it is, which is said on the log, or
    with `strict` is an error. Each graph has a cache of its own, so another shape or mode compiles
    another graph and never the same one again. Whatever changes from step to step must come in as a
    tensor. On CUDA each is recorded and replayed (recording.py); a tensor among the arguments that
    a region writes into must be in `kept`.
    """

    def __init__(self, *, compiled: bool, replayed: bool = False) -> None:
        self.compiled, self.replayed = compiled, replayed
        self.strict = False
        self.kept: list[Tensor] = []
        self.exchanging: set[Any] = set()
        """Modes in which a region waits for other ranks, and so is never recorded: a recorded
        exchange was seen to hang or stall a process (pytorch#115388, pytorch#196133)."""
        self._record = Recorder()
        self._graphs: dict[Any, Function] = {}

    @property
    def whole(self) -> bool:
        """Whether a function is turned into one graph at all."""
        return self.compiled or self.replayed

    @contextmanager
    def eagerly(self) -> Iterator[None]:
        """Meanwhile no region is compiled or recorded, nor one that is used."""
        before = self.compiled, self.replayed
        self.compiled = self.replayed = False
        try:
            yield
        finally:
            self.compiled, self.replayed = before

    def __call__(self, function: Function, *mode: Any) -> Function:
        """The function, compiled if this compiles; `mode` names what its net's state changes."""
        if not self.whole:
            return function

        def run(net: Any, *arguments: Any) -> Any:
            key = (function, mode, torch.is_grad_enabled(), *map(signature, arguments))
            if known := self._graphs.get(key):
                if isinstance(known, Recorded) and not known.is_replayed:
                    with self._setting():  # one of the process may have changed
                        return known(net, *arguments)
                return known(net, *arguments)
            self._graphs[key] = recorded = self._recorded(function)
            if mode[0] in self.exchanging:
                recorded.fit = False
            try:
                with self._setting():
                    return recorded(net, *arguments)
            except compiler_errors() as error:
                if self.strict:
                    raise
                reason = str(error).strip().splitlines()[0]
                logger.warning("%s runs eager, it does not compile: %s", function.__name__, reason)
                self._graphs[key] = function
                return function(net, *arguments)

        return run

    def _recorded(self, function: Function) -> Recorded:
        if self.compiled:
            options = REPEATABLE if BACKEND == "inductor" else None
            function = compile_alone(function, backend=BACKEND, dynamic=False, options=options)
        return Recorded(function, self._record, self.kept)

    def _setting(self) -> AbstractContextManager[None]:
        return while_compiling() if self.compiled else nullcontext()


def trainable(net: nn.Module) -> tuple[nn.Parameter, ...]:
    return tuple(p for p in net.parameters() if p.requires_grad)


@functools.cache
def with_gradients(function: Function) -> Function:
    """`function(net, *inputs) -> (loss, *others)` as a function that also gives ∂loss/∂parameters.

    Called (net, scale, *inputs), it gives (loss, gradients, others), all detached; the gradients
    are those of loss·scale, scale fp32 () or None for 1, by the parameters that are trained; None
    of one that the loss does not depend on.
    """

    def loss_and_gradients(net: Any, scale: Tensor | None, *inputs: Any) -> Any:
        loss, *others = function(net, *inputs)
        scaled = loss if scale is None else loss * scale
        gradients = torch.autograd.grad(scaled, trainable(net), allow_unused=True)
        return loss.detach(), gradients, tuple(other.detach() for other in others)

    return loss_and_gradients


class GradientsInHand(torch.autograd.Function):
    """A loss whose gradients are there already: its backward hands them to the parameters, once."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: Tensor,
        scale: Tensor | None,
        gradients: tuple[Tensor | None, ...],
        *parameters: Tensor,
    ) -> Tensor:
        ctx.scale, ctx.gradients = scale, gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> Any:
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss were handed out before")
        # Given away rather than copied: autograd keeps a gradient that nobody else holds.
        gradients, ctx.gradients = ctx.gradients, None
        factor = grad_output if ctx.scale is None else grad_output / ctx.scale
        foreach_mul_([grad for grad in gradients if grad is not None], factor)
        return None, None, None, *gradients
