"""The net as an attack meets it: no weight gradients, and compiled where that pays.

An attack calls its model thousands of times for the logits alone and for the gradient of a loss
with respect to the images. Each is one graph here, from the images to the gradient, for any number
of images: then all of it is inference, whose weights may be frozen (wrn-10-1, 64 images, two AMX
cores: 15 ms, as a forward graph and its backward 18, eager 22). Batches are not
shared out among processes: two with a thread each took 0.95 of the time of two threads in one
(wrn-10-1, two AVX-512 cores), less than starting them takes.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastuiat.losses import logits_ratio, targeted_logits_ratio

LogitsLoss = Callable[..., Tensor]
cross_entropy: LogitsLoss = partial(F.cross_entropy, reduction="none")

COMPILE_FROM = {"cpu": 1e13}
"""By device, FLOP still to be done from which compiling is soon won back.

1e13 FLOP take minutes on an AVX2 core, compiling wrn-10-1 seconds. Nothing is measured on a GPU.
"""
WHOLE: dict[str, Any] = {"fullgraph": True, "isolate_recompiles": True}
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


def ascent(
    net: nn.Module, loss: LogitsLoss, x: Tensor, *arguments: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(logits (B, K), loss (B,) of them and the arguments, its gradient to x (B, C, H, W))."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        logits = net(leaf)
        losses = loss(logits, *arguments)
        (gradient,) = torch.autograd.grad(losses.sum(), leaf)
    # An attack adds it to images, which are slow to add to where they lie otherwise.
    return logits.detach(), losses.detach(), gradient.contiguous()


class AttackedNet:
    """model(x) for attacks; `compile` makes it faster and changes logits by rounding alone.

    The methods `get_…` are what the package asks of a net that computes its own gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        self.net = copy.deepcopy(model).eval().requires_grad_(False)
        self.compiled = False
        self._graphs: dict[Any, Any] = {}

    def __call__(self, x: Tensor) -> Tensor:
        differentiable = torch.is_grad_enabled() and x.requires_grad
        return self._run(self.net, differentiable, x)

    def get_logits_loss_grad_xent(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._ascent(cross_entropy, x, y)

    def get_logits_loss_grad_dlr(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._ascent(logits_ratio, x, y)

    def get_logits_loss_grad_target(
        self, x: Tensor, y: Tensor, y_target: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        relative = x.new_ones((), dtype=torch.bool)
        return self._ascent(targeted_logits_ratio, x, y, y_target, relative)

    def get_diff_logits_grads_batch_targeted(
        self, x: Tensor, y: Tensor, y_target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """FAB's linear model of the net: z_t − z_y (B, 1), its gradient (B, 1, C, H, W)."""
        # By the graph of the loss above: a graph of its own takes three seconds to compile.
        relative = x.new_zeros((), dtype=torch.bool)
        _, lead, gradient = self._ascent(targeted_logits_ratio, x, y, y_target, relative)
        return lead[:, None], gradient[:, None]

    def _ascent(
        self, loss: LogitsLoss, x: Tensor, *arguments: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        step: Any = self._run(partial(ascent, self.net, loss), loss, x, *arguments)
        return step

    def _run(self, function: Any, key: Any, x: Tensor, *arguments: Tensor) -> Any:
        """function(x, *arguments), by its graph where the net is compiled."""
        if not self.compiled or x.shape[0] < LEAST:
            return function(x, *arguments)
        if key not in self._graphs:
            self._graphs[key] = torch.compile(function, **WHOLE)
        batch = x.contiguous(memory_format=torch.channels_last)
        rest = [a.contiguous() for a in arguments]  # a column of sorted classes is not
        for tensor in (batch, *rest):
            if tensor.dim():
                # Only maybe: packing sets a batch apart that is as large as a layer is wide.
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
        return self._graphs[key](batch, *rest)

    def compile(self, x: Tensor, attacks: Collection[str]) -> str | None:
        """Compile what the attacks need, for images like x; why that failed, in words, or None.

        x (B, C, H, W), B at least LEAST: on it the net is checked against the plain one. To be
        called under `compiler_settings`.
        """
        # It warns where nvcc is installed and no GPU is: nothing that a user has to mend.
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        self.compiled = True
        try:
            with torch.no_grad():
                plain, fast = self.net(x), self(x)
                y = plain.argmax(dim=1)
                if "apgd-ce" in attacks:
                    self.get_logits_loss_grad_xent(x, y)
                if "apgd-dlr" in attacks:
                    self.get_logits_loss_grad_dlr(x, y)
                if {"apgd-t", "fab-t"} & set(attacks):
                    self.get_diff_logits_grads_batch_targeted(x, y, plain.argmin(dim=1))
            if "fab" in attacks:
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
        # A gradient is inference as well; its weights are met while gradients are on.
        torch._dynamo.config.patch(trace_autograd_ops=True, prepare_freezing=True),
    ):
        yield
