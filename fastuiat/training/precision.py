"""Device, arithmetic, and the view of the network that methods are given."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastuiat.attacks import BatchNormMode, batchnorm_mode
from fastuiat.config import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str) -> torch.device:
    """`auto` takes CUDA where there is one; UserError on `cuda` without one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: PyTorch sees no CUDA device here; use --device cpu")
    return torch.device(name)


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def resolve_precision(name: str, device: torch.device) -> str:
    """`auto` is bf16 where the hardware has it, else fp32; fp16 training is for CUDA."""
    if name == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 is unusably slow on the CPU: use bf16 or fp32")
    if name == "auto":
        return "bf16" if has_bf16(device) else "fp32"
    return name


class FrozenNet(nn.Module):
    """The network with weights in the compute dtype that take no gradient.

    Whatever keeps its dtype shares storage with the live network; the rest is cast by `refresh`,
    once per training step and not once per attack step.
    """

    def __init__(self, live: nn.Module, dtype: torch.dtype) -> None:
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
        self._regions: dict[Callable[..., Any], Callable[..., Any]] | None = None

    def refresh(self) -> None:
        """Cast the live weights anew."""
        if self._casts:
            torch._foreach_copy_([c for c, _ in self._casts], [live for _, live in self._casts])

    def forward(self, x: Tensor, return_features: bool = False) -> Any:
        return self.net(x.to(self.dtype), return_features)

    def region(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(net, …)` compiled whole, once per shape and mode."""
        if self._regions is None:
            return function
        if function not in self._regions:
            self._regions[function] = torch.compile(function, fullgraph=True, dynamic=False)
        return self._regions[function]

    def enable_compilation(self) -> None:
        self._regions = {}


class TrainingView:
    """What a method sees as its model: the live network in the chosen arithmetic.

    Calling it is the training forward. `frozen` gives attacks and targets the FrozenNet.
    """

    def __init__(
        self, net: nn.Module, *, device: torch.device, precision: str, compiled: bool
    ) -> None:
        self.net = net
        self.device = device
        self.dtype = DTYPES[precision]
        self.shadow = FrozenNet(net, self.dtype)
        self._forward: Callable[..., Any] = net
        self._compiled = compiled
        self._training: dict[Callable[..., Any], Callable[..., Any]] = {}
        if compiled:
            # Without it torch.autograd.grad breaks the graph of an attack step.
            torch._dynamo.config.trace_autograd_ops = True
            self.shadow.enable_compilation()
            self._forward = torch.compile(net, fullgraph=True, dynamic=False)

    def __call__(self, x: Tensor, return_features: bool = False) -> Any:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self._forward(x, return_features)

    def training_region(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function(net, …)` on the live network, compiled whole, once per shape."""
        if function not in self._training:
            self._training[function] = (
                torch.compile(function, fullgraph=True, dynamic=False)
                if self._compiled
                else function
            )
        region = self._training[function]

        def run(*inputs: Any) -> Any:
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                loss, *others = region(self.net, *inputs)
            return loss, *(other.detach() for other in others)

        return run

    @contextmanager
    def frozen(self, bn: BatchNormMode = "eval") -> Iterator[FrozenNet]:
        with batchnorm_mode(self.shadow, bn):
            yield self.shadow

    def refresh(self) -> None:
        """Call after every change of the weights."""
        self.shadow.refresh()
