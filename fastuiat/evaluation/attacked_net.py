"""The net as an attack meets it: no weight gradients, and compiled where that pays.

An attack calls its model thousands of times for the logits alone and for the gradient of a loss
with respect to the images. Each is one graph here, from the images to the gradient: then all of it
is inference, whose weights may be frozen. The first is for the batch size at hand, which compiles
and runs faster than one for any; another size gets one that does for all others. Batches are not
shared out among processes: what that gains is less than starting them takes
(benchmarks/DECISIONS.md).
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastuiat.convolutions import full_fp32
from fastuiat.evaluation.tape import Tape
from fastuiat.fast.torch_internals import compile_alone, compiler_config, no_word_of_nvcc
from fastuiat.gradients import leaf
from fastuiat.losses import logits_ratio, targeted_logits_ratio

LogitsLoss = Callable[..., Tensor]
cross_entropy: LogitsLoss = partial(F.cross_entropy, reduction="none")

COMPILE_FROM = {"cpu": 1e13}
"""By device, FLOP still to be done from which compiling is soon won back.

1e13 FLOP take minutes on an AVX2 core, compiling wrn-10-1 seconds. Nothing is measured on a GPU.
"""
LEAST = 16
"""Images from which the graphs hold; below, torch chooses its convolutions otherwise."""
TOLERANCE = 1e-4
"""Largest difference of compiled and plain logits, relative to the largest logit."""
KINKED = 0.2
"""Share of images whose gradient may differ by more than a hundredth (wrn-10-1: none of 64)."""


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
    x = leaf(x)
    with torch.enable_grad():
        logits = net(x)
        losses = loss(logits, *arguments)
        (gradient,) = torch.autograd.grad(losses.sum(), x)
    # An attack adds it to images, which are slow to add to where they lie otherwise.
    return logits.detach(), losses.detach(), gradient.contiguous()


class AttackedNet:
    """model(x) for attacks; `compile` makes it faster and changes logits by rounding alone.

    The methods `get_…` are what the package asks of a net that computes its own gradients.
    """

    def __init__(self, model: nn.Module) -> None:
        self.net = copy.deepcopy(model).eval().requires_grad_(False)
        self.compiled = False
        self.failure: str | None = None
        """Why it compiles no more, in words."""
        self._graphs: dict[Any, Any] = {}
        self._checked: set[Any] = set()
        """Graphs, by batch size, that agreed with the plain net."""
        self.tape: Tape | None = None
        """What it has answered before, and where what it answers now is kept."""

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:  # whoever asks goes on through the net
            return self._run(self.net, True, x)
        return self._answer(lambda: self._run(self.net, False, x))

    def _answer(self, ask: Callable[[], Any]) -> Any:
        return ask() if self.tape is None else self.tape.answer(ask)

    def get_logits_loss_grad_xent(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._ascent(cross_entropy, x, y)

    def get_logits_loss_grad_dlr(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._ascent(logits_ratio, x, y)

    def get_logits_loss_grad_target(
        self, x: Tensor, y: Tensor, y_target: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self._ascent(targeted_logits_ratio, x, y, y_target, switch(x, True))

    def get_diff_logits_grads_batch_targeted(
        self, x: Tensor, y: Tensor, y_target: Tensor
    ) -> tuple[Tensor, Tensor]:
        """FAB's linear model of the net: z_t − z_y (B, 1), its gradient (B, 1, C, H, W)."""
        # By the graph of the loss above: a graph of its own takes three seconds to compile.
        off = switch(x, False)
        _, lead, gradient = self._ascent(targeted_logits_ratio, x, y, y_target, off)
        return lead[:, None], gradient[:, None]

    def _ascent(
        self, loss: LogitsLoss, x: Tensor, *arguments: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        step: Any = self._answer(
            lambda: self._run(partial(ascent, self.net, loss), loss, x, *arguments)
        )
        return step

    def _run(self, function: Any, key: Any, x: Tensor, *arguments: Tensor) -> Any:
        """function(x, *arguments), by its graph where the net is compiled."""
        if not self.compiled or x.shape[0] < LEAST:
            return function(x, *arguments)
        try:
            return self._by_graph(function, key, x, *arguments)
        except Exception as error:  # whatever a compiler may raise: the plain net does as well
            reason = str(error).strip().splitlines() or [type(error).__name__]
            self._give_up(f"not compiled: {reason[0][:200]}")
            return function(x, *arguments)

    def _give_up(self, why: str) -> None:
        self.compiled, self.failure = False, why

    def _by_graph(self, function: Any, key: Any, x: Tensor, *arguments: Tensor) -> Any:
        if key not in self._graphs:
            self._graphs[key] = compile_alone(function)
        batch = x.contiguous(memory_format=torch.channels_last)
        if callable(key):  # a loss: its graph takes the gradient
            batch = leaf(batch.detach())
        rest = [a.contiguous() for a in arguments]  # a column of sorted classes is not
        graph = partial(self._graphs[key], batch, *rest)
        if (key, x.shape[0]) in self._checked:
            return graph()
        # At each new size, which may have a graph of its own: a wrong gradient is a weak attack.
        with full_fp32():
            plain = function(x, *arguments)
            agree = same(graph(), plain)
        if not agree:
            self._give_up("not compiled: the compiled net gives other logits or gradients")
            return plain
        self._checked.add((key, x.shape[0]))
        return graph()  # at each size the same, whichever sizes this process has met before

    def compile(self, x: Tensor, attacks: Collection[str]) -> str | None:
        """Compile what the attacks need, for images like x; why that failed, in words, or None.

        x (B, C, H, W); to be called under `compiler_settings`.
        """
        x = x[torch.arange(max(len(x), LEAST)) % len(x)]
        self.compiled = True
        with torch.no_grad():
            logits = self(x)
            y, target = logits.argmax(dim=1), logits.argmin(dim=1)
            cases: dict[str, tuple[LogitsLoss, tuple[Tensor, ...]]] = {
                "apgd-ce": (cross_entropy, (y,)),
                "apgd-dlr": (logits_ratio, (y,)),
                "apgd-t": (targeted_logits_ratio, (y, target, switch(x, True))),
                "fab-t": (targeted_logits_ratio, (y, target, switch(x, False))),
            }
            for attack in cases.keys() & attacks:
                loss, rest = cases[attack]
                self._ascent(loss, x, *rest)
        if "fab" in attacks:
            point = leaf(x.detach().clone())
            torch.autograd.grad(self(point).sum(), point)
        return self.failure


def switch(x: Tensor, on: bool) -> Tensor:
    """`on` as a tensor beside x: as a plain bool it would be part of a graph."""
    return x.new_full((), on, dtype=torch.bool)


def close(ours: Tensor, plain: Tensor) -> bool:
    """Whether logits or losses differ by rounding alone; not where one is no number."""
    return bool((ours - plain).abs().max() <= TOLERANCE * plain.abs().max().clamp_min(1.0))


def same(ours: Any, plain: Any) -> bool:
    """Whether logits, or an ascent's results, agree."""
    if isinstance(plain, tuple):
        return same_ascent(ours, plain)
    return close(ours.detach(), plain.detach())


def same_ascent(ours: tuple[Tensor, Tensor, Tensor], plain: tuple[Tensor, Tensor, Tensor]) -> bool:
    """Whether two ascents agree; of the gradients, those of nearly all images."""
    off = (ours[2] - plain[2]).flatten(1).norm(dim=1) > 0.01 * plain[2].flatten(1).norm(dim=1)
    finite = torch.isfinite(ours[2]).all()
    # A unit that rounding puts on the other side of its kink changes an image's whole gradient.
    few = off.float().mean() <= KINKED
    return close(ours[0], plain[0]) and close(ours[1], plain[1]) and bool(finite & few)


@contextlib.contextmanager
def compiler_settings() -> Iterator[None]:
    """For graphs of fixed weights, whose backward may be run more than once; on while they run."""
    with (
        # Weights become constants: BatchNorm is folded, convolutions are packed beforehand and take
        # activation and addition along.
        compiler_config("torch._inductor.config", freezing=True),
        # FAB without targets runs the backward once per class over one forward.
        compiler_config("torch._functorch.config", donated_buffer=False),
        # A gradient is inference as well; its weights are met while gradients are on.
        compiler_config("torch._dynamo.config", trace_autograd_ops=True, prepare_freezing=True),
        no_word_of_nvcc(),
    ):
        yield
