"""Compiled regions as CUDA graphs: one launch in place of the hundred that a pass is made of.

A small net keeps a large GPU waiting for the host: a UIAT step of resnet-18 is 1,800 launches, more
than half of whose time is the host's (benchmarks/DECISIONS.md).

A recorded region reads and writes memory that stays where it is. Arguments are copied into it,
results are copied out of it; weights, statistics and whatever else its net holds are used in place,
so they must be changed in place as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from fastuiat.fast.torch_internals import foreach_copy_

Function = Callable[..., Any]
Record = Callable[[Callable[[], Any]], tuple[Any, Callable[[], None]]]
"""record(work) -> (its results, a call that does the work again and writes the same results).

Recording is no execution: the results hold nothing before the first replay.
"""
logger = logging.getLogger(__name__)
_one_by_one: ContextVar[bool] = ContextVar("one_by_one", default=False)


@contextmanager
def one_by_one() -> Iterator[None]:
    """Nothing is recorded or replayed meanwhile: each kernel is launched, by an operator that a
    profile can ask for its shapes. What was recorded stays, and is replayed afterwards."""
    token = _one_by_one.set(True)
    try:
        yield
    finally:
        _one_by_one.reset(token)


class Recorder:
    """Records CUDA graphs that share one pool of memory.

    They may, because they run one after another and nothing of a replay is kept in the pool: what
    it gave is copied out before the next.
    """

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, work: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # The loader's threads may go on meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                results = work()
        except Exception:
            # Where the end of a recording fails, PyTorch stays on its stream.
            torch.cuda.set_stream(stream)
            torch.cuda.synchronize()
            self._pool = None
            raise
        return results, graph.replay


class Recorded:
    """function(net, *arguments): as it is at the first call, recorded at the second, then replayed.

    The first call compiles, tunes and sets up libraries, none of which can be recorded. `kept` are
    tensors that the region writes into: as arguments they are used where they are. A function whose
    results take part in a backward is never recorded, nor one with arguments on the host.
    """

    def __init__(self, function: Function, record: Record, kept: Sequence[Tensor]) -> None:
        self.function, self.record, self.kept = function, record, kept
        self.fit: bool | None = None
        """Whether to record it; None before the first call."""
        self._replay: Callable[[], None] | None = None

    @property
    def is_replayed(self) -> bool:
        return self._replay is not None and not _one_by_one.get()

    def __call__(self, net: Any, *arguments: Any) -> Any:
        leaves = leaves_of(arguments)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not self.fit or _one_by_one.get():
            results = self.function(net, *arguments)
            if self.fit is None:
                made = [r for r in leaves_of(results) if isinstance(r, Tensor)]
                self.fit = on_gpu((*tensors, *made)) and not any(r.requires_grad for r in made)
            return results
        if self._replay is None:
            try:
                self._begin(net, arguments)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # what CUDA cannot record runs as it did
                self.fit = False
                logger.warning("not recorded as a CUDA graph: %s", str(error).splitlines()[0])
                return self.function(net, *arguments)
        assert self._replay is not None and net is self._net
        with torch.no_grad():
            moving = [(to, t) for to, t in zip(self._inputs, tensors, strict=True) if to is not t]
            if moving:
                foreach_copy_([to for to, _ in moving], [t for _, t in moving])
            self._replay()
            return copies(self._results)

    def _begin(self, net: Any, arguments: tuple[Any, ...]) -> None:
        """Record it on memory of its own."""
        leaves = leaves_of(arguments)
        own = [self._place(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._inputs = [leaf for leaf in own if isinstance(leaf, Tensor)]
        placed = with_leaves(arguments, iter(own))
        self._net = net
        self._results, self._replay = self.record(lambda: self.function(net, *placed))

    def _place(self, argument: Tensor) -> Tensor:
        """Where a recording reads the argument."""
        if any(argument is tensor for tensor in self.kept):
            return argument
        return argument.detach().clone().requires_grad_(argument.requires_grad)


def leaves_of(structure: Any) -> list[Any]:
    """What nested tuples, lists and dicts hold, in order."""
    if isinstance(structure, dict):
        return leaves_of(tuple(structure.values()))
    if isinstance(structure, tuple | list):
        return [leaf for part in structure for leaf in leaves_of(part)]
    return [structure]


def with_leaves(structure: Any, leaves: Iterator[Any]) -> Any:
    """The same nesting with other leaves."""
    if isinstance(structure, dict):
        return {key: with_leaves(part, leaves) for key, part in structure.items()}
    if not isinstance(structure, tuple | list):
        return next(leaves)
    parts = [with_leaves(part, leaves) for part in structure]
    kind: Any = type(structure)
    return kind(*parts) if hasattr(structure, "_fields") else kind(parts)


def copies(results: Any) -> Any:
    """The same with copies of the tensors, in as many launches as they have dtypes."""
    leaves = leaves_of(results)
    own = [torch.empty_like(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    for dtype in {t.dtype for t in own if isinstance(t, Tensor)}:
        places = [i for i, t in enumerate(own) if isinstance(t, Tensor) and t.dtype == dtype]
        foreach_copy_([own[i] for i in places], [leaves[i] for i in places])
    return with_leaves(results, iter(own))


def on_gpu(tensors: Sequence[Any]) -> bool:
    """Whether it all happens on a GPU."""
    return bool(tensors) and all(t.is_cuda for t in tensors)
