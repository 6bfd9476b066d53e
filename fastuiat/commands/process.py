"""What the `fastuiat` command sets for its whole process, which the library never does."""

from __future__ import annotations

COMPUTING = ("train", "eval", "bench", "reproduce")
"""Commands whose process is set up for long arithmetic."""


def settle_process(command: str) -> None:
    """Set up this process for a command: freed memory is kept where the CPU computes.

    On a GPU the host's blocks are few, and nothing is gained by keeping them.
    """
    if command not in COMPUTING:
        return
    import torch

    from fastuiat.fast.allocator import keep_freed_memory

    if not torch.cuda.is_available():
        keep_freed_memory()
