"""The training loop: step, log, validate, checkpoint, and stop as asked."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastuiat.config import UserError
from fastuiat.convolutions import repeatable
from fastuiat.data import Batch, one_ahead
from fastuiat.distributed import ALONE, Ranks
from fastuiat.interrupts import Interrupted
from fastuiat.torchrun import RankFailed
from fastuiat.training.catastrophic import CatastrophicWatch
from fastuiat.training.checkpoint import save_checkpoint
from fastuiat.training.clock import StepClock, peak_memory_mib
from fastuiat.training.config import TrainConfig, plain
from fastuiat.training.finite import listed, non_finite, sums_of, tensors_of
from fastuiat.training.metrics import MetricsLog
from fastuiat.training.starting import HeadFirst, Start
from fastuiat.training.step import TrainingStep
from fastuiat.writer import refuse_replaced

Evaluate = Callable[[nn.Module], dict[str, float]]
SAVE = 1
"""Among the signals by which a run may be stopped (2 and 15): a checkpoint is due."""


class Progress(Protocol):
    """Who shows how the run is going."""

    def begin(self, done: int, total: int) -> None: ...
    def advance(self, done: int) -> None: ...
    def step(self, epoch: int, done: int, values: dict[str, float], rate: float) -> None: ...
    def epoch(self, epoch: int, values: dict[str, Any], rate: float) -> None: ...


class Trainer:
    """Everything that a run carries from step to step."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        step: TrainingStep,
        net_info: dict[str, Any],
        data: dict[str, Any],
        loader: Any,
        validate: Evaluate | None,
        test: Evaluate | None,
        folder: Path,
        progress: Progress,
        ranks: Ranks = ALONE,
        start: Start | None = None,
        head_first: HeadFirst | None = None,
    ) -> None:
        self.start, self.head_first = start, head_first
        self.config, self.folder, self.progress = config, folder, progress
        self.ranks = ranks
        self.training_step, self.net_info, self.loader = step, net_info, loader
        self.net, self.method, self.device = step.net, step.method, step.device
        self.validate, self.test, self.data = validate, test, data
        self.steps_per_epoch: int = loader.order.steps_per_epoch
        self.last_step = min(step.total_steps, config.max_steps or step.total_steps)
        self.watch = CatastrophicWatch(net_info["num_classes"], self.device)
        self.best = -1.0
        self.sums: dict[str, Tensor] = {}  # of the metrics since the last log line
        self.summed = 0
        self.validated_epoch = 0
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=self.device)
        self.stop_signal: int | None = None
        self.clock = StepClock(config.batch_size)
        self.log: MetricsLog | None = None

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.training_step.taken

    @property
    def is_finished(self) -> bool:
        """Whether the last step is taken and what it led to is validated and saved."""
        last_epoch = -(-self.last_step // self.steps_per_epoch)
        return self.step >= self.last_step and self.validated_epoch >= last_epoch

    def state(self) -> dict[str, Any]:
        """What a resumed run needs: all else is a pure function of the settings and the step."""
        return {
            **self.training_step.state_dict(),
            "net": self.net_info,
            "data": self.data,
            "settings": plain(self.config),
            "epoch": -(-self.step // self.steps_per_epoch),
            "best": self.best,
            "catastrophic": self.watch.state(),
            "sums": dict(self.sums),
            "summed": self.summed,
            "validated_epoch": self.validated_epoch,
            "metrics_offset": self.log.sync() if self.log else 0,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()`; UserError on one that is not whole, possible and finite."""
        last = self.folder / "checkpoints" / "last.pt"
        try:
            self._take_over(state)
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            lacking = f"it has no '{error.args[0]}'" if isinstance(error, KeyError) else str(error)
            why = lacking.strip().splitlines()[0]
            raise UserError(f"{last} is no whole checkpoint of this run: {why}") from error
        if not (0 <= self.step <= self.training_step.total_steps and math.isfinite(self.best)):
            raise UserError(f"{last} is of no step of this run: it cannot be resumed from")
        if broken := non_finite(tensors_of(self.training_step)):
            raise UserError(f"{last} holds NaN or infinity in {listed(broken)}: train anew")
        if self.step < self.last_step:  # --max-steps had ended it inside an epoch, and was raised
            self.validated_epoch = min(self.validated_epoch, self.step // self.steps_per_epoch)

    def _take_over(self, state: dict[str, Any]) -> None:
        self.training_step.load_state_dict(state)
        self.best = state["best"]
        self.watch.restore(state["catastrophic"])
        self.sums = {k: v.to(self.device) for k, v in state["sums"].items()}
        self.summed = state["summed"]
        self.validated_epoch = state["validated_epoch"]
        int(state["metrics_offset"])  # of whoever cuts the log back

    def keep_start(self, say: Callable[[str], object]) -> None:
        """Say what the run begins with, and save it: where that lies may change or go."""
        if self.start is None:
            return
        for line in (self.start.taken, *self.start.notes):
            say(f"--init: {line}")
        self.save()

    @repeatable()
    def train(self, metrics_offset: int = 0) -> None:
        """Run to the last step. Interrupted on Ctrl-C or SIGTERM, after a checkpoint; in a thread
        of its own, where Python takes no handlers, signals are left to the process."""
        in_main = threading.current_thread() is threading.main_thread()
        caught = (signal.SIGINT, signal.SIGTERM) if in_main else ()
        handlers = {signum: signal.signal(signum, self._ask_to_stop) for signum in caught}
        with self.ranks.agreed():
            if self.ranks.is_first:
                self.log = MetricsLog(self.folder, offset=metrics_offset, step=self.step)
        self.saved_at = time.monotonic()
        self.logged_at = self.clock.mark()
        self.epoch_began = self.clock.mark()
        self.progress.begin(self.step, self.last_step)
        try:
            while self.step < self.last_step:
                epoch, start = divmod(self.step, self.steps_per_epoch)
                self.run_epoch(epoch + 1, start)
            if not self.is_finished:
                self.end_epoch(-(-self.step // self.steps_per_epoch))
        except RankFailed as lost:
            lost.asked_to_end = self.stop_signal is not None
            raise
        finally:
            if self.log:
                self.log.close()
            self.loader.close()
            for signum, handler in handlers.items():
                signal.signal(signum, handler)

    def run_epoch(self, epoch: int, start: int) -> None:
        if start == 0 and epoch > 1 and self.validated_epoch < epoch - 1:
            self.end_epoch(epoch - 1)  # stopped between an epoch's last step and its validation
        if self.head_first:
            self.head_first.begin(epoch, self.training_step.optimizer)
        self.epoch_began = self.clock.mark()
        batches = one_ahead(self.loader.epoch(epoch, start), self.device)
        try:
            for batch in self.clock.timed(batches):
                self.take_step(batch)
                self.progress.advance(self.step)
                if self.step % self.config.log_every == 0:
                    self.write_log(epoch)
                asked = self.ranks.loudest(self.asked())
                if asked:
                    self.save()
                if asked > SAVE:
                    raise Interrupted(asked)
                if self.step == self.last_step:
                    break
        finally:
            batches.close()
        if self.step % self.steps_per_epoch == 0:
            self.end_epoch(epoch)

    def take_step(self, batch: Batch) -> None:
        """One optimiser step, its metrics summed. Nothing here waits for the device."""
        out = self.training_step(batch)
        self.watch.see(out.metrics)
        first_bad = (self.bad_step < 0) & ~torch.isfinite(out.loss)
        self.bad_step = torch.where(first_bad, self.step, self.bad_step)
        for name, value in {"loss": out.loss, **out.metrics}.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.summed += 1

    def write_log(self, epoch: int) -> None:
        self.stop_if_not_finite()
        self.stop_if_ranks_differ()
        means = {name: (total / self.summed).item() for name, total in self.sums.items()}
        speed = self.clock.since(self.logged_at)
        values = {"epoch": epoch, "lr": self.training_step.optimizer.param_groups[0]["lr"], **means}
        clock = {**speed, "peak_memory_mib": peak_memory_mib(self.device)}
        if self.log:
            self.log.write("train", self.step, values, clock)
        self.progress.step(epoch, self.step, means | clock, speed["images_per_second"])
        self.sums, self.summed = {}, 0
        self.logged_at = self.clock.mark()

    def end_epoch(self, epoch: int) -> None:
        """Validate, remember the best, and save."""
        self.stop_if_not_finite()
        speed, began = self.clock.since(self.epoch_began), time.monotonic()
        averaged = self.training_step.averaged
        judged = self.net if averaged is None else averaged
        values: dict[str, Any] = {"epoch": epoch}
        if self.validate:
            values |= {f"val_{k}": v for k, v in self.validate(judged).items()}
        if self.test and epoch % self.config.test_every == 0:
            values |= {f"test_{k}": v for k, v in self.test(judged).items()}
        if self.watch.judge(epoch, values.get("val_robust")):
            values["catastrophic_overfitting"] = True
        self.validated_epoch = epoch
        # The other accuracy only settles ties.
        first, second = self.method.chosen_by
        score = values.get(f"val_{first}", 0.0) + 1e-6 * values.get(f"val_{second}", 0.0)
        is_best = self.validate is not None and score > self.best
        self.best = max(self.best, score)
        clock = {**speed, "validation_seconds": time.monotonic() - began}
        if self.log:
            self.log.write("epoch", self.step, values, clock)
        if is_best:
            self.save("best")
        self.save()
        self.progress.epoch(epoch, values, speed["images_per_second"])

    def stop_if_not_finite(self) -> None:
        """UserError that names tensor and step, before a bad state reaches the disk."""
        bad = int(self.bad_step)
        broken = ["loss"] * (bad >= 0) + non_finite(tensors_of(self.training_step))
        if not broken:
            return
        last = self.folder / "checkpoints" / "last.pt"
        kept = f"the last good checkpoint is {last}" if last.exists() else "none was saved yet"
        raise UserError(
            f"{listed(broken)} became non-finite at step {bad if bad >= 0 else self.step}: "
            f"lower --max-lr; {kept}"
        )

    def save(self, name: str = "last") -> None:
        self.stop_if_not_finite()
        self.stop_if_ranks_differ()
        with self.ranks.agreed():
            if self.ranks.is_first:
                refuse_replaced(self.folder)
                save_checkpoint(self.folder / "checkpoints" / f"{name}.pt", self.state())
        self.saved_at = time.monotonic()

    def stop_if_ranks_differ(self) -> None:
        """UserError that names the step where a rank holds other bits than rank 0."""
        if self.ranks.world == 1:
            return
        sums = sums_of(tensors_of(self.training_step))
        self.ranks.refuse_differences(
            {f"{part} at step {self.step}": value for part, value in sums.items()}
        )

    def asked(self) -> int:
        """What this rank wants done behind a step: nothing, SAVE, or to stop by a signal."""
        if self.stop_signal is not None:
            return self.stop_signal
        due = time.monotonic() - self.saved_at > 60 * self.config.checkpoint_minutes
        return SAVE if due and self.ranks.is_first else 0

    def _ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        self.stop_signal = signum
