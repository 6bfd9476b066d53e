"""Pictures read by processes on all cores, in order."""

from __future__ import annotations

import collections
import pickle
import queue
import subprocess
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from fastuiat.config import UserError
from fastuiat.data.pictures import PROGRAM, Answer, Request, answer
from fastuiat.machine import cpu

AHEAD = 2
"""Requests a process, answered or under way: what is read and not yet written stays small."""


class PictureWorkers:
    """Processes on all cores, at most so many; they end with this object, and with this process.

    Without any the pictures are read here.
    """

    def __init__(self, most: int) -> None:
        count = min(cpu()["cpus"], most)
        self._all = [
            subprocess.Popen(PROGRAM, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            for _ in range(count)
        ]
        self._idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()
        for process in self._all:
            self._idle.put(process)
        self._threads = ThreadPoolExecutor(max(1, count))

    def __enter__(self) -> PictureWorkers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._all:
            process.kill()
        self._threads.shutdown(cancel_futures=True)
        for process in self._all:
            process.communicate()

    def answers(self, requests: Iterator[Request]) -> Iterator[Answer]:
        """The answer to each request, in order."""
        coming: collections.deque[Future[Answer]] = collections.deque()
        for request in requests:
            coming.append(self._threads.submit(self._ask, request))
            if len(coming) > AHEAD * len(self._all):
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()

    def _ask(self, request: Request) -> Answer:
        if not self._all:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # as `pictures` says
                return answer(request)
        process = self._idle.get()
        assert process.stdin and process.stdout
        try:
            pickle.dump(tuple(request), process.stdin, protocol=5)
            process.stdin.flush()
            found = Answer(*pickle.load(process.stdout))
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            among = f" among {request.pictures[0]} …" if isinstance(request.pictures, list) else ""
            raise UserError(
                f"a process that reads pictures ended{among}: is there too little memory?"
            ) from error
        self._idle.put(process)
        return found
