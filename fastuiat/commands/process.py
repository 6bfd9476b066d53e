"""What the `fastuiat` command sets for its whole process, which the library never does."""

from __future__ import annotations

from fastuiat.interrupts import ending_at_once

COMPUTING = ("train", "eval", "bench", "reproduce")
"""Commands whose process is set up for long arithmetic."""


def settle_process(command: str) -> None:
    """Set up this process for a command: freed memory is kept where the CPU computes.

    On a GPU the host's blocks are few, and nothing is gained by keeping them.
    """
    if command not in COMPUTING:
        return
    with ending_at_once():
        import torch

        from fastuiat.fast.allocator import keep_freed_memory

    if not torch.cuda.is_available():
        keep_freed_memory()
