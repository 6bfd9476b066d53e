"""AutoAttack by its own package's attacks, on batches that stay full, resumable at any moment.

Before each attack, each target class and each restart the batches are formed anew from the points
that still stand, where the package freezes them at the start of an attack. What agrees with the
package's standard evaluation, on the same net, points, seed and batch size:

- Random numbers enter an attack at its random starts (APGD, FAB's restarts, Square) and its choice
  of squares. The package seeds torch's generator for each batch at the start of an attack and lets
  it run on through target classes and restarts; so do we, with one stream per place in the queue.
- Hence every number is the package's own, bit for bit, wherever the batches are the same: with one
  batch for all points, or as long as no point of any but the last batch falls inside an attack.
- Attacks of one pass (apgd-ce, square) and attacks that draw nothing (fab-t) always agree. Only
  later target classes of apgd-t and restarts of `plus` meet other random starts once batches have
  been refilled: another draw from the same distribution.
- A compiled net changes logits by rounding, and so do the gradients that it then makes itself and
  FAB's projection (projection.py). A point at the very border may fall to one side or the other.
  Every adversarial example is confirmed by the net itself, not by the compiled one.

Several ranks take a batch each, of those that one process would form; then all know what each has
found, and the first one writes the state. So it may be gone on with by any number of ranks.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastuiat.config import UserError
from fastuiat.convolutions import repeatable
from fastuiat.distributed import ALONE, Ranks
from fastuiat.evaluation.accuracy import Progress, Say, finite_logits
from fastuiat.evaluation.attacked_net import (
    COMPILE_FROM,
    AttackedNet,
    compiler_settings,
    forward_flops,
)
from fastuiat.evaluation.package import (
    DYNAMIC,
    MOST_TARGETS,
    RANDOMISED,
    VERSIONS,
    Listener,
    Run,
    let_net_differentiate,
    make_adversary,
    package,
    perturb,
    possible,
    runs_of,
    warnings_after,
    warnings_before,
)
from fastuiat.evaluation.projection import fast_projection
from fastuiat.evaluation.state import (
    AutoAttackResult,
    Found,
    State,
    fingerprint,
    read_state,
    set_stream,
    stream_text,
    write_state,
)
from fastuiat.evaluation.tape import Tape, Tapes
from fastuiat.network import modes_kept


class AutoAttackRun:
    """One AutoAttack over one set of points: what its runs share."""

    def __init__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        *,
        eps: float,
        version: str,
        seed: int,
        batch_size: int,
        compile: bool | None,
        state_path: Path | None,
        device: torch.device,
        adjust: Callable[[Any], object] | None,
        progress: Progress | None,
        say: Say | None,
        ranks: Ranks,
    ) -> None:
        self.ranks = ranks
        self.x, self.y = x.contiguous(), y.contiguous()
        self.version, self.seed, self.batch_size = version, seed, batch_size
        self.state_path, self.device = state_path, device
        self.tapes = Tapes(state_path, ranks)
        self.progress = progress if ranks.is_first else None
        self.say = say if say and ranks.is_first else lambda text: None
        self.model = model.to(device).eval()
        self.net = AttackedNet(self.model)
        self.listener = Listener()
        self.adversary = make_adversary(
            self.net, eps=eps, version=version, seed=seed, device=device, listener=self.listener
        )
        if adjust:
            adjust(self.adversary)
        with ranks.agreed():
            classes = finite_logits(self.model, x[:1].to(device)).shape[1]
        fit, self.left_out = possible(list(self.adversary.attacks_to_run), classes)
        self.targets = min(MOST_TARGETS, classes - 1)
        self.runs = [run for attack in fit for run in runs_of(self.adversary, attack, classes)]
        settings = {
            "eps": eps,
            "version": version,
            "seed": seed,
            "batch_size": batch_size,
            "compile": compile,
            "package": package()[1],
            "runs": [asdict(run) for run in self.runs],
        }
        key = fingerprint(self.model, x, y, settings)
        self.state = ranks.from_first(
            lambda: (
                read_state(state_path, key, points=len(self.x), runs=len(self.runs))
                or self.begin(key, compile)
            )
        )

    def begin(self, key: str, compile: bool | None) -> State:
        """The clean pass, and what there is to say of the net."""
        parts = self.x.split(self.batch_size)
        logits = [finite_logits(self.model, part.to(self.device)).cpu() for part in parts]
        clean = (torch.cat(logits).argmax(dim=1) == self.y.cpu()).tolist()
        x, y = parts[0].to(self.device), self.y[: self.batch_size].to(self.device)
        attacks = list(dict.fromkeys([*(r.attack for r in self.runs), *self.left_out]))
        found = warnings_before(self.model, x, y, version=self.version, attacks=attacks)
        state = State(key, package()[1], clean, list(clean), found, compiled=compile)
        if self.version == "rand" or {RANDOMISED, DYNAMIC} & set(found):
            state.compiled = False  # a graph would draw other numbers, or cannot be made
        state.accuracy["clean"] = sum(clean) / len(clean)
        for text in found:
            self.say(f"warning: {text}")
        return state

    @property
    def standing(self) -> list[int]:
        return [i for i, robust in enumerate(self.state.robust) if robust]

    @property
    def place(self) -> int:
        """Of the next batch among those of its run."""
        state = self.state
        if state.queue is None:
            return 0
        done: int = state.parts[-1]["points"] - len(state.queue)
        return done // self.batch_size

    def finish(self) -> AutoAttackResult:
        """Take the evaluation to its end from wherever it is."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), contextlib.ExitStack() as stack:
            self.tapes.adopt(self.place)
            while self.state.run < len(self.runs):
                if not self.net.compiled and self.wants_compiling():
                    stack.enter_context(self.compiled())
                self.take(self.runs[self.state.run])
        state = self.state
        self.tapes.clear()
        for text in warnings_after(state.accuracy, state.zero_gradients):
            if text not in state.warnings:
                state.warnings.append(text)
                self.say(f"warning: {text}")
        return AutoAttackResult(
            robust=torch.tensor(state.robust),
            accuracy=state.accuracy,
            seconds=state.seconds,
            points=state.points,
            parts=state.parts,
            warnings=state.warnings,
            left_out=self.left_out,
            package=state.package,
            target_classes=self.targets,
            compiled=bool(state.compiled),
            compile_seconds=state.compile_seconds,
        )

    def passes_left(self) -> int:
        """Forward passes of one image still to be done if every point holds out."""
        rows = self.standing
        later = sum(run.passes for run in self.runs[self.state.run + 1 :])
        queue = rows if self.state.queue is None else self.state.queue
        return len(rows) * later + len(queue) * self.runs[self.state.run].passes

    def wants_compiling(self) -> bool:
        """Once the first attack is over: whether what is left is worth it."""
        if self.state.compiled is None and self.runs[self.state.run].first and self.state.run:
            flops = self.passes_left() * forward_flops(self.net.net, self.x[:1].to(self.device))
            self.state.compiled = flops >= COMPILE_FROM.get(self.device.type, float("inf"))
        return bool(self.state.compiled)

    @contextlib.contextmanager
    def compiled(self) -> Iterator[None]:
        """The net compiled; where that fails the plain one does, and the record says why."""
        size = min(self.batch_size, len(self.standing) or 1)
        batch = self.x[:size].to(self.device)
        with contextlib.ExitStack() as stack:
            stack.enter_context(compiler_settings())
            began = time.monotonic()
            with self.ranks.agreed():
                failure = self.net.compile(batch, [r.attack for r in self.runs[self.state.run :]])
            self.state.compile_seconds += time.monotonic() - began
            self.note_failures(self.ranks.of_all(failure))
            if self.net.compiled:
                let_net_differentiate(self.adversary, self.net)
                stack.enter_context(fast_projection(self.adversary.fab))
            yield

    def note_failures(self, failures: list[str | None]) -> None:
        """Where the net of one rank is compiled no more, go on with the plain one; say why."""
        failure = next(filter(None, failures), None)
        if failure is None:
            return
        self.net.compiled, self.state.compiled = False, False
        if failure not in self.state.warnings:
            self.state.warnings.append(failure)
            self.say(f"warning: {failure}")

    def take(self, run: Run) -> None:
        """Take the current run to its end, writing the state after every batch."""
        state = self.state
        if state.queue is None:
            state.queue = self.standing
            if run.first:
                state.points[run.attack] = len(state.queue)
                state.streams = []
            state.parts.append(
                {"attack": run.attack, "target": run.target, "restart": run.restart}
                | {"points": len(state.queue), "fallen": 0, "seconds": 0.0}
            )
        part = state.parts[-1]
        while state.queue:
            began = time.monotonic()
            first = self.place
            begins = range(0, len(state.queue), self.batch_size)[: self.ranks.world]
            batches = [state.queue[i : i + self.batch_size] for i in begins]
            found = self.shared_out(run, batches, first)
            for place, (rows, of_batch) in enumerate(zip(batches, found, strict=True), first):
                state.keep(run, place, rows, of_batch)
            self.note_failures([of_batch.failure for of_batch in found])
            elapsed = time.monotonic() - began
            part["seconds"] += elapsed
            state.seconds[run.attack] = state.seconds.get(run.attack, 0.0) + elapsed
            state.queue = state.queue[sum(map(len, batches)) :]
            self.write()
            self.tapes.remove(range(first, first + len(batches)))
            self.show(run)
        part["accuracy"] = len(self.standing) / len(state.robust)
        state.run, state.queue = state.run + 1, None
        if run.last:
            state.accuracy[run.attack] = part["accuracy"]
            self.say(self.account(run.attack))
        self.write()

    def write(self) -> None:
        with self.ranks.agreed():
            if self.state_path and self.ranks.is_first:
                write_state(self.state_path, self.state)

    def shared_out(self, run: Run, batches: list[list[int]], first: int) -> list[Found]:
        """What the run finds in at most as many batches as there are ranks.

        `first` is the place of the first batch; each goes to the rank of its place.
        """
        ranks, own = self.ranks, None
        with ranks.agreed():
            for place, rows in enumerate(batches, first):
                if place % ranks.world == ranks.rank:
                    own = self.attack(run, rows, place)
        of_rank = ranks.of_all(own)
        places = range(first, first + len(batches))
        return [found for place in places if (found := of_rank[place % ranks.world]) is not None]

    def attack(self, run: Run, rows: list[int], place: int) -> Found:
        """One run on one batch.

        `place` numbers the batches of a run; each goes on with the random numbers that the batch in
        its place had before it.
        """
        x, y = self.x[rows].to(self.device), self.y[rows].to(self.device)
        if run.first:
            torch.random.manual_seed(self.seed)
        else:
            set_stream(self.state.streams[place], self.device)
        with torch.no_grad(), self.taped(place):
            adversarial = perturb(self.adversary, run, x, y)
        stream = "" if run.last else stream_text(self.device)
        zeros = self.listener.zero_gradients()
        held = finite_logits(self.model, adversarial).argmax(dim=1) == y
        return Found(held.tolist(), stream, zeros, self.net.failure)

    @contextlib.contextmanager
    def taped(self, place: int) -> Iterator[None]:
        """The net's answers are kept in a file beside the state until the batch is on it.

        Not those of a net that answers by chance: it would draw other numbers behind the tape.
        """
        path = self.tapes.path(place)
        if path is None or self.version == "rand" or RANDOMISED in self.state.warnings:
            yield
            return
        key = [self.state.fingerprint, self.state.run, place, self.net.compiled]
        self.net.tape = Tape(path, key, self.device)
        try:
            yield
        finally:
            self.net.tape = None

    def account(self, attack: str) -> str:
        state = self.state
        count = len(state.robust)
        return (
            f"autoattack {attack}: {100 * state.accuracy[attack]:.2f}% of {count} hold, "
            f"{state.points[attack]} attacked, {state.seconds.get(attack, 0.0):.1f} s"
        )

    def show(self, run: Run) -> None:
        """Progress of the whole in percent of passes, and of the attack in points times runs."""
        if not self.progress:
            return
        queue, now = self.state.queue or [], self.state.run
        left = self.passes_left()
        whole = sum(r.passes for r in self.runs) * max(1, sum(self.state.clean))
        self.progress("autoattack, percent", round(100 * (1 - left / whole)), 100)
        mine = [i for i, r in enumerate(self.runs) if r.attack == run.attack]
        total = self.state.points[run.attack] * len(mine)
        left = len(queue) + len(self.standing) * (mine[-1] - now)
        self.progress(f"  {run.attack}", total - left, total)


@repeatable()
def run_autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    version: str = "standard",
    seed: int = 0,
    batch_size: int = 200,
    compile: bool | None = None,
    state_path: Path | None = None,
    device: torch.device,
    adjust: Callable[[Any], object] | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
    ranks: Ranks = ALONE,
) -> AutoAttackResult:
    """AutoAttack (Croce and Hein 2020) in the L∞ ball: standard, plus or rand.

    x fp32 (N, C, H, W) in [0, 1], y int64 (N,). `compile` None decides after the first attack, by
    the work that is left. `adjust` may change the package's attacks before they begin (fewer
    iterations). `say` is told each attack's outcome and each warning. Where there is a
    state file, it is gone on from and left for the caller to remove. Several `ranks` share the
    batches out; each gets the whole result. The net comes back in the modes that it had. UserError
    on a foreign state, NaN logits or fewer than two classes.
    """
    if version not in VERSIONS:
        raise UserError(f"unknown version '{version}': choose from {', '.join(VERSIONS)}")
    with modes_kept(model):
        run = AutoAttackRun(
            model, x, y, eps=eps, version=version, seed=seed, batch_size=batch_size,
            compile=compile, state_path=state_path, device=device, adjust=adjust,
            progress=progress, say=say, ranks=ranks,
        )  # fmt: skip
        return run.finish()
