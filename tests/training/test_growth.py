"""A long run: what an epoch reads, writes and holds does not grow with what lies behind it."""

from __future__ import annotations

import gc
import json
import os
import sys
import tracemalloc
from itertools import pairwise
from typing import Any

from fastuiat.reproduce.runs import curve
from fastuiat.training import run
from fastuiat.training.config import TrainConfig
from fastuiat.training.metrics import MetricsLog, cut_back
from tests.large import calls_in, log_lines, moved, write_log

EPOCHS = 6


def held() -> int:
    """Bytes that Python objects hold, but for what CPython remembers of attributes.

    PyTorch looks attributes up by texts made anew each time, and the type cache keeps 4,096 names.
    """
    gc.collect()
    sys._clear_type_cache()
    return tracemalloc.get_traced_memory()[0]


class Watch:
    """Notes at the end of each epoch what was moved, what is open, and late ones what is held."""

    def __init__(self) -> None:
        self.moved: list[tuple[int, int]] = []
        self.open: list[int] = []
        self.held: dict[int, int] = {}

    def epoch(self, epoch: int, values: dict[str, Any], rate: float) -> None:
        if epoch == 3:
            tracemalloc.start()
        if epoch in (4, EPOCHS):
            self.held[epoch] = held()
        self.moved.append(moved())
        self.open.append(len(os.listdir("/proc/self/fd")))

    def __getattr__(self, name: str) -> Any:
        return lambda *words: None


def test_an_epoch_reads_and_keeps_nothing_and_writes_as_much_as_any(tmp_path):
    config = TrainConfig(
        dataset="digits", arch="wrn-10-1", method="natural", loader="resident", precision="fp32",
        compile=False, device="cpu", val_size=8, train_size=8, batch_size=8, log_every=1,
        epochs=EPOCHS, out=tmp_path / "run",
    )  # fmt: skip
    watch = Watch()
    try:
        folder = run.train(config, progress=watch, say=lambda _: None)
    finally:
        tracemalloc.stop()
    before, after = watch.held.values()
    # Its notes here are 160 bytes an epoch, what a line of the log says is 2,000 as a dictionary.
    assert after - before < 1000 * (EPOCHS - 4), watch.held
    assert len(watch.open) == EPOCHS and len(set(watch.open)) == 1
    pairs = list(pairwise(watch.moved))
    read = [after[0] - before[0] for before, after in pairs]
    written = [after[1] - before[1] for before, after in pairs]
    # An epoch saves `last`, and `best` too where it is one; the log is a few hundred bytes a line.
    saved = (folder / "checkpoints" / "last.pt").stat().st_size
    assert max(read) < 2000
    assert all(min(abs(w - k * saved) for k in (1, 2)) < 5000 for w in written), (written, saved)


def test_a_resume_does_not_hold_the_log(tmp_path):
    peaks = []
    for count in (500, 2000):
        write_log(tmp_path, count, each=10)
        size = (tmp_path / "metrics.jsonl").stat().st_size
        state = {"metrics_offset": size, "step": count, "validated_epoch": count // 10}
        tracemalloc.start()
        assert cut_back(tmp_path, state) == (size, None)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 20_000 < size


def test_a_line_costs_what_any_costs_and_a_resume_nothing(tmp_path):
    log, marks = MetricsLog(tmp_path), []
    for i, line in enumerate(log_lines(80, each=10)):
        if i % 40 == 0:
            marks.append(moved())
        step, kind, clock = (line.pop(name) for name in ("step", "kind", "clock"))
        log.write(kind, step, line, clock)
        offset = log.sync()
    marks.append(moved())
    log.close()
    first, second = ([b - a for a, b in zip(*two, strict=True)] for two in pairwise(marks))
    assert max(first[0], second[0]) < 2000 and abs(second[1] - first[1]) < first[1] / 20
    (events,) = (tmp_path / "tensorboard").iterdir()
    written = events.read_bytes()
    before = moved()
    MetricsLog(tmp_path, offset=offset, step=80).close()
    assert max(b - a for a, b in zip(before, moved(), strict=True)) < 2000
    assert events.read_bytes() == written and len(list(events.parent.iterdir())) == 2


def test_the_curve_of_a_long_run_grows_with_its_log(tmp_path):
    write_log(tmp_path, 10, each=2)
    curve(tmp_path)
    counts = []
    for count in (400, 800):
        write_log(tmp_path, count, each=2)
        counts.append(calls_in(lambda: curve(tmp_path)))
    assert counts[1] < 2.3 * counts[0]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    last = curve(tmp_path)[-1]
    assert last["epoch"] == 400 and last["loss"] == round(lines[-2]["loss"], 5)


def test_the_curve_does_not_hold_the_log(tmp_path):
    write_log(tmp_path, 1000, each=50)
    curve(tmp_path)
    tracemalloc.start()
    assert len(curve(tmp_path)) == 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (tmp_path / "metrics.jsonl").stat().st_size  # as dictionaries it is fivefold
