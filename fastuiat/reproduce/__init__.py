"""`fastuiat reproduce table1`: train and evaluate every row of a table, set beside the paper's.

Each row and seed is a run of its own in a process of its own. Called again it skips what is
finished and goes on with what is not. A preset is a table of ours, with a scale of its own.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fastuiat import data
from fastuiat.children import Children
from fastuiat.config import UserError
from fastuiat.device import resolve_device
from fastuiat.evaluation.test_set import refuse_other_test_set
from fastuiat.files import write_bytes, write_json
from fastuiat.models import build_model
from fastuiat.reproduce.ledger import Ledger
from fastuiat.reproduce.rows import (
    Options,
    Row,
    differences,
    fitted_to_data,
    flags_of,
    rows_of,
    scale_of,
)
from fastuiat.reproduce.runs import curve, evaluate_row, made, seconds_per_epoch, train_row
from fastuiat.reproduce.table import summarise, text_table
from fastuiat.training.checkpoint import read
from fastuiat.training.folder import refuse_folder
from fastuiat.writer import only_writer


def folder_of(options: Options) -> Path:
    epochs = f"e{options.epochs}" if options.epochs else None
    parts = [options.table, options.dataset, options.arch, epochs]
    return Path("runs") / "reproduce" / "-".join(part for part in parts if part)


Prints = dict[str, data.Fingerprint]
"""Of `train` and `test`."""


def prints_of(rows: list[Row], options: Options) -> dict[str, Prints]:
    """The fingerprints of each data set that the rows use."""
    found: dict[str, Prints] = {}
    for name in dict.fromkeys(row.config.dataset for row in rows):
        found[name] = {}
        for part in ("train", "test"):
            images = data.load(name, options.data_dir, part, unchecked=options.unchecked_data)
            assert images.fingerprint is not None
            found[name][part] = images.fingerprint
    return found


def refuse_other_data(folder: Path, found: data.Fingerprint) -> None:
    """UserError where the run in a folder was trained on other images than those found now."""
    last = folder / "checkpoints" / "last.pt"
    stored = read(last).get("data") if last.is_file() else None
    change = stored and data.difference(
        data.Fingerprint.from_json(stored["train"]), found, "training images"
    )
    if change:
        raise UserError(
            f"{folder} was trained on other data: what is another now is {change}; choose another "
            "--out"
        )


@dataclass(frozen=True)
class Outcome:
    """What one run came to."""

    accuracies: dict[str, float]
    seconds_per_epoch: float | None
    made: dict[str, Any]
    anew: bool
    """Whether anything was left to do."""
    curve: list[dict[str, float]]
    """What each epoch ended with."""


class Table:
    """All runs of a table, and the document that they fill."""

    def __init__(
        self,
        options: Options,
        say: Callable[[str], None],
        stdout: int | None,
    ) -> None:
        self.options, self.say = options, say
        self.scale = scale_of(options)
        self.rows = rows_of(options)
        self.out = options.out or folder_of(options)
        refuse_folder(self.out)
        with torch.device("meta"):  # refuses an unknown net before the first run
            for arch in dict.fromkeys(row.config.arch for row in self.rows):
                build_model(arch)
        self.device = resolve_device(options.device)
        self.prints = prints_of(self.rows, options)
        self.sizes = {
            name: (prints["train"].n, prints["test"].n) for name, prints in self.prints.items()
        }
        self.children = Children(self.scale.jobs, stdout=stdout)
        self.ledger = Ledger(options.record, options.table) if options.record else None
        self.entries: dict[str, dict[str, Any]] = {}
        for row in self.rows:
            sizes = self.sizes[row.config.dataset]
            paper = row.paper and dict(zip(self.scale.columns, row.paper, strict=True))
            self.entries[row.name] = {
                "row": row.name,
                "recipe": row.recipe,
                "differs": differences(row, options, sizes),
                "paper": paper,
                "eps": row.eps,
                "n": self.scale.points(sizes[1]),
                "seeds": {},
                "seconds_per_epoch": {},
                "failed": None,
            }
        self.made: dict[str, dict[str, Any]] = {}
        for row in self.rows:  # refuses a record of other settings before the first run
            for seed in self.scale.seeds:
                self.on_record(row, seed)

    def on_record(self, row: Row, seed: int) -> Outcome | None:
        """What a run came to that the record holds."""
        line = self.ledger and self.ledger.find(row, seed, self.entries[row.name]["n"])
        if not line:
            return None
        for part, found in self.prints[row.config.dataset].items():
            if line.get("data", {}).get(part, found.sha256) != found.sha256:
                raise UserError(
                    f"{self.options.record} has {row.name}, seed {seed}, of other {part} images or "
                    "labels: choose another --record"
                )
        kept = {f.name: line[f.name] for f in dataclasses.fields(Outcome) if f.name != "anew"}
        return Outcome(**kept, anew=False)

    def make(self, task: tuple[Row, int]) -> Outcome:
        """Train and evaluate a row with a seed."""
        row, seed = task
        if self.ledger:
            self.ledger.read()  # somebody else may have made it meanwhile
        if known := self.on_record(row, seed):
            return known
        folder = self.out / row.name.replace("/", "-") / f"seed-{seed}"
        self.say(f"{self.options.table} {row.name}, seed {seed}: {folder}")
        begun = []

        def run(*words: str) -> None:
            begun.append(words)
            self.children.run(*words)

        changed = fitted_to_data(row, self.options, self.sizes[row.config.dataset][0])
        own = {"seed": seed, "out": folder}
        train_row(row, folder, seed, flags_of(row.recipe, changed | own), run)
        prints = self.prints[row.config.dataset]
        refuse_other_data(folder, prints["train"])
        refuse_other_test_set(folder / "eval", prints["test"], "choose another --out")
        points = self.entries[row.name]["n"]
        accuracies = evaluate_row(row, folder, points, self.options, run)
        seconds = seconds_per_epoch(folder, row.config.batch_size)
        origin = made(folder, self.scale.jobs, self.device)
        return Outcome(accuracies, seconds, origin, bool(begun), curve(folder))

    def enter(self, row: Row, seed: int, outcome: Outcome | UserError) -> None:
        """Write down what a run came to."""
        entry = self.entries[row.name]
        if isinstance(outcome, UserError):
            entry["failed"] = f"seed {seed}: {outcome}"
        else:
            if self.ledger and not self.on_record(row, seed):
                content = dataclasses.asdict(outcome) | {"n": entry["n"], "eps": row.eps}
                prints = self.prints[row.config.dataset]
                content["data"] = {part: found.sha256 for part, found in prints.items()}
                del content["anew"]
                self.ledger.add(row, seed, content)
            entry["seeds"][str(seed)] = outcome.accuracies
            entry["seconds_per_epoch"][str(seed)] = outcome.seconds_per_epoch
            self.made[f"{row.name} {seed}"] = outcome.made
            shown = ", ".join(f"{c} {value:.1f}%" for c, value in outcome.accuracies.items())
            self.say(f"{self.options.table} {row.name}, seed {seed}: {shown}")

    def save(self) -> None:
        """The table so far."""
        name, document = self.options.table, self.document()
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / f"{name}.json", document)
        write_bytes(self.out / f"{name}.md", (text_table(document) + "\n").encode())

    def fill(self) -> None:
        """Make all runs; all rows of a seed come before the next seed.

        The table is saved behind each run that was made or failed, and at the end.
        """
        tasks = [(row, seed) for seed in self.scale.seeds for row in self.rows]
        began, anew = time.monotonic(), 0
        for done, ((row, seed), outcome) in enumerate(self.children.each(tasks, self.make), 1):
            self.enter(row, seed, outcome)
            is_new = isinstance(outcome, UserError) or outcome.anew
            anew += is_new
            if is_new or done == len(tasks):
                self.save()
            left = (time.monotonic() - began) / max(anew, 1) * (len(tasks) - done)
            self.say(f"{done} of {len(tasks)} runs, at most {left / 60:.0f} min left")

    def document(self) -> dict[str, Any]:
        """The table as it is kept: its rows, and what each group of runs was made on."""
        entries = list(self.entries.values())
        summarise(self.scale.columns, entries)
        return {
            "table": self.options.table,
            "columns": self.scale.columns,
            "rows": entries,
            "made": origins(self.made.values()),
        }


def origins(made: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each machine, source and number of jobs once, with its runs counted and their first and last
    time."""
    groups: dict[str, dict[str, Any]] = {}
    for one in sorted(made, key=lambda m: m["time"]):
        rest = {name: value for name, value in one.items() if name != "time"}
        group = groups.setdefault(json.dumps(rest, sort_keys=True), rest | {"first": one["time"]})
        group |= {"n": group.get("n", 0) + 1, "time": one["time"]}
    return list(groups.values())


def reproduce(
    options: Options,
    say: Callable[[str], None] = print,
    *,
    conclude: Callable[[dict[str, Any], str], None] | None = None,
    stdout: int | None = None,
) -> Path:
    """Run all rows, save the table as it grows, print it; returns the folder.

    `conclude(document, text)` is handed the finished table, by default for `say`; `stdout` is that
    of the runs, as Popen takes it. UserError, after the table is saved, where a row failed: the
    same call goes on with it.
    """
    table = Table(options, say, stdout)
    with only_writer(table.out, advice="wait until it ends, or choose another --out", say=say):
        table.fill()
    document = table.document()
    if conclude:
        conclude(document, text_table(document))
    else:
        say(text_table(document))
    say(f"saved: {table.out / f'{options.table}.md'} and .json")
    entries = table.entries
    if failed := [name for name, entry in entries.items() if entry["failed"]]:
        raise UserError(f"{len(failed)} of {len(entries)} rows failed: {', '.join(failed)}")
    return table.out
