"""A long run: what an epoch reads, writes and holds does not grow with what lies behind it."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

from fastuiat.reproduce.runs import curve
from fastuiat.training import run
from fastuiat.training.config import TrainConfig
from fastuiat.training.metrics import cut_back
from tests.large import calls_in, write_log

EPOCHS = 4


def moved() -> tuple[int, int]:
    """Bytes that this process has read and written, by system calls."""
    lines = Path("/proc/self/io").read_text().splitlines()
    counts = {name: int(value) for name, value in (line.split(": ") for line in lines)}
    return counts["rchar"], counts["wchar"]


class Watch:
    """Notes at the end of each epoch what was moved, and how many files are open."""

    def __init__(self) -> None:
        self.moved: list[tuple[int, int]] = []
        self.open: list[int] = []

    def epoch(self, epoch: int, values: dict[str, Any], rate: float) -> None:
        self.moved.append(moved())
        self.open.append(len(os.listdir("/proc/self/fd")))

    def __getattr__(self, name: str) -> Any:
        return lambda *words: None


def test_an_epoch_reads_nothing_and_writes_as_much_as_any(tmp_path):
    config = TrainConfig(
        dataset="digits", arch="wrn-10-1", method="natural", loader="resident", precision="fp32",
        compile=False, device="cpu", val_size=8, train_size=8, batch_size=8, log_every=1,
        epochs=EPOCHS, out=tmp_path / "run",
    )  # fmt: skip
    watch = Watch()
    folder = run.train(config, progress=watch, say=lambda _: None)
    assert len(watch.open) == EPOCHS and len(set(watch.open)) == 1
    pairs = list(zip(watch.moved, watch.moved[1:], strict=False))
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
