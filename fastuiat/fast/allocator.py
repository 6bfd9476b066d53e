"""What the C library does with memory that was freed."""

from __future__ import annotations

import ctypes
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h of glibc


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for its next step; False where that cannot be set.

    glibc hands large blocks back to the system, which zeroes and maps every page anew when the next
    layer asks for one (benchmarks/DECISIONS.md).
    """
    library: Any = ctypes.CDLL(None)
    if not hasattr(library, "mallopt"):
        return False
    return bool(library.mallopt(M_MMAP_MAX, 0) and library.mallopt(M_TRIM_THRESHOLD, -1))
