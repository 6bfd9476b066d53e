"""Count the bytes that kernels ask for, by instrumented loads and stores under the interpreter.

Triton reads TRITON_INTERPRET when it is imported, so this runs as a process of its own:
`count()` starts it, and it prints what it counted as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fastuiat_kernels import SPECS
from fastuiat_kernels.launch import Launch, watched
from fastuiat_kernels.spec import Variant

Counted = dict[str, tuple[int, int]]
"""Per pointer argument: bytes asked for, and distinct bytes among those of each launch."""


def key(variant: str, dtype: torch.dtype, size: str) -> str:
    return f"{variant} | {str(dtype).removeprefix('torch.')} | {size}"


class Meter:
    """Notes every address that the interpreter loads or stores."""

    def __init__(self) -> None:
        from triton.runtime import interpreter

        self.builder = type(interpreter.interpreter_builder)
        self.asked: list[tuple[str, np.ndarray, int]] = []

    def note(self, kind: str, pointers: Any, mask: Any) -> None:
        width = pointers.get_element_ty().primitive_bitwidth
        # The interpreter's masks are of any integer type.
        there = np.broadcast_to(np.asarray(mask.data).astype(bool), pointers.data.shape)
        self.asked.append((kind, pointers.data[there].ravel(), max(1, width // 8)))

    def run(self, run: Callable[[], None]) -> list[tuple[str, np.ndarray, int]]:
        """Run a launch; what it asked for as (load or store, addresses, bytes of each)."""
        builder, note, self.asked = self.builder, self.note, []
        load, store = builder.create_masked_load, builder.create_masked_store
        atomic = builder.create_atomic_rmw

        def metered_load(self: Any, ptrs: Any, mask: Any, *rest: Any, **named: Any) -> Any:
            note("load", ptrs, mask)  # those by a tensor descriptor come this way too
            return load(self, ptrs, mask, *rest, **named)

        def metered_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
            note("store", ptrs, mask)
            return store(self, ptrs, value, mask, *rest)

        def metered_atomic(self: Any, op: Any, ptr: Any, val: Any, mask: Any, *rest: Any) -> Any:
            note("load", ptr, mask)
            note("store", ptr, mask)
            return atomic(self, op, ptr, val, mask, *rest)

        builder.create_masked_load = metered_load
        builder.create_masked_store = metered_store
        builder.create_atomic_rmw = metered_atomic
        try:
            run()
        finally:
            builder.create_masked_load, builder.create_masked_store = load, store
            builder.create_atomic_rmw = atomic
        return self.asked


def count_launch(launch: Launch, run: Callable[[], None]) -> Counted:
    """Run one launch and count; RuntimeError on an access outside every argument."""
    ranges = {
        name: (value.data_ptr(), value.data_ptr() + value.numel() * value.element_size())
        for name, value in launch.tensors().items()
    }
    asked = Meter().run(run)
    counted: Counted = {}
    for name, (begin, end) in ranges.items():
        total = distinct = 0
        for kind in ("load", "store"):
            mine = [
                (inside, width)
                for k, addresses, width in asked
                if k == kind
                if len(inside := addresses[(addresses >= begin) & (addresses < end)])
            ]
            total += sum(len(addresses) * width for addresses, width in mine)
            if mine:
                width = max(width for _, width in mine)
                distinct += len(np.unique(np.concatenate([a for a, _ in mine]))) * width
        counted[name] = (total, distinct)
    everything = sum(len(addresses) * width for _, addresses, width in asked)
    if everything != sum(total for total, _ in counted.values()):
        raise RuntimeError(f"{launch.kernel.__name__} accesses memory outside its arguments")
    return counted


def count_variant(variant: Variant, dtype: torch.dtype, size: str) -> Counted:
    """Over all launches of one call on the sample input."""
    counted: Counted = {}

    def watcher(launch: Launch, run: Callable[[], None]) -> None:
        for name, (total, distinct) in count_launch(launch, run).items():
            before = counted.get(name, (0, 0))
            counted[name] = (before[0] + total, before[1] + distinct)

    with watched(watcher):
        variant.launcher(**variant.inputs(variant.sizes[size], dtype, torch.device("cpu")))
    return counted


def count(kernels: list[str]) -> dict[str, Counted]:
    """Count for every variant of the named kernels, in a process with TRITON_INTERPRET=1."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "fastuiat_kernels.audit.traffic", *kernels]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"counting bytes failed:\n{done.stderr}")
    return {
        name: {pointer: (total, distinct) for pointer, (total, distinct) in counted.items()}
        for name, counted in json.loads(done.stdout).items()
    }


def main(kernels: list[str]) -> None:
    counted = {
        key(variant.name, dtype, size): count_variant(variant, dtype, size)
        for spec in SPECS
        if spec.name in kernels
        for variant in spec.variants
        for dtype in variant.dtypes
        for size in variant.traffic_sizes
    }
    print(json.dumps(counted))


if __name__ == "__main__":
    main(sys.argv[1:])
