"""What stands around a command that is tried: a run, records, and what is no plain file."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastuiat.bench.gpu import report as gpu
from fastuiat.bench.record import make_record
from fastuiat.bench.timing import Measurement
from fastuiat.evaluation.state import State, write_state
from fastuiat.reproduce.ledger import Ledger
from fastuiat.reproduce.rows import Options, rows_of, scale_of
from tests.campaign import forked

HAZARDS = (
    "../folder", "../file.txt", "../empty", "../pipe", "../null", "../zero", "../full", "../loop",
    "../dangling", "../closed", "../closed/x", "../file.npz", "../images.npy", "../nothing",
)  # fmt: skip
DEVICES = {"null": 3, "zero": 5, "full": 7}
"""Linux's minor numbers: nodes of our own, for a superuser's command can replace those in /dev."""
RUN = (
    "train", "--dataset", "digits", "--arch", "wrn-10-1", "--device", "cpu", "--no-compile",
    "--loader", "resident", "--max-steps", "2", "--batch-size", "32", "--val-size", "32",
    "--train-size", "64", "--steps", "1", "--out",
)  # fmt: skip


EVALUATED = ("eval", "run", "--attacks", "clean", "pgd", "--n", "8")
ON_RECORD = (
    "reproduce", "table6", "--rows", "iat", "--dataset", "digits", "--arch", "wrn-10-1",
    "--epochs", "1", "--n", "8", "--device", "cpu", "--record", "../ledger.jsonl",
)  # fmt: skip


def filled(kept: Path, more: Callable[[Path], None] | None = None) -> Callable[[Path], None]:
    """Fills a folder with what commands may meet; all that takes a while is made once."""

    def fill(folder: Path) -> None:
        if not kept.exists():
            make(kept)
            if more:
                make_records(kept)
                more(kept)
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        make_hazards(folder)

    return fill


def make(kept: Path) -> None:
    """A finished run with its evaluations, and bench records."""
    kept.mkdir()
    for words in ((*RUN, "run"), EVALUATED):
        done = forked.run(words, kept, kept.with_name("made"), work=120.0)
        assert done.code == 0, done.err
    write_lines(kept / "records.jsonl", bench_records())
    images = np.zeros((40, 32, 32, 3), np.uint8)
    np.savez(kept / "file.npz", image=images, label=np.arange(40) % 10)
    np.save(kept / "images.npy", images)


def write_lines(path: Path, values: Iterable[Any]) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def make_records(kept: Path) -> None:
    """What a table, `bench gpu` and an unfinished AutoAttack keep."""
    made = {"time": "2026-01-01T00:00:00+00:00", "device": "a CPU", "jobs": 1, "precision": "fp32"}
    row = rows_of(Options(table="table6", rows=("iat",), dataset="digits", arch="wrn-10-1",
                          epochs=1, n=8, device="cpu"))[0]  # fmt: skip
    columns = scale_of(Options(table="table6", n=8)).columns
    Ledger(kept / "ledger.jsonl", "table6").add(
        row, 0,
        {"accuracies": dict.fromkeys(columns, 50.0), "seconds_per_epoch": 1.0, "made": made,
         "curve": [{"epoch": 1, "val_natural": 0.5}], "n": dict.fromkeys(columns, 8),
         "eps": row.eps},
    )  # fmt: skip
    report = kept / "gpu-report"
    report.mkdir()
    call = {"time": made["time"], "budget": 60.0, "seconds": 5.0}
    state = {"format": gpu.FORMAT, "id": "0123456789ab", "time": made["time"], **forked.HARDWARE,
             "sources": gpu.digest_of_sources(), "calls": [call],
             "stages": {"step": {"verdict": "passed", "seconds": 3.0}}}  # fmt: skip
    (report / "state.json").write_text(json.dumps(state))
    write_lines(report / "records.jsonl", bench_records())
    unfinished = State(fingerprint="f" * 64, package="p", clean=[True] * 8, robust=[True] * 8,
                       warnings=[])  # fmt: skip
    write_state(kept / "run/eval/autoattack_eps8over255_n8.state", unfinished)
    told = json.loads((kept / "run/eval/clean_n8.json").read_text())
    losses = {"measure": "natural loss", "sha256": told["checkpoint"]["sha256"],
              "weights": "averaged", "dataset": "digits", "n": 8, "loss": [0.5] * 8}  # fmt: skip
    (kept / "run/eval/natural-loss_n8.json").write_text(json.dumps(losses))
    holder = {"command": "fastuiat train", "process": 1, "host": "here"}
    (kept / "run/.lock").write_text(json.dumps(holder))
    (kept / "model.json").write_text(json.dumps({"link": "none", "name": "a name"}))


def make_hazards(folder: Path) -> None:
    (folder / "folder").mkdir()
    (folder / "closed").mkdir(0)
    (folder / "file.txt").write_text("mine")
    (folder / "empty").touch()
    os.mkfifo(folder / "pipe")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    for name, minor in DEVICES.items():
        try:
            os.mknod(folder / name, stat.S_IFCHR | 0o666, os.makedev(1, minor))
        except PermissionError:
            (folder / name).touch()


def bench_records() -> list[dict[str, object]]:
    """Of the step suite, as `fastuiat bench step --json` writes them."""
    made = []
    for name, seconds in (("naive", 0.5), ("fastuiat", 0.2)):
        measured = Measurement(name)
        measured.samples = [seconds, seconds * 1.1, seconds * 0.9]
        made.append(
            make_record(
                suite="step", case="uiat", measured=measured, device=torch.device("cpu"),
                config={"method": "uiat", "arch": "wrn-10-1"},
            )
        )  # fmt: skip
    return made
