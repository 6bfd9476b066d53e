"""`fastuiat reproduce table1`: train and evaluate every row of a table, set beside the paper's.

Each row and seed is a run of its own in a process of its own. Called again it skips what is
finished and goes on with what is not.
"""

from __future__ import annotations

import functools
import json
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from fastuiat import data, paper, recipes
from fastuiat.config import UserError, positive
from fastuiat.evaluation.record import file_name
from fastuiat.files import write_json
from fastuiat.models import build_model
from fastuiat.training.checkpoint import locate, read, sha256_of
from fastuiat.training.run import stored_config

COLUMNS = {
    "figure2": ("natural", "pgd"),
    "figure3": ("natural", "autoattack"),
    "figure7": ("natural", "autoattack"),
}
"""What is measured where the paper shows a picture and no numbers."""
ELSEWHERE = {
    "table2": "is a timing: fastuiat bench table2",
    "figure1": "is drawn from a finished run: fastuiat report",
    "figure4": "is drawn from a finished run: fastuiat report",
    "figure5": "is drawn from two finished runs: fastuiat report",
    "figure6": "is drawn from a finished run: fastuiat report",
}
Run = Callable[..., None]
"""`fastuiat WORDS…`, to its end."""
EVALUATION_BATCH = 200
WORTH_COMPILING = 2000
"""Steps of a run below which compiling takes longer than it saves."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train and evaluate all rows of a table or sweep, and set them beside the paper's values."""

    table: tyro.conf.Positional[str]
    """table1, table3 … table6, figure2, figure3 or figure7."""
    dataset: str | None = None
    """Only the rows of this data set; one that the table does not have replaces its first."""
    arch: str | None = None
    """Only the rows of this net; one that the table does not have replaces its first."""
    epochs: int | None = None
    """Instead of the paper's."""
    n: int | None = None
    """Evaluate on the first so many test images only."""
    seeds: tuple[int, ...] = (0,)
    """One run of each row for each."""
    data_dir: Path = Path("data")
    """Folder with the data sets' published files."""
    extra_data: str | None = None
    """Generated images in place of ddpm1m, for the rows that use them."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compile: bool | None = None
    """By default runs are compiled that are long enough to win by it."""
    out: Path | None = None
    """Folder of the runs and the table; by default runs/reproduce/<table and scale>."""

    def __post_init__(self) -> None:
        if self.n is not None:
            positive(n=self.n)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UserError("--seeds wants numbers that differ")


@dataclass(frozen=True)
class Row:
    """One row: its recipe, and the settings that its runs begin from."""

    name: str
    recipe: str
    config: Any
    paper: tuple[float, ...] | None

    @property
    def eps(self) -> float:
        attack = getattr(self.config.settings, "attack", None)
        return attack.eps if attack else 8 / 255


def columns_of(table: str) -> tuple[str, ...]:
    """The accuracies to measure; UserError on what is no table of accuracies."""
    known = [*(t for t in paper.tables() if paper.tables()[t].unit == "%"), *COLUMNS]
    if table in ELSEWHERE:
        raise UserError(f"{table} {ELSEWHERE[table]}")
    if table not in known:
        raise UserError(
            f"unknown table or figure '{table}': choose from {', '.join(sorted(known))}"
        )
    return COLUMNS[table] if table in COLUMNS else paper.tables()[table].columns


def rows_of(options: Options, configure: Callable[[list[str]], Any]) -> list[Row]:
    """The rows of a table at the scale of the options.

    A data set or net that the table has picks its rows; any other takes the place of the first one
    that the table has.
    """
    table = options.table
    values = paper.tables()[table].rows if table in paper.tables() else {}
    names = [name for name in recipes.RECIPES if name.startswith(f"{table}/")]
    configs = {name: configure(["--recipe", name]) for name in names}
    for field in ("dataset", "arch"):
        here = dict.fromkeys(getattr(config, field) for config in configs.values())
        wanted = getattr(options, field)
        if wanted is not None:
            kept = wanted if wanted in here else next(iter(here))
            configs = {n: c for n, c in configs.items() if getattr(c, field) == kept}
    rows = []
    for name in configs:
        row = name.removeprefix(f"{table}/")
        rows.append(Row(row, name, configure(flags_of(name, options)), values.get(row)))
    return rows


def flags_of(recipe: str, options: Options) -> list[str]:
    """What `fastuiat train` is given for a row, but for seed and folder."""
    flags = ["--recipe", recipe, "--data-dir", str(options.data_dir), "--device", options.device]
    for name in ("dataset", "arch", "epochs", "extra_data"):
        value = getattr(options, name)
        if value is not None:
            flags += [f"--{name.replace('_', '-')}", str(value)]
    return flags


def validation_size(row: Row, train_size: int) -> int:
    """At most a tenth of the training set."""
    return min(row.config.val_size, train_size // 10)


def fitted_to_data(row: Row, options: Options, train_size: int) -> list[str]:
    """Flags that small data need: a smaller validation part, and no compiling of short runs."""
    config, flags = row.config, flags_of(row.recipe, options)
    val_size = validation_size(row, train_size)
    if val_size != config.val_size:
        flags += ["--val-size", str(val_size)]
    images = 50_000 if config.extra_data else train_size - val_size
    compiled = options.compile
    if compiled is None:
        compiled = config.epochs * (images // config.batch_size) >= WORTH_COMPILING
    return flags if compiled else [*flags, "--no-compile"]


def differences(row: Row, options: Options, sizes: tuple[int, int], original: Any) -> list[str]:
    """In words, how the row's runs differ from its recipe; `sizes` are of training and test set."""
    train_size, test_size = sizes
    result = []
    for field in ("dataset", "arch", "epochs", "extra_data"):
        now, then = getattr(row.config, field), getattr(original, field)
        if now != then:
            result.append(f"{field.replace('_', ' ')} {now} instead of {then}")
    if (val_size := validation_size(row, train_size)) != original.val_size:
        result.append(f"chosen on {val_size} validation images")
    if options.n is not None and options.n < test_size:
        result.append(f"{options.n} of {test_size} test images")
    return result


def is_finished(folder: Path, epochs: int) -> bool:
    """Whether the run in a folder has come to its end."""
    last = folder / "checkpoints" / "last.pt"
    return last.is_file() and read(last)["validated_epoch"] >= epochs


def refuse_other(folder: Path, row: Row, seed: int) -> None:
    """UserError where the folder holds a run with other settings."""
    stored = stored_config(folder)
    wanted = row.config.to_json() | {"seed": seed}
    for name in ("recipe", "dataset", "method", "arch", "epochs", "seed", "batch_size", "settings"):
        if stored.get(name) != json.loads(json.dumps(wanted[name])):
            raise UserError(
                f"{folder} holds a run with {name} {stored.get(name)}, not {wanted[name]}: "
                "choose another --out"
            )


def child(*words: str, stdout: int | None = None) -> None:
    """Run `fastuiat WORDS…`, its output going where ours goes, or to `stdout` as Popen takes it;
    UserError where it fails."""
    process = subprocess.Popen([sys.executable, "-m", "fastuiat", *words], stdout=stdout)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()  # it was interrupted as well, and saves
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if code in (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGTERM):
        raise KeyboardInterrupt
    if code:
        raise UserError(f"fastuiat {words[0]} ended with exit code {code}")


def train_row(row: Row, folder: Path, seed: int, flags: list[str], run: Run) -> None:
    """Bring a run to its end, from wherever it is."""
    if (folder / "config.json").exists():
        refuse_other(folder, row, seed)
        if not is_finished(folder, row.config.epochs):
            run("train", "--resume", str(folder))
    else:
        run("train", *flags, "--seed", str(seed), "--out", str(folder))


def measured(folder: Path, attack: str, eps: float, n: int) -> dict[str, Any] | None:
    """The record of an evaluation of the run's present best checkpoint, or None."""
    path = folder / "eval" / f"{file_name(attack, eps, n)}.json"
    if not path.is_file():
        return None
    record = json.loads(path.read_text())
    return record if record["checkpoint"]["sha256"] == sha256_of(locate(folder)) else None


def evaluate_row(
    row: Row, folder: Path, columns: tuple[str, ...], options: Options, n: int, run: Run
) -> dict[str, float]:
    """Accuracies by column, in percent; only what is not yet measured is measured."""
    attacks = {c: "clean" if c == "natural" else c for c in columns}
    missing = [a for a in attacks.values() if measured(folder, a, row.eps, n) is None]
    if missing:
        words = ["--attacks", *missing, "--n", str(n), "--eps", repr(row.eps)]
        words += ["--batch-size", str(min(EVALUATION_BATCH, n))]  # batches are padded to it
        run("eval", str(folder), *words, "--device", options.device)
    result = {}
    for column, attack in attacks.items():
        record = measured(folder, attack, row.eps, n)
        assert record is not None
        result[column] = 100 * record["accuracy"]
    return result


def folder_of(options: Options) -> Path:
    epochs = f"e{options.epochs}" if options.epochs else None
    parts = [options.table, options.dataset, options.arch, epochs]
    return Path("runs") / "reproduce" / "-".join(part for part in parts if part)


def sizes_of(rows: list[Row], data_dir: Path) -> dict[str, tuple[int, int]]:
    """Training and test images of each data set that the rows use."""
    sizes = {}
    for name in dict.fromkeys(row.config.dataset for row in rows):
        train_set, test_set = (data.load(name, data_dir, part) for part in ("train", "test"))
        sizes[name] = len(train_set.labels), len(test_set.labels)
    return sizes


def reproduce(
    options: Options,
    configure: Callable[[list[str]], Any],
    say: Callable[[str], None] = print,
    *,
    conclude: Callable[[dict[str, Any], str], None] | None = None,
    stdout: int | None = None,
) -> Path:
    """Run all rows, save the table as it grows, print it; returns the folder.

    `configure(flags)` gives the settings that `fastuiat train` would run with. `conclude(document,
    text)` is handed the finished table, by default for `say`; `stdout` is that of the runs, as
    Popen takes it. UserError, after the table is saved, where a row failed: the same call goes on
    with it.
    """
    run: Run = child if stdout is None else functools.partial(child, stdout=stdout)
    columns = columns_of(options.table)
    rows = rows_of(options, configure)
    out = options.out or folder_of(options)
    with torch.device("meta"):  # refuses an unknown net before the first run
        for arch in dict.fromkeys(row.config.arch for row in rows):
            build_model(arch)
    sizes = sizes_of(rows, options.data_dir)
    results: list[dict[str, Any]] = []
    for row in rows:
        train_size, test_size = sizes[row.config.dataset]
        original = configure(["--recipe", row.recipe])
        n = min(options.n or test_size, test_size)
        flags = fitted_to_data(row, options, train_size)
        entry: dict[str, Any] = {
            "row": row.name,
            "recipe": row.recipe,
            "differs": differences(row, options, sizes[row.config.dataset], original),
            "paper": dict(zip(columns, row.paper, strict=True)) if row.paper else None,
            "eps": row.eps,
            "n": n,
            "seeds": {},
            "failed": None,
        }
        results.append(entry)
        for seed in options.seeds:
            folder = out / row.name.replace("/", "-") / f"seed-{seed}"
            say(f"{options.table} {row.name}, seed {seed}: {folder}")
            try:
                train_row(row, folder, seed, flags, run)
                entry["seeds"][str(seed)] = evaluate_row(row, folder, columns, options, n, run)
            except UserError as error:
                entry["failed"] = f"seed {seed}: {error}"
            save(out, options.table, columns, results)
    text = text_table(options.table, columns, results)
    if conclude:
        conclude(document_of(options.table, columns, results), text)
    else:
        say(text)
    say(f"saved: {out / f'{options.table}.md'} and .json")
    if failed := [entry["row"] for entry in results if entry["failed"]]:
        raise UserError(f"{len(failed)} of {len(results)} rows failed: {', '.join(failed)}")
    return out


def mean_and_spread(values: list[float]) -> tuple[float, float | None]:
    """Mean, and the sample standard deviation where there are two values or more."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def save(out: Path, table: str, columns: tuple[str, ...], results: list[dict[str, Any]]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for entry in results:
        entry["ours"] = {}
        for column in columns:
            values = [seed[column] for seed in entry["seeds"].values()]
            if values:
                mean, spread = mean_and_spread(values)
                entry["ours"][column] = {"mean": mean, "stdev": spread, "runs": len(values)}
    write_json(out / f"{table}.json", document_of(table, columns, results))
    (out / f"{table}.md").write_text(text_table(table, columns, results) + "\n")


def document_of(table: str, columns: tuple[str, ...], results: Any) -> dict[str, Any]:
    return {"table": table, "columns": columns, "rows": results}


def cell(value: dict[str, Any] | None) -> str:
    if value is None:
        return "–"
    spread = "" if value["stdev"] is None else f" ± {value['stdev']:.2f}"
    return f"{value['mean']:.2f}{spread}"


def text_table(table: str, columns: tuple[str, ...], results: list[dict[str, Any]]) -> str:
    """Markdown: the paper's value and ours in columns of their own, other scales marked †."""
    headings = ["row", *(f"{c}, {whose}" for c in columns for whose in ("paper", "ours"))]
    lines = [headings]
    for entry in results:
        mark = " †" if entry["differs"] else ""
        printed = entry["paper"] or {}
        cells = [entry["row"] + mark]
        for column in columns:
            cells.append(f"{printed[column]:.2f}" if column in printed else "–")
            cells.append("failed" if entry["failed"] else cell(entry["ours"].get(column)))
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(headings))]
    text = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    text.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    caption = paper.tables()[table].caption if table in paper.tables() else "a sweep"
    notes: dict[str, list[str]] = {}
    for entry in results:
        notes.setdefault("; ".join(entry["differs"]), []).append(entry["row"])
    notes.pop("", None)
    seeds = max((len(entry["seeds"]) for entry in results), default=0)
    ours = f"mean ± sample standard deviation over {seeds} seeds" if seeds > 1 else "one seed"
    tail = [f"Ours: {ours}."]
    for note, rows in notes.items():
        which = "" if len(notes) == 1 else f" ({', '.join(rows)})"
        tail.append(f"† not at the paper's scale{which}: {note}.")
    tail += [f"{entry['row']} failed: {entry['failed']}" for entry in results if entry["failed"]]
    return "\n".join([f"{table}: {caption} (%)", "", *text, "", *tail])
