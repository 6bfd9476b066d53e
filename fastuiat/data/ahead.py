"""The next batch under way while a step runs."""

from __future__ import annotations

from collections.abc import Generator

import torch

from fastuiat.data.batch import Batch


def one_ahead(
    batches: Generator[Batch, None, None], device: torch.device
) -> Generator[Batch, None, None]:
    """The same batches in the same order, each begun before the one before it is handed out.

    On CUDA they are copied and augmented on a stream of their own, beside the step. On the CPU the
    loader's thread reads ahead and augmenting is the step's own cores' work: nothing to win.
    """
    if device.type != "cuda":
        yield from batches
        return
    side = torch.cuda.Stream(device)

    def begin() -> tuple[Batch, torch.cuda.Event] | None:
        with torch.cuda.stream(side):
            batch = next(batches, None)
            return None if batch is None else (batch, side.record_event())

    try:
        coming = begin()
        while coming is not None:
            (batch, made), coming = coming, begin()
            current = torch.cuda.current_stream(device)
            current.wait_event(made)
            for tensor in (batch.x, batch.y, batch.index):
                tensor.record_stream(current)  # its memory stays until the step is through
            yield batch
    finally:
        batches.close()
