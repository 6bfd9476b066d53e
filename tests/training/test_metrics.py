"""metrics.jsonl goes on from a checkpoint, whatever was done to it meanwhile."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import shutil
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastuiat.config import UserError
from fastuiat.report.log import read_metrics
from fastuiat.training import metrics, run
from fastuiat.training.folder import config_of
from fastuiat.training.metrics import Events, MetricsLog, cut_back, is_kept
from tests.training.tiny import TINY

CONFIG = dataclasses.replace(TINY, epochs=4, log_every=1)


def without_clocks(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["clock"]
    return lines


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """(a whole run, the same run stopped in its third epoch by a signal)."""
    folder = tmp_path_factory.mktemp("runs")
    whole = run.train(dataclasses.replace(CONFIG, out=folder / "whole"), say=lambda _: None)

    from fastuiat.interrupts import Interrupted
    from fastuiat.training.trainer import Trainer

    take = Trainer.take_step

    def stopping(self, batch):
        take(self, batch)
        if self.step == 5:
            self.stop_signal = 15

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "take_step", stopping)
        with pytest.raises(Interrupted):
            run.train(dataclasses.replace(CONFIG, out=folder / "cut"), say=lambda _: None)
    return whole, folder / "cut"


def resumed(cut: Path, tmp_path: Path, damage) -> tuple[Path, list[str]]:
    """The stopped run, gone on with after `damage(path of its log)`; and what was said."""
    folder = Path(shutil.copytree(cut, tmp_path / "run"))
    damage(folder / "metrics.jsonl")
    notes: list[str] = []
    run.resume(config_of(folder), folder, say=notes.append)
    assert b"\0" not in (folder / "metrics.jsonl").read_bytes()
    read_metrics(folder / "metrics.jsonl")
    return folder, [note for note in notes if "metrics.jsonl" in note]


def lines_of(cut: Path) -> list[bytes]:
    return (cut / "metrics.jsonl").read_bytes().splitlines(keepends=True)


def test_what_was_logged_behind_the_checkpoint_goes(runs, tmp_path):
    whole, cut = runs

    def more(path: Path) -> None:
        later = json.dumps({"kind": "train", "step": 6, "epoch": 3, "loss": 9.0, "clock": {}})
        with open(path, "a") as file:
            file.write(later + "\n" + later[:20])

    for damage in (lambda path: None, more):
        folder, notes = resumed(cut, tmp_path / str(len(list(tmp_path.iterdir()))), damage)
        assert not notes and without_clocks(folder) == without_clocks(whole)


DAMAGES = {
    "removed": (lambda path: path.unlink(), 0),
    "emptied": (lambda path: path.write_bytes(b""), 0),
    "cut in a line": (lambda path: path.write_bytes(path.read_bytes()[:-9]), -1),
    "cut after a line": (lambda p: p.write_bytes(b"".join(p.read_bytes().splitlines(True)[:3])), 3),
    "garbage in front": (lambda p: p.write_bytes(b"\xff\0 \n" + p.read_bytes()), None),
    "garbage amid": (lambda p: p.write_bytes(p.read_bytes().replace(b"\n", b"\nnull\n", 1)), None),
    "longer garbage": (lambda path: path.write_bytes(b"\0" * 100_000), 0),
    "a byte changed": (lambda p: p.write_bytes(b"[" + p.read_bytes()[1:]), 1.5),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_log_is_said_and_begun_anew_from_what_is_there(kind, runs, tmp_path):
    whole, cut = runs
    damage, left = DAMAGES[kind]
    folder, notes = resumed(cut, tmp_path, damage)
    assert len(notes) == 1 and "\n" not in notes[0]
    expected, before = without_clocks(whole), len(lines_of(cut))
    if left == 1.5:
        there = expected[1:before]
    elif left is None:
        there = expected[:before]
    else:
        there = expected[: before + left if left < 0 else left]
    assert without_clocks(folder) == there + expected[before:]
    # Each epoch that ended since has its line, once.
    epochs = [line["epoch"] for line in without_clocks(folder) if line["kind"] == "epoch"]
    assert epochs[-2:] == [3, 4] and len(set(epochs)) == len(epochs)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: None, False),
        (DAMAGES["cut in a line"][0], True),
        (DAMAGES["garbage amid"][0], True),
        (DAMAGES["removed"][0], True),
        (lambda path: path.write_bytes(path.read_bytes() + b'{"kind": "tra'), False),
    ],
)
def test_the_log_of_a_finished_run_is_mended_too(damage, said, runs, tmp_path):
    """As `report` advises of a line that is none."""
    folder, notes = resumed(runs[0], tmp_path, damage)
    assert len(notes) == said
    left, expected = without_clocks(folder), without_clocks(runs[0])
    assert left == expected if not said else all(line in expected for line in left)


def test_lines_of_the_checkpoints_own_step():
    def line(**values) -> bytes:
        return json.dumps({"kind": "train", "step": 4, "epoch": 2} | values).encode()

    assert is_kept(line(), 4, 1) and not is_kept(line(), 3, 1)
    assert is_kept(line(kind="epoch"), 4, 2)  # validated before it was saved
    assert not is_kept(line(kind="epoch"), 4, 1)  # validated after, and will be again
    for damaged in (b"null", b"[]", b"{}", b"\0\0", b'{"step": "x", "epoch": 1}', b"[" * 99_999):
        assert not is_kept(damaged, 4, 2)


@pytest.mark.parametrize("seed", range(20))
def test_any_cut_leaves_whole_lines(seed, tmp_path):
    chance = random.Random(seed)
    lines = [
        json.dumps({"kind": "train", "step": n, "epoch": 1, "loss": chance.random()}).encode()
        for n in range(1, 30)
    ]
    content = b"\n".join(lines) + b"\n"
    offset = len(b"\n".join(lines[:20])) + 1
    state = {"metrics_offset": offset, "step": 20, "validated_epoch": 0}
    end = chance.randrange(len(content))
    (tmp_path / "metrics.jsonl").write_bytes(content[:end])
    at, note = cut_back(tmp_path, state)
    MetricsLog(tmp_path, offset=at, step=20).close()
    left = (tmp_path / "metrics.jsonl").read_bytes()
    assert (note is None) == (end >= offset)
    assert left == content[: min(offset, content[:end].rfind(b"\n") + 1)]


def test_the_events_are_what_tensorboard_reads(tmp_path):
    """The scalars, to fp32, by its own reader; a later process's take the place of earlier ones."""
    values = {"loss": 0.1, "epoch": 1, "note": "no number", "robust": math.inf}
    first = Events(tmp_path / "tensorboard", purge_step=1)
    for step in (5, 10):
        first.add("train", values, step)
    first.close()
    second = Events(tmp_path / "tensorboard", purge_step=6)
    second.add("train", values | {"loss": 0.2}, 8)
    second.close()
    read = EventAccumulator(str(tmp_path / "tensorboard"))
    read.Reload()
    assert sorted(read.Tags()["scalars"]) == ["train/epoch", "train/loss", "train/robust"]
    found = [(event.step, event.value) for event in read.Scalars("train/loss")]
    expected = torch.tensor([0.1, 0.2]).tolist()
    assert found == [(5, expected[0]), (8, expected[1])]


def test_a_log_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    log = MetricsLog(tmp_path)
    with open("/dev/full", "wb") as full:
        monkeypatch.setattr(log, "_file", full)
        with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written .No space left"):
            log.write("train", 1, {"epoch": 1}, {})
        log.close()
    events = Events(tmp_path / "tensorboard", purge_step=1)
    with open("/dev/full", "wb") as full:
        events._records._writer = full
        events._file = full
        with pytest.raises(UserError, match=r"events.* cannot be written .No space left"):
            events.add("train", {"loss": 1.0}, 1)
        events.close()


@pytest.mark.parametrize("how", ["removed", "replaced", "a link"])
def test_a_log_that_is_taken_away_while_it_is_written_is_written_anew(how, tmp_path):
    log = MetricsLog(tmp_path)
    path = tmp_path / "metrics.jsonl"
    log.write("train", 1, {"epoch": 1}, {"seconds": 1.0})
    path.rename(tmp_path / "aside")
    foreign = tmp_path / "foreign"
    foreign.write_text("mine")
    if how == "replaced":
        path.write_text("something else")
    elif how == "a link":
        path.symlink_to(foreign)
    log.write("epoch", 2, {"epoch": 1}, {"seconds": 1.0})
    assert log.sync() == path.stat().st_size
    log.write("train", 3, {"epoch": 2}, {"seconds": 1.0})
    log.close()
    assert [line["step"] for line in map(json.loads, path.read_text().splitlines())] == [1, 2, 3]
    assert not path.is_symlink() and foreign.read_text() == "mine"


def test_a_log_that_goes_behind_the_last_look_is_there_at_the_end(tmp_path):
    log = MetricsLog(tmp_path)
    log.write("epoch", 1, {"epoch": 1}, {})
    log.sync()
    (tmp_path / "metrics.jsonl").rename(tmp_path / "aside")
    log.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == (tmp_path / "aside").read_bytes() != b""


def test_a_log_that_goes_while_it_is_written_anew_loses_nothing(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(tmp_path)
    log.write("epoch", 1, {"epoch": 1}, {})
    path.unlink()
    write, times = metrics.write_bytes, 0

    def then_gone(place, content):
        nonlocal times
        write(place, content)
        times += 1
        if times == 1:
            path.unlink()

    monkeypatch.setattr(metrics, "write_bytes", then_gone)
    log.sync()
    log.write("epoch", 2, {"epoch": 2}, {})
    log.close()
    assert times == 2
    assert [line["epoch"] for line in map(json.loads, path.read_text().splitlines())] == [1, 2]
