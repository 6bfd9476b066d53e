"""The training loop: step, log, validate, checkpoint, and stop as asked."""

from __future__ import annotations

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
from fastuiat.data import one_ahead
from fastuiat.fast.view import TrainingView
from fastuiat.methods import Method
from fastuiat.training.averaging import Averaged
from fastuiat.training.catastrophic import CatastrophicWatch
from fastuiat.training.checkpoint import save_checkpoint
from fastuiat.training.clock import StepClock, peak_memory_mib
from fastuiat.training.config import TrainConfig
from fastuiat.training.metrics import MetricsLog
from fastuiat.training.optim import BatchNormMomentum, make_optimizer, set_for_step

Evaluate = Callable[[nn.Module], dict[str, float]]


class Progress(Protocol):
    """Who shows how the run is going."""

    def begin(self, done: int, total: int) -> None: ...
    def advance(self, done: int) -> None: ...
    def step(self, epoch: int, done: int, values: dict[str, float], rate: float) -> None: ...
    def epoch(self, epoch: int, values: dict[str, Any], rate: float) -> None: ...


class Interrupted(Exception):
    """The run was asked to stop; its checkpoint is written."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Trainer:
    """Everything that a run carries from step to step."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        net: nn.Module,
        net_info: dict[str, Any],
        method: Method,
        loader: Any,
        device: torch.device,
        precision: str,
        validate: Evaluate | None,
        test: Evaluate | None,
        folder: Path,
        progress: Progress,
    ) -> None:
        self.config, self.folder, self.progress = config, folder, progress
        self.net, self.net_info, self.method, self.loader = net, net_info, method, loader
        self.device = device
        self.validate, self.test = validate, test
        self.steps_per_epoch: int = loader.order.steps_per_epoch
        self.total_steps = config.epochs * self.steps_per_epoch
        self.last_step = min(self.total_steps, config.max_steps or self.total_steps)
        self.view = TrainingView(net, device=device, precision=precision, compiled=config.compile)
        self.optimizer = make_optimizer(net, config.optimizer)
        self.batchnorm = BatchNormMomentum(self.view, config.optimizer.batchnorm_momentum)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        self.averaged = Averaged(net, config.weight_averaging) if config.weight_averaging else None
        self.watch = CatastrophicWatch(net_info["num_classes"], device)
        self.step = 0  # steps done
        self.best = -1.0
        self.sums: dict[str, Tensor] = {}  # of the metrics since the last log line
        self.summed = 0
        self.validated_epoch = 0
        self.one = torch.ones((), device=device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self.stop_signal: int | None = None
        self.clock = StepClock(config.batch_size)
        self.log: MetricsLog | None = None

    @property
    def is_finished(self) -> bool:
        """Whether the last step is taken and what it led to is validated and saved."""
        last_epoch = -(-self.last_step // self.steps_per_epoch)
        return self.step >= self.last_step and self.validated_epoch >= last_epoch

    def state(self) -> dict[str, Any]:
        """What a resumed run needs: all else is a pure function of the settings and the step."""
        return {
            "net": self.net_info,
            "step": self.step,
            "epoch": -(-self.step // self.steps_per_epoch),
            "model": self.net.state_dict(),
            "averaged": self.averaged.net.state_dict() if self.averaged else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "method": self.method.state_dict(),
            "best": self.best,
            "catastrophic": self.watch.state(),
            "sums": dict(self.sums),
            "summed": self.summed,
            "validated_epoch": self.validated_epoch,
            "metrics_offset": self.log.sync() if self.log else 0,
        }

    def restore(self, state: dict[str, Any]) -> int:
        """Continue from `state()`; returns the byte offset of metrics.jsonl."""
        self.net.load_state_dict(state["model"])
        if self.averaged:
            self.averaged.net.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.method.load_state_dict(state["method"])
        self.step, self.best = state["step"], state["best"]
        self.watch.restore(state["catastrophic"])
        self.sums = {k: v.to(self.device) for k, v in state["sums"].items()}
        self.summed = state["summed"]
        self.validated_epoch = state["validated_epoch"]
        if self.step < self.last_step:  # --max-steps had ended it inside an epoch, and was raised
            self.validated_epoch = min(self.validated_epoch, self.step // self.steps_per_epoch)
        self.view.refresh()
        return state["metrics_offset"]

    @repeatable()
    def train(self, metrics_offset: int = 0) -> None:
        """Run to the last step. Interrupted on Ctrl-C or SIGTERM, after a checkpoint; in a thread
        of its own, where Python takes no handlers, signals are left to the process."""
        in_main = threading.current_thread() is threading.main_thread()
        caught = (signal.SIGINT, signal.SIGTERM) if in_main else ()
        handlers = {signum: signal.signal(signum, self._ask_to_stop) for signum in caught}
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
        finally:
            self.log.close()
            self.loader.close()
            for signum, handler in handlers.items():
                signal.signal(signum, handler)

    def run_epoch(self, epoch: int, start: int) -> None:
        if start == 0 and epoch > 1 and self.validated_epoch < epoch - 1:
            self.end_epoch(epoch - 1)  # stopped between an epoch's last step and its validation
        self.epoch_began = self.clock.mark()
        batches = one_ahead(self.loader.epoch(epoch, start), self.device)
        try:
            for batch in self.clock.timed(batches):
                self.take_step(batch)
                self.progress.advance(self.step)
                if self.step % self.config.log_every == 0:
                    self.write_log(epoch)
                if self.stop_signal is not None:
                    self.save()
                    raise Interrupted(self.stop_signal)
                if time.monotonic() - self.saved_at > 60 * self.config.checkpoint_minutes:
                    self.save()
                if self.step == self.last_step:
                    break
        finally:
            batches.close()
        if self.step % self.steps_per_epoch == 0:
            self.end_epoch(epoch)

    @repeatable()
    def take_step(self, batch: Any) -> None:
        """One optimiser step. Nothing here waits for the device."""
        set_for_step(self.optimizer, self.config.optimizer, self.step, self.total_steps)
        self.net.train()
        if self.scaler.is_enabled():
            self.view.loss_scale = self.scaler.scale(self.one)
        with self.batchnorm.during(self.step):
            out = self.method.loss(self.view, batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(out.loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.view.refresh()
        if self.averaged:
            self.averaged.update(self.step)
        self.watch.see(out.metrics)
        self.step += 1
        loss = out.loss.detach()
        first_bad = (self.bad_step < 0) & ~torch.isfinite(loss)
        self.bad_step = torch.where(first_bad, self.step, self.bad_step)
        metrics = {"loss": loss, **out.metrics, **self.view.gradient_metrics()}
        for name, value in metrics.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.summed += 1

    def write_log(self, epoch: int) -> None:
        self.stop_if_not_finite()
        assert self.log is not None
        means = {name: (total / self.summed).item() for name, total in self.sums.items()}
        speed = self.clock.since(self.logged_at)
        values = {"epoch": epoch, "lr": self.optimizer.param_groups[0]["lr"], **means}
        clock = {**speed, "peak_memory_mib": peak_memory_mib(self.device)}
        self.log.write("train", self.step, values, clock)
        self.progress.step(epoch, self.step, means | clock, speed["images_per_second"])
        self.sums, self.summed = {}, 0
        self.logged_at = self.clock.mark()

    def end_epoch(self, epoch: int) -> None:
        """Validate, remember the best, and save."""
        self.stop_if_not_finite()
        assert self.log is not None
        speed, began = self.clock.since(self.epoch_began), time.monotonic()
        judged = self.averaged.net if self.averaged else self.net
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
        self.log.write("epoch", self.step, values, clock)
        if is_best:
            self.save("best")
        self.save()
        self.progress.epoch(epoch, values, speed["images_per_second"])

    def stop_if_not_finite(self) -> None:
        """UserError that names the step, before a bad state reaches the disk."""
        bad = int(self.bad_step)
        weights = torch.stack([p.detach().isfinite().all() for p in self.net.parameters()])
        if bad < 0 and not bool(weights.all()):
            bad = self.step
        if bad >= 0:
            last = self.folder / "checkpoints" / "last.pt"
            kept = f"the last good checkpoint is {last}" if last.exists() else "none was saved yet"
            raise UserError(
                f"loss or weights became non-finite at step {bad}: lower --max-lr; {kept}"
            )

    def save(self, name: str = "last") -> None:
        self.stop_if_not_finite()
        save_checkpoint(self.folder / "checkpoints" / f"{name}.pt", self.state())
        self.saved_at = time.monotonic()

    def _ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        self.stop_signal = signum
