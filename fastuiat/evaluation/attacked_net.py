"""The net as an attack meets it: no weight gradients, and compiled where that pays.

An attack calls its model thousands of times for the logits alone and for the gradient of a loss
with respect to the images. Both are one graph each here, for any number of images. Batches are not
shared out among processes: two with a thread each took 0.95 of the time of two threads in one
(wrn-10-1, two AVX-512 cores), less than starting them takes.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

COMPILE_FROM = {"cpu": 1e13}
"""By device, FLOP still to be done from which compiling is soon won back.

1e13 FLOP take minutes on an AVX2 core, compiling wrn-10-1 seconds. Nothing is measured on a GPU.
"""
SEPARATE: dict[str, Any] = {"isolate_recompiles": True}
LEAST = 16
"""Images from which the graphs hold; below, torch chooses its convolutions otherwise."""
TOLERANCE = 1e-4
"""Largest difference of compiled and plain logits, relative to the largest logit."""


def forward_flops(net: nn.Module, x: Tensor) -> int:
    """FLOP of one image's forward pass; a multiply-add counts as two."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x[:1])
    return counter.get_total_flops()


class AttackedNet:
    """model(x) for attacks; `compile` makes it faster and changes logits by rounding alone."""

    def __init__(self, model: nn.Module) -> None:
        self.net = copy.deepcopy(model).eval().requires_grad_(False)
        self.compiled = False
        self._graphs: dict[bool, Any] = {}

    def __call__(self, x: Tensor) -> Tensor:
        if not self.compiled or x.shape[0] < LEAST:
            return self.net(x)
        batch = x.contiguous(memory_format=torch.channels_last)
        torch._dynamo.mark_dynamic(batch, 0)
        return self._graphs[torch.is_grad_enabled() and batch.requires_grad](batch)

    def compile(self, x: Tensor) -> str | None:
        """Compile for images like x (B, C, H, W); why that failed, in words, or None.

        Checked against the plain net on x. To be called under `compiler_settings`.
        """
        # It warns where nvcc is installed and no GPU is: nothing that a user has to mend.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        self._graphs = {g: torch.compile(self.net, **SEPARATE) for g in (False, True)}
        self.compiled = True
        try:
            with torch.no_grad():
                plain, fast = self.net(x), self(x)
                with torch.enable_grad():
                    leaf = x.detach().clone().requires_grad_()
                    torch.autograd.grad(self(leaf).sum(), leaf)
        except Exception as error:  # whatever a compiler may raise: the plain net does as well
            self.compiled = False
            reason = str(error).strip().splitlines() or [type(error).__name__]
            return f"not compiled: {reason[0][:200]}"
        if (plain - fast).abs().max() > TOLERANCE * plain.abs().max().clamp_min(1.0):
            self.compiled = False
            return "not compiled: the compiled net gives other logits"
        return None


@contextlib.contextmanager
def compiler_settings() -> Iterator[None]:
    """For graphs of fixed weights, whose backward may be run more than once; on while they run."""
    with (
        # Weights become constants: BatchNorm is folded, convolutions are packed beforehand and take
        # activation and addition along.
        torch._inductor.config.patch(freezing=True),
        # FAB without targets runs the backward once per class over one forward.
        torch._functorch.config.patch(donated_buffer=False),
    ):
        yield


class FastArgsort(TorchFunctionMode):
    """`torch.argsort` of fp32 rows on the CPU by NumPy's vectorised sort of integers.

    Equal values keep their order, which torch.argsort leaves open.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.argsort and kwargs == {"dim": 1} and len(args) == 1:
            p = args[0]
            if p.device.type == "cpu" and p.dtype == torch.float32 and p.dim() == 2:
                return argsort_rows(p)
        return func(*args, **kwargs)


@contextlib.contextmanager
def fast_projection(fab: Any) -> Iterator[None]:
    """FAB's own projection, which sorts each image's pixels, by a faster sort meanwhile.

    The mode is on inside the projection alone: compiled graphs are tied to the modes around them.
    """
    module: Any = next(
        sys.modules[c.__module__] for c in type(fab).__mro__ if c.__name__ == "FABAttack"
    )
    projection = module.projection_linf

    def faster(*arguments: Tensor) -> Tensor:
        with FastArgsort():
            return projection(*arguments)

    module.projection_linf = faster
    try:
        yield
    finally:
        module.projection_linf = projection


def argsort_rows(p: Tensor) -> Tensor:
    """Indices int64 (B, D) that sort the rows of p fp32 (B, D) stably; NaN where torch puts it."""
    if not torch.isfinite(p).all():
        return torch.argsort(p, dim=1, stable=True)
    bits = (p + 0.0).view(torch.int32)  # −0 becomes 0, which it equals
    # As integers, floats sort by magnitude: negative ones have to be turned round.
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    keys = (ordered << 32) | torch.arange(p.shape[1])
    np.ndarray.sort(keys.numpy(), axis=1)
    return keys & 0xFFFFFFFF
