"""torch.compile with a cache for each call of it."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch

_ISOLATES = "isolate_recompiles" in inspect.signature(torch.compile).parameters
"""From torch 2.12 on or later; 2.11 has it not."""


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
    if isinstance(function, functools.partial):
        own = _with_code_of_its_own(function.func)
        return functools.partial(own, *function.args, **function.keywords)
    if isinstance(function, types.MethodType):
        return types.MethodType(_with_code_of_its_own(function.__func__), function.__self__)
    if not isinstance(function, types.FunctionType):
        return function  # a module, say: its caller sees to it
    twin = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin
