"""How a run shows itself: a live bar on a terminal, plain lines in a pipe."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastuiat.config import printable

SECONDS_BETWEEN_LINES = 60.0


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


class Pace:
    """How long what is left will take, by how long what is done has taken."""

    def __init__(self, done: int, total: int) -> None:
        self.first, self.done, self.total = done, done, total
        self.began = time.monotonic()

    def left(self) -> str:
        """` · 1:02:03 left`, nothing where nothing is left or known."""
        if not self.first < self.done < self.total:
            return ""
        each = (time.monotonic() - self.began) / (self.done - self.first)
        return f" · {timedelta(seconds=round(each * (self.total - self.done)))} left"


class TrainingDisplay:
    """Loss, robust accuracy on f(x̂), natural accuracy of the last validation, images/s."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.natural: float | None = None
        self.values: dict[str, float] = {}
        self.rate = 0.0
        self.validated: dict[str, Any] = {}
        """Of the last epoch."""
        self.pace: Pace | None = None
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[line]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.bar.add_task("training", total=None, line="")

    def say(self, text: str) -> None:
        self.console.print(printable(text), highlight=False, markup=False, soft_wrap=True)

    @property
    def done(self) -> int:
        """Steps, those before a resume included."""
        return self.pace.done if self.pace else 0

    def begin(self, done: int, total: int) -> None:
        self.pace = Pace(done, total)
        self.bar.update(self.task, completed=done, total=total)

    def advance(self, done: int) -> None:
        if self.pace:
            self.pace.done = done
        self.bar.update(self.task, completed=done)

    def line(self) -> str:
        parts = [f"loss {self.values['loss']:.3f}"] if "loss" in self.values else []
        if "robust_accuracy" in self.values:
            parts.append(f"robust {percent(self.values['robust_accuracy'])}")
        parts.append(f"natural {percent(self.natural)}")
        if self.rate:
            parts.append(f"{self.rate:,.0f} images/s")
        if "data_wait_percent" in self.values:
            parts.append(f"data wait {self.values['data_wait_percent']:.1f}%")
        return " · ".join(parts)

    def step(self, epoch: int, done: int, values: dict[str, float], rate: float) -> None:
        self.values, self.rate = values, rate
        self.bar.update(self.task, completed=done, description=f"epoch {epoch}", line=self.line())

    def epoch(self, epoch: int, values: dict[str, Any], rate: float) -> None:
        self.natural, self.rate = values.get("val_natural", self.natural), rate
        self.validated = values
        robust = percent(values.get("val_robust"))
        left = self.pace.left() if self.pace else ""
        self.say(f"epoch {epoch:3}  {self.line()}  validation: robust {robust}{left}")
        if values.get("catastrophic_overfitting"):
            self.say(
                f"catastrophic overfitting in epoch {epoch}: the net withstands the training's own "
                f"attack and not PGD (validation: {robust}, below half of its best or a quarter of "
                "the accuracy on the training's own)"
            )


@contextmanager
def show_training(console: Console) -> Iterator[TrainingDisplay]:
    display = TrainingDisplay(console)
    with display.bar:
        yield display


def in_lines(say: Callable[[str], object]) -> Callable[[str, int, int], None]:
    """`progress(name, done, total)` that says a line every minute and one at the end."""
    pace: dict[str, Pace] = {}
    said = time.monotonic()

    def progress(name: str, done: int, total: int) -> None:
        nonlocal said
        pace.setdefault(name, Pace(done, total)).done = done
        if done == total or time.monotonic() - said > SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            say(f"{name:20} {done:>6} of {total}{pace[name].left()}")

    return progress


class EvaluationDisplay:
    """`progress(name, done, total)`, as the attacks go: bars on a terminal, elsewhere a line at
    the end of each attack and every minute before."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.tasks: dict[str, Any] = {}
        self.lines = in_lines(lambda line: self.console.print(line, highlight=False))

    def __call__(self, name: str, done: int, total: int) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.bar.add_task(name, total=total)
        self.bar.update(self.tasks[name], completed=done, total=total)
        if not self.console.is_terminal:
            self.lines(name, done, total)

    def say(self, text: str) -> None:
        self.bar.console.print(printable(text), highlight=False, soft_wrap=True, markup=False)


@contextmanager
def show_evaluation(console: Console) -> Iterator[EvaluationDisplay]:
    display = EvaluationDisplay(console)
    with display.bar:
        yield display
