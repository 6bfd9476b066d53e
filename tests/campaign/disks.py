"""Disks that fill up, folders that become read-only, while a command writes there.

It ends in one line; with room again it goes on, and ends in the bits of one that had room.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

from tests.campaign.subjects import (
    DATA,
    EVERY_STEP,
    SMALL,
    TRAINING,
    Preparing,
    Reporting,
    Reproducing,
    Subject,
    Training,
    Trials,
    attacked_beside_clean,
    pictures,
    refused,
)
from tests.campaign.trial import Trial
from tests.forks import Forks
from tests.moments import Moment
from tests.processes import Process, left_in

SIZE = 48
"""Megabytes of a disk."""
ROOMS = (0, 0, 4096, 50_000, 500_000, 1_000_000)
"""Bytes that are left on a disk when it has filled up."""
LIMITS = (100, 2_000, 100_000, 800_000)
"""Bytes that a file may have, where disks cannot be mounted. What a command says goes to a file as
well, so none would be too few for a line."""


def subjects() -> list[Subject]:
    uiat = ("train", *SMALL, "--no-compile", "--method", "uiat", "--steps", "1", "--log-every", "1")
    written = ("file", "log", "validation", "checkpoint", "start")
    table = (
        *("--rows", "rs-fgsm/eps-8", "--dataset", "digits", "--arch", "wrn-10-1", "--epochs", "1"),
        *("--n", "4", "--seeds", "0", *DATA),
    )
    assert {*written} <= {*TRAINING}
    return [
        Training("uiat", (*uiat, *EVERY_STEP), written, 4),
        Training("uiat, epoch by epoch", uiat, written, 2),
        attacked_beside_clean(2),
        pictures(2),
        Preparing(
            "a published set", ("data", "prepare", "digits", "--data-dir", "made"),
            ("file",), 1, place="made",
        ),
        Reporting("report", (), ("file",), 1, place="page"),
        Reproducing(
            "reproduce",
            ("reproduce", "table5", *table, "--out", "rep", "--record", "record.jsonl"),
            ("file", "table", "checkpoint"), 0.5, place="rep", speakers=3,
        ),
    ]  # fmt: skip


def can_mount(home: Path) -> bool:
    place = home / "mount"
    place.mkdir()
    is_mounted = mounted(place)
    if is_mounted:
        unmount(place)
    return is_mounted


def mounted(place: Path) -> bool:
    words = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}m", "fastuiat-campaign", str(place)]
    return subprocess.run(words, capture_output=True).returncode == 0


def unmount(place: Path) -> None:
    subprocess.run(["umount", "-l", str(place)], check=True, capture_output=True)


def fill(place: Path, room: int) -> Path:
    """A file that leaves so many bytes of the disk."""
    filler = place / "filler"
    free = os.statvfs(place)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, free.f_bavail * free.f_frsize - room))
    return filler


def permit(place: Path, mode: int) -> None:
    """The mode for a folder and all folders below it; they are read in any case."""
    for path in (place, *(p for p in place.rglob("*") if p.is_dir())):
        path.chmod(mode)


class Disks(Trials):
    """The trials, which share what had room."""

    all_subjects = staticmethod(subjects)

    def __init__(self, draw: random.Random, home: Path, forks: Forks) -> None:
        super().__init__(draw, home, forks)
        ways = ["full"] * 3 if can_mount(home) else []
        self.ways = [*ways, "limited", "read-only", "read-only from the start"]

    def trial(self) -> Trial:
        subject, own, folder = self.drawn()
        place = folder / subject.place
        place.mkdir(parents=True)
        subject.before(self.forks, folder)
        way = own.choice(self.ways)
        name = own.choice(subject.moments)
        moment = Moment(name, own.randint(1, max(1, subject.counts.get(name, 1))))
        is_mounted = way == "full" and mounted(place)
        try:
            process, what = self.disturbed(own, way, subject, folder, moment)
            faults = refused(process, subject.speakers)
            faults |= {"left behind"} if left_in(folder) else set()
            last = self.forks.run(*subject.command(folder), folder=folder)
            what = f"{subject.name}: {what}: {process.stderr.strip()[-300:]}"
            if last.returncode != 0:
                faults.add("other bits")
                what += f" [then {last.stderr.strip()[-300:]}]"
            else:
                faults |= subject.faults(folder)
        finally:
            if is_mounted:
                unmount(place)
        shutil.rmtree(folder)
        return Trial("disks", what, tuple(sorted(faults)), ((way, 1),))

    def disturbed(
        self, own: random.Random, way: str, subject: Subject, folder: Path, moment: Moment
    ) -> tuple[Process, str]:
        """(a command that met what was drawn, it in words); the disk is as before then."""
        words, place = subject.command(folder), folder / subject.place
        if way == "limited":
            largest = own.choice(LIMITS)
            # What is said goes into files as well.
            process = self.forks.start(*words, folder=folder, largest=largest)
            process.ended()
            return process, f"files of {largest} bytes at most"
        if way == "read-only from the start":
            permit(place, 0o555)
            process = self.forks.run(*words, folder=folder, bound=True)
            permit(place, 0o755)
            return process, way
        process = self.forks.start(*words, folder=folder, moment=moment, bound=way == "read-only")
        standing = process.stopped()
        what, filler = f"{way} at {moment}", None
        if standing and way == "full":
            room = own.choice(ROOMS)
            filler = fill(place, room)
            what += f", room for {room}"
        elif standing:
            permit(place, 0o555)
        if standing:
            os.kill(standing, signal.SIGCONT)
        process.ended()
        if filler:
            filler.unlink(missing_ok=True)
        if way == "read-only":
            permit(place, 0o755)
        return process, what
