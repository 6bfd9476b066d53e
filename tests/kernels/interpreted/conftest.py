"""These tests run the Triton kernels on CPU tensors, which Triton decides when it is imported.

`tests/kernels/test_interpreter.py` runs them in a process of their own.
"""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["*"]
