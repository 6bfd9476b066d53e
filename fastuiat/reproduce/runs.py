"""One run of a row: trained and evaluated by processes of its own, as far as it is not yet."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from fastuiat.bounds import lines_in
from fastuiat.config import UserError
from fastuiat.evaluation.record import file_name
from fastuiat.files import json_in, remove_unfinished, sha256_of, write_json
from fastuiat.machine import describe
from fastuiat.reproduce.rows import Options, Row
from fastuiat.sealed import unsealed
from fastuiat.training.checkpoint import read
from fastuiat.training.checkpoint_file import locate
from fastuiat.training.folder import begun_with, holds_run, stored_config

Run = Callable[..., None]
"""`fastuiat WORDS…`, to its end."""
EVALUATION_BATCH = 200
IDENTITY = (
    "recipe", "dataset", "method", "arch", "epochs", "seed", "batch_size", "train_size",
    "extra_data", "weight_averaging", "optimizer", "settings",
)  # fmt: skip
"""Settings by which a folder is known to hold a row's run."""
LOGGED = (
    "loss", "robust_accuracy", "target_accuracy", "target_confidence", "target_margin", "z_flipped",
)  # fmt: skip
"""Metrics of training that a curve keeps."""


def is_finished(folder: Path, epochs: int) -> bool:
    """Whether the run in a folder has come to its end."""
    last = folder / "checkpoints" / "last.pt"
    return last.is_file() and read(last)["validated_epoch"] >= epochs


def refuse_other(folder: Path, row: Row, seed: int) -> None:
    """UserError where the folder holds a run with other settings."""
    stored = begun_with(folder)
    wanted = row.config.to_json() | {"seed": seed}
    for name in IDENTITY:
        if stored.get(name) != json.loads(json.dumps(wanted[name])):
            raise UserError(
                f"{folder} holds a run with {name} {stored.get(name)}, not {wanted[name]}: "
                "choose another --out"
            )


def train_row(row: Row, folder: Path, seed: int, flags: list[str], run: Run) -> None:
    """Bring a run to its end, from wherever it is."""
    if holds_run(folder):
        refuse_other(folder, row, seed)
        if not is_finished(folder, row.config.epochs):
            run("train", "--resume", str(folder))
    else:
        run("train", *flags)


def measured(folder: Path, attack: str, eps: float, n: int) -> dict[str, Any] | None:
    """The record of an evaluation of the run's present best checkpoint, or None."""
    path = folder / "eval" / f"{file_name(attack, eps, n)}.json"
    if not path.is_file():
        return None
    try:
        record = json_in(path)
        owner = record["checkpoint"]
        is_default, sha256 = not owner.get("chosen"), owner["sha256"]
        _ = 100 * record["accuracy"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        again = "remove it, and it is measured anew"
        raise UserError(f"{path} is damaged ({error}): {again}") from error
    return record if is_default and sha256 == sha256_of(locate(folder)) else None


def evaluate_row(
    row: Row, folder: Path, points: dict[str, int], options: Options, run: Run
) -> dict[str, float]:
    """Accuracies by column, in percent; only what is not yet measured is measured.

    `points` are the test images of each column.
    """
    attacks = {c: "clean" if c == "natural" else c for c in points}
    for n in dict.fromkeys(points.values()):
        wanted = [attacks[c] for c in points if points[c] == n]
        missing = [a for a in wanted if measured(folder, a, row.eps, n) is None]
        if missing:
            words = ["--attacks", *missing, "--n", str(n)]
            words += [] if missing == ["clean"] else ["--eps", repr(row.eps)]
            words += ["--batch-size", str(min(EVALUATION_BATCH, n))]  # batches are padded to it
            words += ["--unchecked-data"] if options.unchecked_data else []
            run("eval", str(folder), *words, "--device", options.device)
    result = {}
    for column, attack in attacks.items():
        record = measured(folder, attack, row.eps, points[column])
        assert record is not None
        result[column] = 100 * record["accuracy"]
    return result


def logged_in(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of a finished run's log; UserError where they are lost or damaged."""
    path, number = folder / "metrics.jsonl", 0
    try:
        for line in lines_in(path):
            number += 1
            values = unsealed(line)
            _ = values["kind"], values["step"], values["epoch"], values["clock"]
            yield values
    except OSError as error:
        raise UserError(f"{path} is lost: move {folder} away, and it is made anew") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path}, line {number} is damaged: move {folder} away, and it is made anew"
        ) from error


def seconds_per_epoch(folder: Path, batch_size: int) -> float | None:
    """Mean training time of the whole epochs after the first, which warms up and compiles.

    None where there are none: an epoch that a run was resumed in counts for nothing.
    """
    epochs = [line for line in logged_in(folder) if line["kind"] == "epoch"]
    if not epochs:
        return None
    steps = epochs[-1]["step"] // epochs[-1]["epoch"]
    clocks = [e["clock"] for e in epochs[1:] if e["clock"].get("steps", steps) == steps]
    times = [steps * batch_size / clock["images_per_second"] for clock in clocks]
    return statistics.fmean(times) if times else None


def curve(folder: Path) -> list[dict[str, float]]:
    """What each epoch ended with: validation, and the mean of what training logged."""
    logged: dict[int, list[dict[str, Any]]] = {}  # of one epoch: a log may be large
    result = []
    for line in logged_in(folder):
        if line["kind"] == "train":
            if line["epoch"] not in logged:
                logged = {line["epoch"]: []}
            logged[line["epoch"]].append(line)
        elif line["kind"] == "epoch":
            result.append(point(line, logged.get(line["epoch"], [])))
    return result


def point(end: dict[str, Any], logged: list[dict[str, Any]]) -> dict[str, float]:
    """Of a curve: an epoch's last line, and the lines of its training."""
    means = {
        name: statistics.fmean(line[name] for line in logged)
        for name in (LOGGED if logged else ())
        if name in logged[0]
    }
    values = {k: v for k, v in end.items() if k == "epoch" or k.startswith(("val_", "test_"))}
    return {k: round(v, 5) for k, v in (values | means).items()}


def made(folder: Path, jobs: int, device: torch.device) -> dict[str, Any]:
    """What the run was made on and when, kept in its folder when it is made; and its precision."""
    path = folder / "made.json"
    remove_unfinished(folder)  # nobody else writes there, for `reproduce` holds what is around it
    if not path.exists():
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        write_json(path, describe(device) | {"jobs": jobs, "time": now})
    try:
        found = dict(json_in(path))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}): remove it, and what this machine is stands there"
        ) from error
    return found | {"precision": stored_config(folder)["precision"]}
