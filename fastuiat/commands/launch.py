"""`fastuiat train --processes N`: several ranks on this machine, by PyTorch's own launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys

from fastuiat.children import PARENT, cores
from fastuiat.config import UserError, count_in
from fastuiat.torchrun import place

MOST = 1024


def processes_in(words: list[str]) -> tuple[int | None, list[str]]:
    """(N of `--processes N`, the other words); None without it. UserError on what is no number."""
    kept, found = [], None
    words = list(words)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if flag != "--processes":
            kept.append(word)
            continue
        value = value if equals else (words.pop(0) if words else "")
        found = count_in(value)
        if found is None or not 1 <= found <= MOST:
            raise UserError(f"--processes needs a number from 1 to {MOST}, got '{value}'")
    if found and place().world > 1:
        raise UserError("--processes starts ranks of its own: leave it out under torchrun")
    return found, kept


def launch(processes: int, words: list[str]) -> None:
    """Run `fastuiat WORDS` as so many ranks, which share the cores; exits with their code.

    They end with this process, however that ends.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # PyTorch's: the ranks say themselves what there is to say
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // processes)))
    os.environ[PARENT] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=processes, run_id=f"fastuiat-{os.getpid()}",
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-m", "fastuiat", *words)
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
    except ChildFailedError as failed:
        rank, failure = min(failed.failures.items())
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            print(f"fastuiat: rank {rank} was ended by {name}", file=sys.stderr)
        sys.exit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode)
