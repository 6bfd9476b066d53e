"""Which rows a table has, at which scale, and what their runs are given."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import tyro

from fastuiat import paper, recipes
from fastuiat.config import AttackConfig, UserError, positive, refuse_seed
from fastuiat.training.config import TrainConfig

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

    def points(self, test_size: int) -> dict[str, int]:
        """Test images by column."""
        return {c: min(self.n.get(c, test_size), test_size) for c in self.columns}


PRESETS = {
    "fashion-mnist-small": Scale(
        ("natural", "pgd", "autoattack"),
        seeds=(0, 1, 2),
        n={"natural": 200, "pgd": 200, "autoattack": 24},
        jobs=2,
    ),
    "cifar10-small": Scale(
        ("natural", "pgd", "autoattack"),
        seeds=(0, 1, 2),
        n={"natural": 2000, "pgd": 2000, "autoattack": 128},
        jobs=2,
    ),
    "cifar10-20": Scale(
        ("natural", "pgd", "autoattack"), n={"natural": 10_000, "pgd": 10_000, "autoattack": 1000}
    ),
}
"""Recipes of ours that are trained and measured together; presets.py says how and why so."""
WORTH_COMPILING = 2000
"""Steps of a run below which compiling takes longer than it saves."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train and evaluate all rows of a table or sweep, and set them beside the paper's values."""

    table: tyro.conf.Positional[str]
    """table1, table3 … table6, figure2, figure3, figure7, cifar10-small, cifar10-20 or
    fashion-mnist-small."""
    rows: tuple[str, ...] = ()
    """Only these rows, named in full or by a pattern such as 'pgd-5/uiat-*'."""
    record: Path | None = None
    """Append each finished run to this file, a JSON object per line, and skip those on it."""
    dataset: str | None = None
    """Only the rows of this data set; one that the table does not have replaces its first."""
    arch: str | None = None
    """Only the rows of this net; one that the table does not have replaces its first."""
    epochs: int | None = None
    """Instead of the paper's."""
    n: int | None = None
    """Evaluate on the first so many test images only."""
    seeds: tuple[int, ...] | None = None
    """One run of each row for each; by default 0, of the small presets 0 1 2."""
    jobs: int | None = None
    """Runs at a time, which share the cores; by default 1, of the small presets 2."""
    data_dir: Path = Path("data")
    """Folder with the data sets' published files."""
    unchecked_data: bool = False
    """Use them also where they are not the published ones."""
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
        for seed in self.seeds or ():
            refuse_seed(seed)


@dataclass(frozen=True)
class Row:
    """One row: its recipe, and the settings that its runs begin from."""

    name: str
    recipe: str
    config: TrainConfig
    paper: tuple[float, ...] | None

    @property
    def eps(self) -> float:
        attack = getattr(self.config.settings, "attack", None)
        return attack.eps if attack else AttackConfig().eps


def table_scale(table: str) -> Scale:
    """The scale of a table itself; UserError on what is no table of accuracies."""
    printed = [t for t in paper.tables() if paper.tables()[t].unit == "%"]
    known = [*printed, *COLUMNS, *PRESETS]
    if table in ELSEWHERE:
        raise UserError(f"{table} {ELSEWHERE[table]}")
    if table not in known:
        raise UserError(
            f"unknown table or figure '{table}': choose from {', '.join(sorted(known))}"
        )
    if table in PRESETS:
        return PRESETS[table]
    return Scale(COLUMNS[table] if table in COLUMNS else paper.tables()[table].columns)


def scale_of(options: Options) -> Scale:
    """That of the table, changed by the options."""
    scale = table_scale(options.table)
    n = scale.n if options.n is None else dict.fromkeys(scale.columns, options.n)
    return Scale(scale.columns, options.seeds or scale.seeds, n, options.jobs or scale.jobs)


def rows_of(options: Options) -> list[Row]:
    """The rows of a table at the scale of the options.

    A data set or net that the table has picks its rows; any other takes the place of the first one
    that the table has.
    """
    table = options.table
    values = paper.tables()[table].rows if table in paper.tables() else {}
    names = [name for name in recipes.RECIPES if name.startswith(f"{table}/")]
    configs = {name: recipes.config(name) for name in names}
    if options.extra_data and not any(c.extra_data for c in configs.values()):
        raise UserError(f"--extra-data: no row of {table} trains on generated images")
    for name in ("dataset", "arch"):
        here = dict.fromkeys(getattr(config, name) for config in configs.values())
        wanted = getattr(options, name)
        if wanted is not None:
            kept = wanted if wanted in here else next(iter(here))
            configs = {r: c for r, c in configs.items() if getattr(c, name) == kept}
    rows = []
    for name in chosen_rows(list(configs), options):
        row, config = name.removeprefix(f"{table}/"), recipes.config(name, **chosen(options))
        rows.append(Row(row, name, config, values.get(row)))
    return rows


def chosen_rows(recipes_of_table: list[str], options: Options) -> list[str]:
    """The recipes that `--rows` leaves; UserError on a pattern that no row fits."""
    rows = {name.removeprefix(f"{options.table}/"): name for name in recipes_of_table}
    for pattern in options.rows:
        if not fnmatch.filter(rows, pattern):
            raise UserError(f"--rows {pattern}: no such row, there are {', '.join(rows)}")
    wanted = options.rows or ("*",)
    return [name for row, name in rows.items() if any(fnmatch.fnmatchcase(row, p) for p in wanted)]


def chosen(options: Options) -> dict[str, Any]:
    """What the options change in every row's recipe."""
    given = ("dataset", "arch", "epochs", "extra_data")
    changed = {name: value for name in given if (value := getattr(options, name)) is not None}
    if options.unchecked_data:
        changed["unchecked_data"] = True
    return {"data_dir": options.data_dir, "device": options.device} | changed


def flags_of(recipe: str, changed: dict[str, Any]) -> list[str]:
    """The words of `fastuiat train` that say `recipes.config(recipe, **changed)`."""
    words = ["--recipe", recipe]
    for name, value in changed.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return words


def validation_size(row: Row, train_size: int) -> int:
    """At most a tenth of the training set."""
    return min(row.config.val_size, train_size // 10)


def part_to_train_on(row: Row, train_size: int) -> int | None:
    """`train_size` of the row, no more than there is; None for all."""
    wanted = row.config.train_size
    return wanted and min(wanted, train_size - validation_size(row, train_size))


def fitted_to_data(row: Row, options: Options, train_size: int) -> dict[str, Any]:
    """What a row's runs change in its recipe: on small data smaller parts, and no compiling."""
    config, changed = row.config, chosen(options)
    val_size = validation_size(row, train_size)
    if val_size != config.val_size:
        changed["val_size"] = val_size
    part = part_to_train_on(row, train_size)
    if part != config.train_size:
        changed["train_size"] = part
    images = 50_000 if config.extra_data else part or train_size - val_size
    compiled = options.compile
    if compiled is None:
        compiled = config.epochs * (images // config.batch_size) >= WORTH_COMPILING
    return changed if compiled else changed | {"compile": False}


def differences(row: Row, options: Options, sizes: tuple[int, int]) -> list[str]:
    """In words, how the row's runs differ from its recipe; `sizes` are of training and test set."""
    train_size, test_size = sizes
    original = recipes.config(row.recipe)
    result = []
    for name in ("dataset", "arch", "epochs", "extra_data"):
        now, then = getattr(row.config, name), getattr(original, name)
        if now != then:
            result.append(f"{name.replace('_', ' ')} {now} instead of {then}")
    if (val_size := validation_size(row, train_size)) != original.val_size:
        result.append(f"chosen on {val_size} validation images")
    if (part := part_to_train_on(row, train_size)) != original.train_size:
        result.append(f"trained on {part} images instead of {original.train_size}")
    usual, now = table_scale(options.table), scale_of(options)
    for n in dict.fromkeys(now.points(test_size).values()):
        if n not in usual.points(test_size).values():
            result.append(f"{n} of {test_size} test images")
    return result
