"""Run folders as they lie on the disk: settings, environment, metrics, evaluations."""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

from fastuiat.config import UserError, of_this_version, parse_radius, radius_text
from fastuiat.files import json_in
from fastuiat.report.log import Log, read_metrics

Item = TypeVar("Item")
NO_SETTING = {"recipe", "data_dir", "out", "workers", "loader", "log_every", "checkpoint_minutes"}
"""Entries of config.json that move no number."""
RADII = ("eps", "alpha")
LARGEST = 1e100
"""The last word of settings that are radii in pixel units."""
USUAL = {"steps": 20, "alpha": "2/255", "restarts": 1, "version": "standard"}
"""An attack with these is called by its name alone."""

SAME_RADIUS = 1e-6
"""How far apart two radii may be written that are the same."""
MOST_SAID = 3
"""Runs that one line names."""
ANY = object()
"""In place of a test set's sum."""

CHOSEN = {"last": "last checkpoint", "raw": "raw weights"}
"""In place of the best checkpoint and the averaged weights, where there are two of them."""

ORDER = {"clean": 0, "pgd": 1, "cw": 2, "autoattack": 3}
"""Attacks from weak to strong."""


@dataclass(frozen=True)
class Record:
    """One evaluation: `values` is what its file holds."""

    values: dict[str, Any]
    path: Path

    @functools.cached_property
    def attack(self) -> str:
        """The attack's name, with what is unusual of it: `pgd`, `pgd, 50 steps, 5 restarts`."""
        words = [str(self.values["attack"])]
        for name, usual in USUAL.items():
            value = self.values.get(name, usual)
            if value != usual:
                words.append(f"alpha {value}" if name == "alpha" else str(value))
                if name in ("steps", "restarts"):
                    words[-1] += f" {name}"
        chosen = (self.values.get("checkpoint") or {}).get("chosen") or []
        words += [CHOSEN.get(name, str(name)) for name in chosen]
        return ", ".join(words)

    @property
    def eps(self) -> float:
        """Radius in pixel units, below 0 for the inverse attack; 0 of clean images."""
        return float(self.values.get("eps_value", 0.0))

    def order(self) -> tuple[Any, ...]:
        """Weak attacks before strong ones, small radii before large ones."""
        strength = ORDER.get(self.values["attack"], len(ORDER))
        return strength, self.attack, self.eps, self.n

    @property
    def percent(self) -> float:
        return 100 * float(self.values["accuracy"])

    @property
    def n(self) -> int:
        return int(self.values["n"])

    @property
    def points(self) -> tuple[Any, ...]:
        """Which images it was measured on."""
        return self.values.get("dataset"), self.values.get("split"), self.n

    @property
    def test_set(self) -> str | None:
        """The sum over its test images and labels; None of the time before fingerprints."""
        return (self.values.get("data") or {}).get("sha256")

    def on_the_same_images(self, other: Record) -> bool:
        """As far as the records say."""
        sums = {self.test_set, other.test_set} - {None}
        return self.points == other.points and len(sums) < 2

    @property
    def sha256(self) -> str | None:
        """The checkpoint's."""
        return (self.values.get("checkpoint") or {}).get("sha256")

    @property
    def has_outcomes(self) -> bool:
        """Whether it says what became of each sample."""
        return bool(self.values.get("per_sample"))

    @property
    def correct(self) -> list[bool] | None:
        """By sample, whether it was still classified correctly."""
        bits = self.values.get("per_sample")
        return [bit == "1" for bit in bits] if bits else None

    @property
    def standard_error(self) -> float:
        """Of the accuracy over n independent samples, in percent points."""
        share = self.percent / 100
        return 100 * math.sqrt(share * (1 - share) / self.n)


class Measurements:
    """Records by what they are of: attack, radius and images. Of those alike the first counts."""

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.records: list[Record] = []
        self._places: dict[Any, dict[float, int]] = defaultdict(dict)
        for record in records:
            self.add(record)

    def add(self, record: Record) -> None:
        what, cell = (record.attack, repr(record.points)), radius_cell(record.eps)
        for images in {record.test_set, ANY}:
            self._places[what, cell, images].setdefault(record.eps, len(self.records))
        self.records.append(record)

    def like(self, record: Record, *, clean: bool = False) -> Record | None:
        """That of the same attack and radius on the same images; or of those as they are."""
        attack, eps = ("clean", 0.0) if clean else (record.attack, record.eps)
        what, cell = (attack, repr(record.points)), radius_cell(eps)
        # A record of the time before fingerprints may be of any images of that name.
        known = (ANY,) if record.test_set is None else (record.test_set, None)
        places = [
            place
            for near in (cell - 1, cell, cell + 1)
            for images in known
            for other, place in self._places.get((what, near, images), {}).items()
            if same_radius(other, eps)
        ]
        return self.records[min(places)] if places else None


@dataclass(frozen=True)
class Run:
    """A run folder. `epochs` and `steps` are the lines of metrics.jsonl by kind."""

    folder: Path
    config: dict[str, Any]
    environment: dict[str, Any]
    epochs: Log
    steps: Log
    records: list[Record]
    label: str = ""
    """What tells it from the other runs of the report."""
    settings: dict[str, Any] = field(default_factory=dict)
    """config.json with nested settings under their own names: `lam`, `attack.eps`."""

    @functools.cached_property
    def measured(self) -> Measurements:
        return Measurements(self.records)

    @property
    def title(self) -> str:
        c = self.config
        parts = [c.get("method"), c.get("dataset"), c.get("arch")]
        return " · ".join(str(part) for part in parts if part)

    def record(self, attack: str, eps: float | None = None) -> Record | None:
        """A record of an attack of the usual strength, the one with the most points."""
        found = [r for r in self.records if r.attack == attack]
        if eps is not None:
            found = [r for r in found if same_radius(r.eps, eps)]
        return max(found, key=lambda r: r.n, default=None)

    @property
    def eps(self) -> float:
        """The radius that it was trained for; 8/255 where it knows none. UserError on no radius."""
        return parse_radius(self.settings.get("attack.eps", 8 / 255))


def is_number(setting: Any) -> bool:
    """Whether it can be calculated with, and stand on an axis: no run has one beyond LARGEST."""
    is_one = isinstance(setting, int | float) and not isinstance(setting, bool)
    return is_one and abs(setting) <= LARGEST


def same_radius(a: float, b: float) -> bool:
    """Radii are written as 8/255 and as plain numbers."""
    return math.isclose(a, b, rel_tol=0, abs_tol=SAME_RADIUS)


def radius_cell(eps: float) -> int:
    """Radii that are the same lie in one cell or in neighbouring ones."""
    return math.floor(eps / SAME_RADIUS)


class ByRadius(Generic[Item]):
    """Things by their radius, found by one that is the same."""

    def __init__(self, items: Iterable[tuple[float, Item]]) -> None:
        self._cells: dict[int, list[tuple[float, Item]]] = defaultdict(list)
        for eps, item in items:
            self._cells[radius_cell(eps)].append((eps, item))

    def at(self, eps: float) -> list[Item]:
        cell = radius_cell(eps)
        near = (self._cells.get(c, ()) for c in (cell - 1, cell, cell + 1))
        return [item for found in near for other, item in found if same_radius(other, eps)]


def read_json(path: Path) -> Any:
    """UserError where it cannot be read as JSON, or is damaged."""
    try:
        return json_in(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error})") from error


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names; the method's own and the optimiser's stand at the top."""
    result: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            result |= flat(value, "" if name in ("settings", "optimizer") else f"{prefix}{name}.")
        else:
            result[prefix + name] = value
    return result


def text_of(name: str, value: Any) -> str | None:
    """A setting's value as it is written on the command line."""
    if isinstance(value, float) and name.replace("_", ".").split(".")[-1] in RADII:
        return radius_text(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return None if value is None else str(value)


def read_record(path: Path) -> Record | None:
    """An evaluation, or None of a file that holds something else of an evaluation."""
    values = read_json(path)
    if isinstance(values, dict) and "attack" not in values and "measure" in values:
        return None
    try:
        record = Record(values, path)
        if not (0 <= record.percent <= 100 and record.n > 0 and math.isfinite(record.eps)):
            raise ValueError("out of range")
        bits = values.get("per_sample")
        if not isinstance(values["attack"], str) or (bits and len(bits) != record.n):
            raise ValueError("not what its fields say")
        hash((record.sha256, record.test_set))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no evaluation record: remove it or measure it anew") from error
    return record


def read_run(folder: Path) -> Run:
    """Everything of a run folder that is text; UserError where it is none or is damaged."""
    if not (folder / "config.json").is_file():
        places = [f"{above}config.json" for above in ("*/", "*/*/", "*/*/*/")]
        within = sorted(p.parent.relative_to(folder) for w in places for p in folder.glob(w))
        hint = f"; it holds runs: give {folder / within[0]} and its like" if within else ""
        what = "has no config.json" if folder.is_dir() else "does not exist"
        what = "is a file" if folder.is_file() else what
        raise UserError(f"{folder} is no run folder: it {what}{hint}")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise UserError(f"{folder / 'config.json'} holds no settings")
    config = of_this_version(config)
    environment_file = folder / "environment.json"
    environment = read_json(environment_file) if environment_file.exists() else {}
    if not isinstance(environment, dict):
        raise UserError(f"{environment_file} holds no environment")
    epochs, steps = read_metrics(folder / "metrics.jsonl")
    records = [read_record(path) for path in sorted((folder / "eval").glob("*.json"))]
    found = [record for record in records if record is not None]
    found.sort(key=Record.order)
    run = Run(folder, config, environment, epochs, steps, found, settings=flat(config))
    try:
        _ = run.eps
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from error
    return run


def labels_of(folders: Sequence[Path]) -> list[str]:
    """What tells the folders apart: their paths without the parts that all begin or end with."""
    paths = [folder.resolve().parts for folder in folders]
    if len(paths) == 1:
        return [paths[0][-1]]
    first = 0
    while len({path[first] if first < len(path) else None for path in paths}) == 1:
        first += 1
    last = 0
    while (
        all(len(path) - last - 1 > first for path in paths)
        and len({path[-1 - last] for path in paths}) == 1
    ):
        last += 1
    return ["/".join(path[first : len(path) - last]) or "." for path in paths]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs of a report, labelled. UserError on a folder given twice, or no common attack."""
    times = Counter(folder.resolve() for folder in folders)
    for folder in folders:
        if times[folder.resolve()] > 1:
            raise UserError(f"{folder} is given twice")
    runs = []
    for folder, label in zip(folders, labels_of(folders), strict=True):
        runs.append(replace(read_run(folder), label=label))
    refuse_unlike(runs)
    return runs


def refuse_unlike(runs: Sequence[Run]) -> None:
    """UserError where runs were evaluated, and by no attack in common."""
    attacks = {run.label: {r.attack for r in run.records} - {"clean"} for run in runs}
    if not any(attacks.values()) or set.intersection(*attacks.values()):
        return
    counts = Counter(attack for found in attacks.values() for attack in found)
    plain = sorted(counts, key=lambda attack: ("," in attack, attack != "pgd", attack))
    wanted = max(plain, key=lambda attack: counts[attack])
    missing = next(run for run in runs if wanted not in attacks[run.label])
    shown = [run for run in runs[:MOST_SAID] if run is not missing] + [missing]
    said = [f"{run.label}: {', '.join(sorted(attacks[run.label])) or 'none'}" for run in shown]
    said += [f"and {len(runs) - len(said)} more"] if len(runs) > len(said) else []
    raise UserError(
        f"the runs share no attack ({'; '.join(said)}): "
        f"fastuiat eval {missing.folder} --attacks clean {wanted.split(',')[0]}"
    )
