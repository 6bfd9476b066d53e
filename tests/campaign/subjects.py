"""Commands that a trial disturbs, and what must have become of them at their end."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastuiat.files import TEMPORARY
from tests.campaign.trial import Trial
from tests.forks import Forks
from tests.processes import Process

ROOT = Path(__file__).parents[2]
DATA = ("--data-dir", str(ROOT / "data"))
SMALL = (
    *("--dataset", "digits", "--arch", "wrn-10-1", "--batch-size", "4", "--max-lr", "0.1"),
    *("--val-size", "4", "--train-size", "12", "--loader", "resident", "--epochs", "3", *DATA),
)
EPOCHS = 3
PICTURES = 150
COLD = 1200.0
"""Seconds for what may have to be compiled for the first time."""
AUTOATTACK = ("--attacks", "autoattack", "--n", "48", "--eps", "64/255", "--batch-size", "2")
EVERY_STEP = ("--checkpoint-minutes", "0.0001")
TRAINING = ("start", "assemble", "read", "file", "step", "last step", "log", "validation",
            "checkpoint")  # fmt: skip


def same(a: Any, b: Any) -> bool:
    """Whether tensors, and what holds them, have the same bits."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def checkpoint_of(run: Path, name: str) -> dict[str, Any]:
    """All that it holds but the length of the log, whose times take more or fewer digits."""
    state: dict[str, Any] = torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)
    del state["metrics_offset"]
    return state


def log_of(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl but their times."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["clock"]
    return lines


def names_in(folder: Path) -> set[str]:
    """All files below a folder but locks; TensorBoard's, one for each start, count as one."""
    paths = (p.relative_to(folder) for p in folder.rglob("*") if not p.is_dir())
    names = {p.parent / "events" if p.name.startswith("events.") else p for p in paths}
    return {str(name) for name in names if name.name != ".lock"}  # of the dead, and free


def faults_of_run(run: Path, whole: Path, epochs: int = EPOCHS) -> set[str]:
    """Where a run is not what the undisturbed one is."""
    faults = set()
    try:
        for name in ("last", "best"):
            if not same(checkpoint_of(run, name), checkpoint_of(whole, name)):
                faults.add("other bits")
        log = log_of(run)
        if log != log_of(whole):
            faults.add("other bits")
        ends = [line["epoch"] for line in log if line["kind"] == "epoch" and "val_robust" in line]
        if ends != list(range(1, epochs + 1)):
            faults.add("lost validation")
        settings = [json.loads((f / "config.json").read_text()) for f in (run, whole)]
        for one in settings:
            del one["out"]
        if settings[0] != settings[1]:
            faults.add("other bits")
    except (OSError, ValueError, KeyError, RuntimeError):
        faults.add("other bits")
    if names_in(run) != names_in(whole):
        faults.add("left behind")
    return faults


@dataclass
class Subject:
    """A command, `whole` in a folder of its own where nobody touches it."""

    name: str
    words: tuple[str, ...]
    moments: tuple[str, ...]
    weight: float = 1.0
    """How often it is drawn."""
    how: dict[str, Any] = field(default_factory=dict)
    """`Forks.start` takes it."""
    place: str = "run"
    """The folder that it writes."""
    speakers: int = 1
    """Processes that may say a line of what went wrong."""
    whole: Path = Path()
    counts: dict[str, int] = field(default_factory=dict)

    def prepare(self, forks: Forks, home: Path) -> None:
        """Do it once, undisturbed: to compare with, and to know how many moments it has."""
        self.whole = home / self.name.replace(" ", "-")
        if self.whole.exists():
            return
        self.whole.mkdir()
        counted = self.whole / ".counts"
        self.before(forks, self.whole)
        process = forks.run(
            *self.command(self.whole),
            folder=self.whole,
            counts=str(counted),
            seconds=COLD,
            **self.how,
        )
        assert process.returncode == 0, process.stderr
        self.counts = json.loads(counted.read_text()) if counted.exists() else {}

    def before(self, forks: Forks, folder: Path) -> None:
        """What it needs to lie in the folder."""

    def command(self, folder: Path) -> tuple[str, ...]:
        """How it begins in a folder, or goes on there."""
        return self.words

    def faults(self, folder: Path) -> set[str]:
        """Where what it left is not what it should be."""
        raise NotImplementedError


class Training(Subject):
    """`train` into `run`, begun and gone on with as people do."""

    def command(self, folder: Path) -> tuple[str, ...]:
        run = folder / "run"
        if len(str(folder)) % 2 and "--processes" not in self.words:
            return (*self.words, "--out", "run", "--resume-or-start")
        if not ((run / "config.json").exists() or (run / "checkpoints" / "last.pt").exists()):
            return (*self.words, "--out", "run")
        ranks = self.words[-2:] if "--processes" in self.words else ()
        return ("train", "--resume", "run", *ranks)

    def faults(self, folder: Path) -> set[str]:
        return faults_of_run(folder / "run", self.whole / "run")


class Torchrun(Training):
    """Ranks that torchrun starts, and starts again."""

    def command(self, folder: Path) -> tuple[str, ...]:
        launcher = ("--nproc-per-node", "2", "--max-restarts", "2", "--standalone")
        return (*launcher, "-m", "fastuiat", *self.words, "--out", "run", "--resume-or-start")


class Reproducing(Subject):
    """`reproduce --jobs 2`: its runs, their evaluations, the table and the record."""

    def faults(self, folder: Path) -> set[str]:
        faults = set()
        for config in self.whole.rglob("config.json"):
            run = config.parent
            own = folder / run.relative_to(self.whole)
            faults |= faults_of_run(own, run, epochs=1)
            for record in (run / "eval").glob("*.json"):
                theirs, ours = (json.loads((f / "eval" / record.name).read_text())
                                for f in (run, own))  # fmt: skip
                if ours["per_sample"] != theirs["per_sample"]:
                    faults.add("other bits")
        tables, lines = [], []
        for place in (folder, self.whole):
            table = json.loads((place / "rep" / "table5.json").read_text())
            tables.append([(row["row"], row["seeds"], row["failed"]) for row in table["rows"]])
            recorded = map(json.loads, (place / "record.jsonl").read_text().splitlines())
            kept = ("row", "seed", "accuracies", "curve", "n")
            lines.append(sorted(([line[k] for k in kept] for line in recorded), key=repr))
        if tables[0] != tables[1] or lines[0] != lines[1]:
            faults.add("other bits")
        if names_in(folder / "rep") != names_in(self.whole / "rep"):
            faults.add("left behind")
        return faults


class Attacking(Subject):
    """AutoAttack on a net that was trained before, with the records in a folder of their own."""

    def prepare(self, forks: Forks, home: Path) -> None:
        net = home / "net"
        if not net.exists():
            length = ("--batch-size", "16", "--train-size", "64", "--epochs", "2")
            words = (*SMALL, *length, "--method", "natural", "--no-compile")
            done = forks.run("train", *words, "--out", net, folder=home)
            assert done.returncode == 0, done.stderr
        if self.words[0] != "eval":
            self.words = ("eval", str(net), *self.words, "--out", ".")
        super().prepare(forks, home)

    def faults(self, folder: Path) -> set[str]:
        faults = set()
        for whole in (self.whole / "eval").glob("*.json"):
            try:
                own = json.loads((folder / "eval" / whole.name).read_text())
            except (OSError, ValueError):
                return {"other bits"}
            wanted = json.loads(whole.read_text())
            kept = {"per_sample", "accuracy", "parts", "part_points"} & wanted.keys()
            faults |= {"other bits"} if any(own[k] != wanted[k] for k in kept) else set()
        left = names_in(folder / "eval") != names_in(self.whole / "eval")
        return faults | ({"left behind"} if left else set())


def attacked_beside_clean(weight: float) -> Attacking:
    words = ("--attacks", "clean", *AUTOATTACK[1:])
    return Attacking("autoattack", words, ("file", "state", "record"), weight, place="eval")


class Preparing(Subject):
    """`data prepare` of what lies in `source`, into `made`."""

    def faults(self, folder: Path) -> set[str]:
        made, wanted = ({p.name: p for p in (place / "made").rglob("*") if p.is_file()}
                        for place in (folder, self.whole))  # fmt: skip
        if made.keys() != wanted.keys():
            missing = wanted.keys() - made.keys()
            return {"other bits"} if missing else {"left behind"}
        other = (made[name].read_bytes() != path.read_bytes() for name, path in wanted.items())
        return {"other bits"} if any(other) else set()


class Folder(Preparing):
    """Pictures in folders of two classes, more than are read at a time."""

    def before(self, forks: Forks, folder: Path) -> None:
        source = folder.parent / "pictures"
        if not source.exists():
            noise = np.random.default_rng(0)
            for i in range(PICTURES):
                path = source / ("train", "test")[i % 5 == 4] / "ab"[i % 2] / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(noise.integers(0, 256, (20, 24, 3), np.uint8)).save(path)


def pictures(weight: float, *moments: str) -> Folder:
    """Prepared; disturbed at more moments than those of every part."""
    words = ("data", "prepare", "folder:../pictures", "--data-dir", "made", "--resolution", "16")
    moments = ("file", "batch of pictures", *moments)
    return Folder("a folder of pictures", words, moments, weight, place="made")


class Pool(Preparing):
    """Generated images beside a data set."""

    def before(self, forks: Forks, folder: Path) -> None:
        noise = np.random.default_rng(0)
        images = noise.integers(0, 256, (40, 32, 32, 3), np.uint8)
        np.savez(folder.parent / "pool.npz", image=images, label=noise.integers(0, 10, 40))


class Benching(Subject):
    """A suite whose records go to a file that has some already."""

    def faults(self, folder: Path) -> set[str]:
        text = (folder / "records.jsonl").read_text()
        try:
            records = [json.loads(line) for line in text.splitlines()]
        except ValueError:
            return {"other bits"}
        last = [json.loads(line) for line in (self.whole / "records.jsonl").open()]
        cases = [(r["case"], r["provider"], r["config_hash"]) for r in records]
        wanted = [(r["case"], r["provider"], r["config_hash"]) for r in last]
        return set() if text.endswith("\n") and cases[-len(wanted) :] == wanted else {"other bits"}


class Reporting(Subject):
    """`report` of a run that was trained before."""

    def prepare(self, forks: Forks, home: Path) -> None:
        run = home / "reported"
        if not run.exists():
            words = (*SMALL, "--epochs", "1", "--method", "natural", "--no-compile")
            done = forks.run("train", *words, "--out", run, folder=home)
            assert done.returncode == 0, done.stderr
        self.words = ("report", str(run), "--out", "page/page.html")
        super().prepare(forks, home)

    def faults(self, folder: Path) -> set[str]:
        if not (folder / "page" / "page.html").exists():
            return {"other bits"}
        # A temporary file cannot be removed from a folder that became read-only.
        names = {n for n in names_in(folder / "page") if not TEMPORARY.fullmatch(Path(n).name)}
        return set() if names == names_in(self.whole / "page") else {"left behind"}


class Trials:
    """What the trials of a part share: what nobody disturbed, and who starts commands."""

    all_subjects: Callable[[], list[Subject]]

    def __init__(self, draw: random.Random, home: Path, forks: Forks) -> None:
        self.draw, self.home, self.forks = draw, home, forks
        self.subjects = self.all_subjects()
        self.number = 0

    def trial(self) -> Trial:
        raise NotImplementedError

    def drawn(self) -> tuple[Subject, random.Random, Path]:
        """(what is disturbed now, the draws of its own, its folder, which is not there yet)."""
        (subject,) = self.draw.choices(self.subjects, [s.weight for s in self.subjects])
        own = random.Random(self.draw.random())
        subject.prepare(self.forks, self.home)
        self.number += 1
        return subject, own, self.home / str(self.number)

    @classmethod
    def endless(cls, draw: random.Random, folder: Path) -> Iterator[Trial]:
        with Forks() as forks:
            trials = cls(draw, folder, forks)
            while True:
                yield trials.trial()


def refused(process: Process, speakers: int = 1) -> set[str]:
    """Where a command that could not go on has not said so in a line, or so many processes of it
    in a line each; none where it could."""
    if not process.ended():
        return {"hang"}
    complained = process.stderr
    if "Traceback" in complained:
        return {"traceback"}
    lines = complained.splitlines()
    is_said = 1 <= len(lines) <= speakers and all(x.startswith("fastuiat: ") for x in lines)
    held = process.returncode == 0 or (process.returncode == 2 and is_said)
    return set() if held else {"no line"}
