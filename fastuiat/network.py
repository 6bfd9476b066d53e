"""What a method may ask of a network and of a batch, and how a plain nn.Module answers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from fastuiat.config import UserError
from fastuiat.fast.torch_internals import norm_layers
from fastuiat_kernels import Noise

BatchNormMode = Literal["eval", "batch", "train"]
Function = Callable[..., Any]


class Stem(Protocol):
    """A first convolution that steps by its gradient."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def sign_step(self, x: Tensor, x_adv: Tensor, grad: Tensor, **how: Any) -> Tensor:
        """`fastuiat_kernels.sign_step`, given the gradient of what it made of x_adv."""


class FrozenNetwork(Protocol):
    """A network whose weights take no gradient: what attacks and targets differentiate."""

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (B, K) of x (B, C, H, W)."""

    def with_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and features (B, D): the input of the last linear layer."""

    def parted(self, x: Tensor) -> tuple[Stem | None, Callable[[Tensor], Tensor]]:
        """Its first convolution, and the network behind it, where an attack's step is made in one
        with that one's gradient of images such as x; else None, and the network."""

    def region(self, function: Function) -> Function:
        """`function(net, …)` as one compiled region where the network's owner compiles, or as it
        is. The net is this network, whatever else comes in are tensors and constants."""

    def count(self, elements: int) -> Tensor | None:
        """Where an attack adds how many of so many gradients are 0, and how many not finite: an
        int64 tensor (2,); None where nobody asks."""


class Network(Protocol):
    """A network in training. Called, it gives the logits (B, K) of its training forward."""

    def __call__(self, x: Tensor) -> Tensor: ...

    def frozen(self, bn: BatchNormMode = "eval") -> AbstractContextManager[FrozenNetwork]:
        """The same network without weight gradients, BatchNorm in the mode meanwhile."""

    def training_region(self, function: Function) -> Function:
        """`function(net, *tensors, *constants) -> (loss, *others)`, bound to the network.

        The training forward with its loss, and so its backward, as one compiled region where the
        network's owner compiles. `function` must be a module-level function (it is the key of what
        was compiled) and its loss a scalar; only the loss is differentiated, the others come back
        detached.
        """


class TrainingBatch(Protocol):
    """What a method reads of a batch; `fastuiat.Batch` says what each is."""

    @property
    def x(self) -> Tensor: ...
    @property
    def y(self) -> Tensor: ...
    @property
    def index(self) -> Tensor: ...
    @property
    def epoch(self) -> int: ...
    @property
    def host_whole(self) -> Tensor | None: ...
    def noise(self, stream: str) -> Noise: ...


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Every module's own training flag is afterwards what it was."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextmanager
def batchnorm_mode(model: nn.Module, mode: BatchNormMode) -> Iterator[None]:
    """eval: running statistics; batch: the batch's own, nothing kept; train: the same, tracked.

    Modules that a net in training mode holds in eval mode, such as a frozen BatchNorm, stay in it.
    """
    with modes_kept(model):
        if mode == "eval":
            model.eval()
        elif not model.training:
            model.train()
        tracked: list[Any] = []
        if mode == "batch":
            layers = norm_layers()
            norms: list[Any] = [m for m in model.modules() if isinstance(m, layers)]
            tracked = [norm for norm in norms if norm.track_running_stats]
        for norm in tracked:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm in tracked:
                norm.track_running_stats = True


def offers_features(net: nn.Module) -> bool:
    """Whether `net(x, return_features=True)` gives (logits, features)."""
    return "return_features" in inspect.signature(net.forward).parameters


def last_linear(net: nn.Module) -> nn.Linear | None:
    """The layer whose input are the features."""
    layers = [module for module in net.modules() if isinstance(module, nn.Linear)]
    return layers[-1] if layers else None


class Features:
    """A network's features where its own forward does not hand them out.

    As long as it is there each forward leaves the last linear layer's input here: call `take` or
    `drop` after every one. UserError where there is no such layer.
    """

    def __init__(self, net: nn.Module) -> None:
        layer = last_linear(net)
        if layer is None:
            raise UserError(
                f"{type(net).__name__} has no linear layer, whose input would be its features: "
                "give it a forward(x, return_features=False) of its own, or set beta to 0"
            )
        self._seen: list[Tensor] = []
        self._of = type(net).__name__
        self._handle = layer.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._seen.append(inputs[0] if inputs else named["input"])

    def take(self) -> Tensor:
        """(B, D), of the last forward; UserError where the layer was not called."""
        if not self._seen:
            raise UserError(
                f"{self._of}'s last linear layer takes no part in its forward: give it a "
                "forward(x, return_features=False) of its own, or set beta to 0"
            )
        features = self._seen[-1]
        self._seen.clear()
        return features.flatten(1)

    def drop(self) -> None:
        """Forget the last forward's."""
        self._seen.clear()

    def remove(self) -> None:
        self._handle.remove()


class PlainFrozen:
    """An nn.Module as a FrozenNetwork: eager, in its parameters' precision, nothing counted."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    def with_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if offers_features(self.net):
            both: tuple[Tensor, Tensor] = self.net(x, return_features=True)
            return both
        features = Features(self.net)
        try:
            return self.net(x), features.take()
        finally:
            features.remove()

    def parted(self, x: Tensor) -> tuple[Stem | None, Callable[[Tensor], Tensor]]:
        return None, self

    def region(self, function: Function) -> Function:
        return function

    def count(self, elements: int) -> Tensor | None:
        return None


class PlainNetwork:
    """An nn.Module as a Network: what it is in a training loop of somebody's own."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net

    def __call__(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x)
        return logits

    @contextmanager
    def frozen(self, bn: BatchNormMode = "eval") -> Iterator[FrozenNetwork]:
        flags = [(p, p.requires_grad) for p in self.net.parameters()]
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        try:
            with batchnorm_mode(self.net, bn):
                yield PlainFrozen(self.net)
        finally:
            for parameter, flag in flags:
                parameter.requires_grad_(flag)

    def training_region(self, function: Function) -> Function:
        def eager(*inputs: Any) -> Any:
            loss, *others = function(self.net, *inputs)
            return loss, *(other.detach() for other in others)

        return eager


Model = Network | nn.Module
"""What methods and attacks are given."""


def as_network(model: Model) -> Network:
    return PlainNetwork(model) if isinstance(model, nn.Module) else model


def frozen(model: Model, bn: BatchNormMode = "eval") -> AbstractContextManager[FrozenNetwork]:
    """The network without weight gradients: what attacks and targets differentiate."""
    return as_network(model).frozen(bn)


def training_region(model: Model, function: Function) -> Function:
    """`Network.training_region` of any model."""
    return as_network(model).training_region(function)
