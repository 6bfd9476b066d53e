"""torch.compile with a cache for each call of it."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Any

import torch

_ISOLATES = "isolate_recompiles" in inspect.signature(torch.compile).parameters
"""PyTorch 2.14 does, 2.11 does not."""


def compile_alone(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The function as one graph, compiled apart from all else that has been compiled of its code.

    Dynamo keeps what it compiled by code object, eight entries at most, and guards against all of
    them at each call: two nets that share a function would use up each other's.
    """
    options |= {"fullgraph": True}
    if _ISOLATES:
        options |= {"isolate_recompiles": True}
    else:
        function = _with_code_of_its_own(function)
    compiled: Callable[..., Any] = torch.compile(function, **options)
    return compiled


def _with_code_of_its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        return function(*arguments)

    own = types.FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)
    return own
