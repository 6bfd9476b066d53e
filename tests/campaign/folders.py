"""Folders that go away while a command works in them, and seconds who want to write there.

One line says so, exit code 2; what is put back goes on to the bits of what was left alone.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
from pathlib import Path

from tests.campaign.subjects import (
    EVERY_STEP,
    SMALL,
    TRAINING,
    Folder,
    Subject,
    Training,
    Trials,
    attacked_beside_clean,
    pictures,
    refused,
)
from tests.campaign.trial import Trial
from tests.forks import Forks
from tests.moments import FILE, Moment
from tests.processes import Process, left_in

FOREIGN = ("a link", "another's")
"""What belongs to others. Not put there inside of one write: between its look at the folder and its
rename nothing can be asked."""
ACTS = ("removed", "renamed", "a file", *FOREIGN)
SECOND = "a second writer"
WRITTEN = {
    "run": ("run", "run", "run/checkpoints", "run/metrics.jsonl", "run/tensorboard"),
    "eval": ("eval",),
    "made": ("made",),
}
"""What is disturbed, by the folder that a command writes."""


class OwnPictures(Training):
    """A run on a folder of pictures, prepared beside it."""

    def before(self, forks: Forks, folder: Path) -> None:
        source = folder.parent / "pictures"
        Folder.before(self, forks, folder)  # type: ignore[arg-type]
        shutil.copytree(source, folder / "pictures")


def subjects() -> list[Subject]:
    uiat = ("--no-compile", "--method", "uiat", "--steps", "1", "--log-every", "1")
    eager = ("train", *SMALL, *uiat)
    own = ("--dataset", "folder:pictures", "--data-dir", "made", "--resolution", "32")
    return [
        Training("uiat", (*eager, *EVERY_STEP), TRAINING, 4),
        Training("uiat, epoch by epoch", eager, TRAINING, 2),
        OwnPictures("own pictures", (*eager, *own, *EVERY_STEP), ("step", "checkpoint"), 1),
        attacked_beside_clean(1),
        pictures(1),
    ]  # fmt: skip


class Folders(Trials):
    """The trials, which share what was left alone."""

    all_subjects = staticmethod(subjects)

    def trial(self) -> Trial:
        subject, own, folder = self.drawn()
        folder.mkdir()
        subject.before(self.forks, folder)
        name = own.choice(subject.moments)
        moment = Moment(name, own.randint(1, max(1, subject.counts.get(name, 1))))
        process = self.forks.start(*subject.command(folder), folder=folder, moment=moment)
        standing = process.stopped()
        places = WRITTEN[subject.place]
        if isinstance(subject, OwnPictures):
            places = ("pictures", "made")
        target = folder / own.choice(places)
        acts = [act for act in ACTS if name != FILE or act not in FOREIGN]
        act = own.choice([*acts, SECOND])
        counts = []
        if standing is None or not target.exists():
            what, faults = f"{moment} came too early for {target.name}", set[str]()
            self.let_go(standing)
            faults |= refused(process)
        elif act == SECOND:
            what, faults = self.second(own, subject, folder, process, standing)
            counts = [(act, 1)]
        else:
            what, faults = self.gone(act, target, folder, process, standing)
            counts = [(act, 1)]
        faults |= {"left behind"} if left_in(folder) else set()
        what = f"{subject.name} at {moment}: {what}"
        faults |= self.gone_on_with(subject, folder, target, act)
        if not faults:
            shutil.rmtree(folder)
        return Trial("folders", what, tuple(sorted(faults)), tuple(counts))

    @staticmethod
    def let_go(standing: int | None) -> None:
        if standing:
            os.kill(standing, signal.SIGCONT)

    def gone(
        self, act: str, target: Path, folder: Path, process: Process, standing: int
    ) -> tuple[str, set[str]]:
        """The target goes, or something else is in its place, while the command goes on."""
        aside = folder / "aside"
        target.rename(aside)
        foreign = folder / "foreign"
        if act == "removed":
            shutil.rmtree(aside) if aside.is_dir() else aside.unlink()
        elif act == "a file":
            target.write_text("mine")
        elif act == "a link":
            foreign.mkdir()
            target.symlink_to(foreign)
        elif act == "another's":
            shutil.copytree(aside, target) if aside.is_dir() else shutil.copy(aside, target)
        before = content_of(target if act == "another's" else foreign)
        # What is a link before the run has its lock is the folder that its user named.
        held = subject_holds(aside if target.name == "run" else target.parent)
        self.let_go(standing)
        faults = refused(process)
        said = process.stderr.strip()[-300:]
        what = f"{target.relative_to(folder)} {act}: {said or 'nothing was said'}"
        after = content_of(target if act == "another's" else foreign)
        if held and after != before and (act == "a link" or target.name == "run"):
            faults.add("believed")  # what is another's was written
        is_anew = process.returncode == 0 and target.is_file() and not target.is_symlink()
        if target.name == "metrics.jsonl" and is_anew:
            aside.unlink(missing_ok=True)  # written anew
        elif act != "removed":
            if target.is_symlink() or target.is_file():
                target.unlink()
            elif target.exists():
                shutil.rmtree(target)
            aside.rename(target)
        return what, faults

    def second(
        self,
        own: random.Random,
        subject: Subject,
        folder: Path,
        process: Process,
        standing: int,
    ) -> tuple[str, set[str]]:
        """Somebody else who wants to write there is turned away, and nothing becomes of it."""
        commands = [subject.command(folder)]
        if subject.place == "run":
            commands += [("report", "run"), ("eval", "run", "--attacks", "clean", "--n", "8")]
        words = own.choice(commands)
        begun = (folder / "run" / "config.json").exists() or subject.place != "run"
        before = content_of(folder / subject.place)
        second = self.forks.start(*words, folder=folder)
        # Prepared data is waited for by whoever needs it as well.
        waits = subject.place == "made" and not second.ended_within(2.0)
        faults = set() if waits else refused(second)
        if not waits and subject.place != "made":
            if second.returncode == 0 and begun:
                faults.add("believed")
            if content_of(folder / subject.place) != before and second.returncode:
                faults.add("believed")
        self.let_go(standing)
        faults |= refused(process) | (refused(second) if waits else set())
        if process.returncode:
            faults.add("other bits")
        return f"{words[0]} beside it: {second.stderr.strip()[-300:]}", faults

    def gone_on_with(self, subject: Subject, folder: Path, target: Path, act: str) -> set[str]:
        """Where it does not end in the same bits, once all that can be is as it was."""
        if isinstance(subject, OwnPictures) and not (folder / "pictures").exists():
            shutil.copytree(folder.parent / "pictures", folder / "pictures")
        for name in ("aside", "foreign"):
            shutil.rmtree(folder / name, ignore_errors=True)
        last = self.forks.run(*subject.command(folder), folder=folder)
        if last.returncode:
            return {"other bits"} | refused(last)
        # TensorBoard's files are made of the log, and not made again for a run that has ended.
        return subject.faults(folder) - ({"left behind"} if target.name == "tensorboard" else set())


def subject_holds(folder: Path) -> bool:
    """Whether somebody has the lock of a folder, or of one in it."""
    return any(folder.glob(".lock")) or any(folder.glob("*/.lock"))


def content_of(folder: Path) -> dict[str, bytes]:
    """What the files below a folder hold."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
