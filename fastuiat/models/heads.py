"""The head of a net: what of it follows the number of classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from fastuiat.models.registry import on_meta


def head_keys(make: Callable[[int], nn.Module], num_classes: int) -> dict[str, int]:
    """Entries of `make(num_classes)` whose shape follows the number of classes, and in which
    dimension; in a net of two heads those of both."""
    counts = num_classes, num_classes + 1
    own, other = (on_meta(partial(make, count)).state_dict() for count in counts)
    return {
        key: next(d for d, size in enumerate(value.shape) if other[key].shape[d] != size)
        for key, value in own.items()
        if other[key].shape != value.shape
    }
