"""Argument checks of all operations: each failure is a ValueError that names the argument.

What the host knows (dtype, shape, device, strides) is checked everywhere. The range of labels and
indices is read on the CPU only: reading it on a GPU would stall the queue. There the kernels never
touch memory for an entry out of range and make it visible instead: what belongs to it is NaN.

Strides are not asked for while Dynamo traces, where they need not be those of the finished graph;
the launchers ask (`…_at_launch`), eagerly and when the graph that launches is made.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _order(tensor: Tensor) -> tuple[int, ...]:
    """The strides that matter: those of dims with more than one entry."""
    return tuple(
        stride if size != 1 else 0
        for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill their storage without gaps or overlap, in any order of dims."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _alike(name: str, first: Tensor, other: str, tensor: Tensor, dims: slice) -> None:
    if tensor.shape[dims] != first.shape[dims]:
        raise ValueError(
            f"{other} has shape {tuple(tensor.shape)}, {name} has {tuple(first.shape)}"
        )
    if _order(tensor)[dims] != _order(first)[dims]:
        raise ValueError(
            f"{other} has strides {tensor.stride()}, {name} has {first.stride()}: "
            "both must be channels-last, or both contiguous"
        )


def same_layout(**tensors: Tensor) -> None:
    """The tensors have one shape, one device and equal strides, and their storage is dense."""
    if not torch.compiler.is_compiling():
        same_layout_at_launch(**tensors)


def same_layout_at_launch(**tensors: Tensor) -> None:
    (name, first), *rest = tensors.items()
    if not is_dense(first):
        raise ValueError(
            f"{name} must be dense (no gaps, no overlap), got strides {first.stride()}"
        )
    for other, tensor in rest:
        same_device(**{name: first, other: tensor})
        _alike(name, first, other, tensor, slice(None))


def same_sample_layout(**tensors: Tensor) -> None:
    """(B, C, H, W) and (K, C, H, W): the rows are alike, dense, and follow each other."""
    if not torch.compiler.is_compiling():
        same_sample_layout_at_launch(**tensors)


def same_sample_layout_at_launch(**tensors: Tensor) -> None:
    (name, first), *rest = tensors.items()
    for other, tensor in tensors.items():
        if tensor.ndim != 4:
            raise ValueError(f"{other} must have four dims, got shape {tuple(tensor.shape)}")
        if not is_dense(tensor) or (
            tensor.shape[0] > 1 and tensor.stride(0) != tensor[0].numel() and tensor.numel()
        ):
            raise ValueError(
                f"{other} must be dense with its first dim outermost, got strides {tensor.stride()}"
            )
    for other, tensor in rest:
        same_device(**{name: first, other: tensor})
        _alike(name, first, other, tensor, slice(1, None))


def channels_last(name: str, tensor: Tensor) -> bool:
    """Whether an image batch is channels-last; ValueError where it is not contiguous either."""
    if tensor.ndim != 4:
        raise ValueError(f"{name} must be (B, C, H, W), got shape {tuple(tensor.shape)}")
    if tensor.is_contiguous(memory_format=torch.channels_last):
        return True
    if tensor.is_contiguous():
        return False
    raise ValueError(f"{name} must be contiguous or channels-last, got strides {tensor.stride()}")


def only_channels_last(**tensors: Tensor) -> None:
    """Pixel after pixel, each with all of its channels."""
    if not torch.compiler.is_compiling():
        for name, tensor in tensors.items():
            if not tensor.is_contiguous(memory_format=torch.channels_last):
                raise ValueError(f"{name} must be channels-last, got strides {tensor.stride()}")


def contiguous(**tensors: Tensor) -> None:
    """Rows one after the other, as the row kernels read them."""
    if not torch.compiler.is_compiling():
        contiguous_at_launch(**tensors)


def contiguous_at_launch(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {tensor.stride()}")


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
    """`index` is int64 of shape (batch,), each entry in 0 … size−1 (read on the CPU only)."""
    if index.dtype != torch.int64 or index.shape != (batch,):
        raise ValueError(
            f"{name} must be int64 of shape ({batch},), got {index.dtype} {tuple(index.shape)}"
        )
    if index.device.type == "cpu" and not torch.compiler.is_compiling() and batch:
        low, high = torch.aminmax(index)
        if low < 0 or high >= size:
            raise ValueError(f"{name} must lie in 0…{size - 1}, got {int(low)}…{int(high)}")


def flags(name: str, tensor: Tensor, size: int) -> None:
    """`tensor` is bool of shape (size,)."""
    if tensor.dtype != torch.bool or tensor.shape != (size,):
        raise ValueError(
            f"{name} must be bool of shape ({size},), got {tensor.dtype} {tuple(tensor.shape)}"
        )
