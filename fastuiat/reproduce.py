"""`fastuiat reproduce table1`: train and evaluate every row of a table, set beside the paper's.

Each row and seed is a run of its own in a process of its own. Called again it skips what is
finished and goes on with what is not. A preset is a table of ours, with a scale of its own.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from fastuiat import data, paper, recipes
from fastuiat.bench.machine import describe
from fastuiat.children import Children
from fastuiat.config import UserError, positive
from fastuiat.evaluation.record import file_name
from fastuiat.files import write_json
from fastuiat.models import build_model
from fastuiat.reproduce_table import summarise, text_table
from fastuiat.training.checkpoint import locate, read, sha256_of
from fastuiat.training.precision import resolve_device
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


@dataclass(frozen=True)
class Scale:
    """What is measured, on how many test images, and how often a row is trained."""

    columns: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    n: dict[str, int] = field(default_factory=dict)
    """First test images by column, where not all."""
    jobs: int = 1


PRESETS = {
    "fashion-mnist-small": Scale(
        ("natural", "pgd", "autoattack"),
        seeds=(0, 1, 2),
        n={"natural": 200, "pgd": 200, "autoattack": 24},
        jobs=2,
    )
}
"""Recipes of ours that are trained and measured together; recipes.py says how and why so."""
Run = Callable[..., None]
"""`fastuiat WORDS…`, to its end."""
EVALUATION_BATCH = 200
IDENTITY = (
    "recipe", "dataset", "method", "arch", "epochs", "seed", "batch_size", "train_size", "settings"
)  # fmt: skip
"""Settings by which a folder is known to hold a row's run."""
WORTH_COMPILING = 2000
"""Steps of a run below which compiling takes longer than it saves."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train and evaluate all rows of a table or sweep, and set them beside the paper's values."""

    table: tyro.conf.Positional[str]
    """table1, table3 … table6, figure2, figure3, figure7 or fashion-mnist-small."""
    dataset: str | None = None
    """Only the rows of this data set; one that the table does not have replaces its first."""
    arch: str | None = None
    """Only the rows of this net; one that the table does not have replaces its first."""
    epochs: int | None = None
    """Instead of the paper's."""
    n: int | None = None
    """Evaluate on the first so many test images only."""
    seeds: tuple[int, ...] | None = None
    """One run of each row for each; by default 0, fashion-mnist-small 0 1 2."""
    jobs: int | None = None
    """Runs at a time, which share the cores; by default 1, fashion-mnist-small 2."""
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
        if self.jobs is not None:
            positive(jobs=self.jobs)
        if self.seeds is not None and not 0 < len(self.seeds) == len(set(self.seeds)):
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


def scale_of(options: Options) -> Scale:
    """The table's scale, changed by the options; UserError on what is no table of accuracies."""
    table = options.table
    printed = [t for t in paper.tables() if paper.tables()[t].unit == "%"]
    known = [*printed, *COLUMNS, *PRESETS]
    if table in ELSEWHERE:
        raise UserError(f"{table} {ELSEWHERE[table]}")
    if table not in known:
        raise UserError(
            f"unknown table or figure '{table}': choose from {', '.join(sorted(known))}"
        )
    if table in PRESETS:
        scale = PRESETS[table]
    else:
        scale = Scale(COLUMNS[table] if table in COLUMNS else paper.tables()[table].columns)
    n = scale.n if options.n is None else dict.fromkeys(scale.columns, options.n)
    seeds, jobs = options.seeds or scale.seeds, options.jobs or scale.jobs
    return Scale(scale.columns, seeds, n, jobs)


def rows_of(options: Options, configure: Callable[[list[str]], Any]) -> list[Row]:
    """The rows of a table at the scale of the options.

    A data set or net that the table has picks its rows; any other takes the place of the first one
    that the table has.
    """
    table = options.table
    values = paper.tables()[table].rows if table in paper.tables() else {}
    names = [name for name in recipes.RECIPES if name.startswith(f"{table}/")]
    configs = {name: configure(["--recipe", name]) for name in names}
    for name in ("dataset", "arch"):
        here = dict.fromkeys(getattr(config, name) for config in configs.values())
        wanted = getattr(options, name)
        if wanted is not None:
            kept = wanted if wanted in here else next(iter(here))
            configs = {r: c for r, c in configs.items() if getattr(c, name) == kept}
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
    images = 50_000 if config.extra_data else config.train_size or train_size - val_size
    compiled = options.compile
    if compiled is None:
        compiled = config.epochs * (images // config.batch_size) >= WORTH_COMPILING
    return flags if compiled else [*flags, "--no-compile"]


def differences(row: Row, options: Options, sizes: tuple[int, int], original: Any) -> list[str]:
    """In words, how the row's runs differ from its recipe; `sizes` are of training and test set."""
    train_size, test_size = sizes
    result = []
    for name in ("dataset", "arch", "epochs", "extra_data"):
        now, then = getattr(row.config, name), getattr(original, name)
        if now != then:
            result.append(f"{name.replace('_', ' ')} {now} instead of {then}")
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
    for name in IDENTITY:
        if stored.get(name) != json.loads(json.dumps(wanted[name])):
            raise UserError(
                f"{folder} holds a run with {name} {stored.get(name)}, not {wanted[name]}: "
                "choose another --out"
            )


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
            words = ["--attacks", *missing, "--n", str(n), "--eps", repr(row.eps)]
            words += ["--batch-size", str(min(EVALUATION_BATCH, n))]  # batches are padded to it
            run("eval", str(folder), *words, "--device", options.device)
    result = {}
    for column, attack in attacks.items():
        record = measured(folder, attack, row.eps, points[column])
        assert record is not None
        result[column] = 100 * record["accuracy"]
    return result


def seconds_per_epoch(folder: Path, batch_size: int) -> float | None:
    """Mean training time of the epochs after the first, which warms up and compiles."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    epochs = [line for line in lines if line["kind"] == "epoch"]
    if len(epochs) < 2:
        return None
    images = batch_size * epochs[-1]["step"] / epochs[-1]["epoch"]
    return statistics.fmean(images / e["clock"]["images_per_second"] for e in epochs[1:])


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


def entry_of(row: Row, scale: Scale, differs: list[str], test_size: int) -> dict[str, Any]:
    """A row of the document before its runs."""
    points = {c: min(scale.n.get(c, test_size), test_size) for c in scale.columns}
    return {
        "row": row.name,
        "recipe": row.recipe,
        "differs": differs,
        "paper": dict(zip(scale.columns, row.paper, strict=True)) if row.paper else None,
        "eps": row.eps,
        "n": points,
        "seeds": {},
        "seconds_per_epoch": {},
        "failed": None,
    }


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
    table, scale = options.table, scale_of(options)
    rows = rows_of(options, configure)
    out = options.out or folder_of(options)
    with torch.device("meta"):  # refuses an unknown net before the first run
        for arch in dict.fromkeys(row.config.arch for row in rows):
            build_model(arch)
    sizes = sizes_of(rows, options.data_dir)
    results = {}
    for row in rows:
        own = sizes[row.config.dataset]
        differs = differences(row, options, own, configure(["--recipe", row.recipe]))
        results[row.name] = entry_of(row, scale, differs, own[1])
    children = Children(scale.jobs, stdout=stdout)

    def work(task: tuple[Row, int]) -> tuple[dict[str, float], float | None]:
        row, seed = task
        folder = out / row.name.replace("/", "-") / f"seed-{seed}"
        say(f"{table} {row.name}, seed {seed}: {folder}")
        flags = fitted_to_data(row, options, sizes[row.config.dataset][0])
        train_row(row, folder, seed, flags, children.run)
        points = results[row.name]["n"]
        accuracies = evaluate_row(row, folder, points, options, children.run)
        return accuracies, seconds_per_epoch(folder, row.config.batch_size)

    # All rows of a seed before the next seed: a table that grows is one of whole rows.
    tasks = [(row, seed) for seed in scale.seeds for row in rows]
    began = time.monotonic()
    for done, ((row, seed), outcome) in enumerate(children.each(tasks, work), start=1):
        entry = results[row.name]
        if isinstance(outcome, UserError):
            entry["failed"] = f"seed {seed}: {outcome}"
        else:
            entry["seeds"][str(seed)], entry["seconds_per_epoch"][str(seed)] = outcome
            shown = ", ".join(f"{c} {value:.1f}%" for c, value in outcome[0].items())
            say(f"{table} {row.name}, seed {seed}: {shown}")
        left = (time.monotonic() - began) / done * (len(tasks) - done)
        say(f"{done} of {len(tasks)} runs, about {left / 60:.0f} min left")
        document = document_of(options, scale, list(results.values()))
        save(out, document)
    text = text_table(document)
    if conclude:
        conclude(document, text)
    else:
        say(text)
    say(f"saved: {out / f'{table}.md'} and .json")
    if failed := [name for name, entry in results.items() if entry["failed"]]:
        raise UserError(f"{len(failed)} of {len(results)} rows failed: {', '.join(failed)}")
    return out


def document_of(options: Options, scale: Scale, entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The table as it is kept: rows, and the machine that made them."""
    summarise(scale.columns, entries)
    return {
        "table": options.table,
        "columns": scale.columns,
        "rows": entries,
        "jobs": scale.jobs,
        **describe(resolve_device(options.device)),
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def save(out: Path, document: dict[str, Any]) -> None:
    """The table so far, as JSON and Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{document['table']}.json", document)
    (out / f"{document['table']}.md").write_text(text_table(document) + "\n")
