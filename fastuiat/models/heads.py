"""What a net would hold, before it takes memory, and what of it is the head."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn


def on_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """A net whose tensors take no memory: what it would hold, before a file is believed."""
    try:
        with torch.device("meta"):
            return make()
    except (NotImplementedError, RuntimeError):  # of a net that computes while it is made
        return make()


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
