"""Argument checks of all operations: each failure is a ValueError that names the argument."""

from __future__ import annotations

import torch
from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their storage without gaps or overlap, in any order of dims."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def same_layout(**tensors: Tensor) -> None:
    """The tensors have one shape, one device and equal strides, and their storage is dense."""
    if torch.compiler.is_compiling():  # strides are settled by the eager call that came first
        return
    (name, first), *rest = tensors.items()
    if not is_dense(first):
        raise ValueError(
            f"{name} must be dense (no gaps, no overlap), got strides {first.stride()}"
        )
    for other, tensor in rest:
        same_device(**{name: first, other: tensor})
        if tensor.shape != first.shape:
            raise ValueError(
                f"{other} has shape {tuple(tensor.shape)}, {name} has {tuple(first.shape)}"
            )
        if tensor.stride() != first.stride():
            raise ValueError(f"{other} has strides {tensor.stride()}, {name} has {first.stride()}")


def same_device(**tensors: Tensor) -> None:
    """The tensors live on one device."""
    (name, first), *rest = tensors.items()
    for other, tensor in rest:
        if tensor.device != first.device:
            raise ValueError(f"{other} is on {tensor.device}, {name} on {first.device}")


def floating(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {tensor.dtype}")


def indices(name: str, index: Tensor, size: int, batch: int) -> None:
    """`index` is int64 of shape (batch,), each entry in 0 … size−1.

    The range is read on the CPU only: reading it on a GPU would stall the queue.
    """
    if index.dtype != torch.int64 or index.shape != (batch,):
        raise ValueError(
            f"{name} must be int64 of shape ({batch},), got {index.dtype} {tuple(index.shape)}"
        )
    if index.device.type == "cpu" and not torch.compiler.is_compiling() and batch:
        low, high = torch.aminmax(index)
        if low < 0 or high >= size:
            raise ValueError(f"{name} must lie in 0…{size - 1}, got {int(low)}…{int(high)}")
