"""These tests launch the Triton kernels: under its interpreter, on CPU tensors, or on a GPU.

Triton decides between the two when it is imported. `tests/kernels/test_interpreter.py` runs them
interpreted, in a process of their own; where there is a GPU, pytest finds them here as well.
"""

import os
from collections.abc import Iterator

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED:
    # Accesses are counted by instrumented loads and stores.
    collect_ignore = ["test_accesses.py"]
    if not torch.cuda.is_available():
        collect_ignore_glob = ["*"]


@pytest.fixture(autouse=True)
def no_error_is_left_to_others() -> Iterator[None]:
    """After an illegal access every later test of the process fails: it ends behind the one that
    made it, and xdist goes on in a fresh one."""
    yield
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            os._exit(3)
