"""One batch under one run of AutoAttack: a function of its job alone, here or in other processes.

A small net gains little from a second thread, so on a CPU the batches of a run are shared out among
processes with a thread each. Which of them takes a batch changes nothing but the time.
"""

from __future__ import annotations

import base64
import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Any, cast

import torch
from torch import Tensor, nn

from fastuiat.allocator import keep_freed_memory
from fastuiat.config import UserError
from fastuiat.evaluation.attacked_net import AttackedNet, compiler_settings, fast_projection
from fastuiat.evaluation.attacks import finite_logits
from fastuiat.evaluation.package import Run, make_adversary, perturb


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all batches of an evaluation share."""

    model: nn.Module
    eps: float
    version: str
    seed: int
    device: torch.device
    adjust: Callable[[Any], object] | None

    def adversary(self, net: Any) -> Any:
        """The package's object around `net`."""
        made = make_adversary(
            net, eps=self.eps, version=self.version, seed=self.seed, device=self.device
        )
        if self.adjust:
            self.adjust(made)
        return made


@dataclass(frozen=True)
class Job:
    """A batch x (B, C, H, W), y (B,) for one run."""

    run: Run
    x: Tensor
    y: Tensor
    stream: str | None
    """Where the random numbers go on; None where the attack begins with its seed."""
    compiled: bool


@dataclass(frozen=True)
class Outcome:
    held: list[bool]
    """Which points the net still gets right."""
    stream: str | None
    """Where the random numbers have got to; None after an attack's last run."""
    zero_gradients: int
    compile_seconds: float
    failure: str | None
    """Why the net is not compiled although it should be."""


def stream_text(device: torch.device) -> str:
    """The state of torch's generators on the CPU and the device, as text."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    packed = (zlib.compress(state.numpy().tobytes()) for state in states)
    return " ".join(base64.b64encode(p).decode() for p in packed)


def set_stream(text: str, device: torch.device) -> None:
    states = [
        torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(part))), dtype=torch.uint8)
        for part in text.split()
    ]
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


class Attacker:
    """Takes jobs one after another. It moves torch's generators."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model = setting.model.to(setting.device).eval()
        self.net = AttackedNet(self.model)
        self.adversary = setting.adversary(self.net)
        self.failure: str | None = None

    def __call__(self, job: Job) -> Outcome:
        device = self.setting.device
        x, y = job.x.to(device), job.y.to(device)
        compile_seconds = 0.0
        with contextlib.ExitStack() as stack:
            if job.compiled and not self.failure:
                stack.enter_context(compiler_settings())
                stack.enter_context(fast_projection(self.adversary.fab))
                compile_seconds = self.compile(x)
            if job.stream is None:
                torch.random.manual_seed(self.setting.seed)
            else:
                set_stream(job.stream, device)
            with torch.no_grad():
                adversarial = perturb(self.adversary, job.run, x, y)
        held = finite_logits(self.model, adversarial).argmax(dim=1) == y
        return Outcome(
            held.tolist(),
            None if job.run.last else stream_text(device),
            self.adversary.apgd.logger.zero_gradients(),
            compile_seconds,
            self.failure,
        )

    def compile(self, x: Tensor) -> float:
        """Compile once, for images like x; the seconds that it took."""
        if self.net.compiled:
            return 0.0
        began = time.monotonic()
        self.failure = self.net.compile(x[torch.arange(max(len(x), 32)) % len(x)])
        return time.monotonic() - began


class Processes:
    """`count` processes with an Attacker each, which end with this one; for the CPU."""

    def __init__(self, setting: Setting, count: int) -> None:
        threads = max(1, torch.get_num_threads() // count)
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes = []
        # Plain pickling: torch's own would share the tensors' memory, and hold files open for it.
        packed = pickle.dumps(setting)
        for _ in range(count):
            mine, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, packed, threads), daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(mine)
            self.processes.append(process)

        for pipe in self.pipes:
            if isinstance(failure := self.answer(pipe), Exception):
                self.close()
                raise failure

    def answer(self, pipe: Connection) -> Any:
        """What a process has to say next."""
        try:
            return pickle.loads(pipe.recv_bytes())
        except (EOFError, ConnectionResetError) as error:
            raise UserError(
                "a process of AutoAttack was killed: run the same command to go on"
            ) from error

    def outcomes(self, jobs: Iterable[Job]) -> Iterator[Outcome]:
        """In the order of the jobs; whatever a process raises is raised here."""
        waiting = iter(enumerate(jobs))
        busy: dict[Any, int] = {}
        done: dict[int, Any] = {}
        due = 0

        def give(pipe: Connection) -> None:
            if (job := next(waiting, None)) is not None:
                busy[pipe] = job[0]
                pipe.send_bytes(pickle.dumps(job[1]))

        for pipe in self.pipes:
            give(pipe)
        while busy or done:
            while due in done:
                outcome = done.pop(due)
                due += 1
                if isinstance(outcome, Exception):
                    raise outcome
                yield outcome
            for ready in wait(list(busy)) if busy else ():
                pipe = cast(Connection, ready)
                done[busy.pop(pipe)] = self.answer(pipe)
                give(pipe)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()


def serve(pipe: Connection, packed: bytes, threads: int) -> None:
    """What a process of Processes does: say that it is there, and take jobs until its parent ends.

    An exception is an answer like any other.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    keep_freed_memory()
    torch.set_num_threads(threads)

    def answer(made: Callable[[], Any]) -> Any:
        try:
            result = made()
        except Exception as error:
            pipe.send_bytes(pickle.dumps(error))
            return None
        pipe.send_bytes(pickle.dumps(result if isinstance(result, Outcome) else None))
        return result

    attacker = answer(lambda: Attacker(pickle.loads(packed)))
    while attacker:
        job = pickle.loads(pipe.recv_bytes())
        answer(partial(attacker, job))


class Attackers:
    """One Attacker here, or as many processes as are asked for; `outcomes` of either."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.here: Attacker | None = None
        self.processes: Processes | None = None
        self.alone = False

    def outcomes(self, jobs: Sequence[Job], processes: int) -> Iterator[Outcome]:
        """Outcomes in the jobs' order, each as soon as those before it are there.

        Processes are begun for several jobs, and stay.
        """
        if self.processes is None and min(processes, len(jobs)) > 1 and not self.alone:
            try:
                self.processes = Processes(self.setting, processes)
            except (pickle.PicklingError, AttributeError, TypeError, ImportError):
                self.alone = True  # the net cannot be sent to another process
        if self.processes:
            return self.processes.outcomes(jobs)
        self.here = self.here or Attacker(self.setting)
        return map(self.here, jobs)

    def close(self) -> None:
        if self.processes:
            self.processes.close()
