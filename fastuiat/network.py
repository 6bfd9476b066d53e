"""What a method may ask of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from torch import nn

BatchNormMode = Literal["eval", "batch", "train"]


@contextmanager
def modes_kept(net: nn.Module) -> Iterator[None]:
    """Put back each module's own `training` flag: a part that was kept in eval mode stays so."""
    flags = [(module, module.training) for module in net.modules()]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def batchnorm_mode(model: nn.Module, mode: BatchNormMode) -> Iterator[None]:
    """eval: running statistics; batch: the batch's own, nothing kept; train: the same, tracked."""
    was_training = model.training
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    model.train(mode != "eval")
    if mode == "batch":
        for norm in norms:
            norm.track_running_stats = False
    try:
        yield
    finally:
        if mode == "batch":
            for norm in norms:
                norm.track_running_stats = True
        model.train(was_training)


@contextmanager
def frozen(model: Any, bn: BatchNormMode = "eval") -> Iterator[Any]:
    """The network without weight gradients: what attacks and targets differentiate.

    A plain module yields itself, its parameters frozen meanwhile. A trainer's view has a `frozen`
    of its own, which yields pre-cast weights, compiles regions and counts bad gradients.
    """
    if hasattr(model, "frozen"):
        with model.frozen(bn) as net:
            yield net
        return
    flags = [(p, p.requires_grad) for p in model.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    try:
        with batchnorm_mode(model, bn):
            yield model
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


def region(net: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one compiled region where the net's owner compiles, else itself."""
    return net.region(function) if hasattr(net, "region") else function


def training_region(model: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(net, *tensors, *constants) -> (loss, *others)`, bound to the model.

    The training forward with its loss, and so its backward, as one compiled region where the
    model's owner compiles; the plain function of the plain model elsewhere. `function` must be a
    module-level function (it is the key of what was compiled) and its loss a scalar; only the loss
    is differentiated, the others come back detached.
    """
    if hasattr(model, "training_region"):
        return model.training_region(function)

    def eager(*inputs: Any) -> Any:
        loss, *others = function(model, *inputs)
        return loss, *(other.detach() for other in others)

    return eager
