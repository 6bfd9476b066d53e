"""One bit flipped, a sector of zeros, or an end cut off in a file that fastuiat wrote and reads.

Each trial damages one file at one place and runs what reads it, in a child forked after the
imports. It holds where the damage is said in a line, and where the result is the one of the whole
file to the bit; a result of its own that nothing is said about is believed.
"""

from __future__ import annotations

import importlib
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.campaign.flip_subjects import SUBJECTS, Subject
from tests.campaign.forked import done_in_child
from tests.campaign.trial import Trial
from tests.imported import import_all
from tests.processes import exit_code

PATIENCE = 120.0
SECTOR = 512


@dataclass(frozen=True)
class Done:
    """What came of a command: exit code (None: it had to be killed), words, and the result."""

    code: int | None
    said: str
    complained: str
    result: Any


def in_fork(work: Callable[[], object], folder: Path) -> Done:
    """`work()` in a child, in the folder; what it prints goes to files beside it."""
    kept = folder.with_name(f"{folder.name}.result")
    kept.unlink(missing_ok=True)

    def keep() -> None:
        kept.write_bytes(pickle.dumps(work()))

    code, process = done_in_child(lambda: exit_code(keep), folder, folder, PATIENCE)
    result = pickle.loads(kept.read_bytes()) if kept.exists() else None
    return Done(code, process.stdout, process.stderr, result)


def damaged(content: bytes, drawn: random.Random, *, may_cut: bool) -> tuple[bytes, str]:
    """(the content with one fault, what it is); two flips of three, for most faults are none."""
    while True:
        way = drawn.choice(("flip", "flip", "flip", "flip", "zeros", "cut" if may_cut else "flip"))
        at = drawn.randrange(len(content))
        changed = bytearray(content)
        if way == "flip":
            bit = drawn.randrange(8)
            changed[at] ^= 1 << bit
            what = f"bit {bit} of byte {at} flipped"
        elif way == "zeros":
            at -= at % SECTOR
            changed[at : at + SECTOR] = bytes(len(changed[at : at + SECTOR]))
            what = f"zeros from byte {at} on"
        else:
            changed, what = changed[:at], f"cut at byte {at}"
        if changed != content:
            return bytes(changed), what


def faults_of(done: Done, whole: Done, name: str) -> tuple[str, ...]:
    """What of trial.FAULTS a command did that read the damaged file `name`."""
    if done.code is None:
        return ("hang",)
    if "Traceback (most" in done.said + done.complained:
        return ("traceback",)
    if done.code == 2:
        line = done.complained.strip()
        is_one = line.startswith("fastuiat: ") and "\n" not in line
        return () if is_one else ("no line",)
    if done.code != 0:
        return ("no line",)
    return () if is_said(done, name) or done.result == whole.result else ("believed",)


def is_said(done: Done, name: str) -> bool:
    """Whether a command that came to its end has spoken of the file's damage."""
    words = ("is not what it was", "was cut off", "is damaged", "holds nothing", "prepared before")
    lines = (done.said + done.complained).splitlines()
    return any(name in line and any(word in line for word in words) for line in lines)


def trials(drawn: random.Random, folder: Path) -> Iterator[Trial]:
    """Of each kind of file in turn."""
    import_all()
    wholes = {subject.name: Whole(subject, folder / subject.name) for subject in SUBJECTS}
    while True:
        for subject in SUBJECTS:
            yield wholes[subject.name].trial(drawn)


class Whole:
    """A subject's files as they were written, and what reading them comes to."""

    def __init__(self, subject: Subject, folder: Path) -> None:
        self.subject, self.folder = subject, folder
        self.whole: Done | None = None

    def read(self, copy: Path) -> Done:
        return in_fork(self.subject.read, copy)

    def prepare(self) -> Done:
        """Once."""
        kept, begin = self.folder / "kept", self.subject.begins_with
        self.folder.mkdir()
        if begin is None:
            kept.mkdir()
        else:
            base = self.folder.with_name(begin.__name__)
            if not base.exists():
                base.mkdir()
                made = in_fork(begin, base)
                assert made.code == 0, made.complained
            shutil.copytree(base, kept)
        for name in self.subject.imports:
            importlib.import_module(name)
        made = in_fork(self.subject.make, kept)
        assert made.code == 0, made.complained
        done = self.read(Path(shutil.copytree(kept, self.folder / "first")))
        assert done.code == 0, done.complained
        again = self.read(Path(shutil.copytree(kept, self.folder / "second")))
        assert again.result == done.result, f"{self.subject.name} reads two results"
        return done

    def trial(self, drawn: random.Random) -> Trial:
        self.whole = self.whole or self.prepare()
        copy = self.folder / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.folder / "kept", copy)
        files = sorted(p for glob in self.subject.files for p in copy.glob(glob))
        assert files, f"{self.subject.name} has no files"
        file = drawn.choice([f for f in files if f.stat().st_size])
        content, what = damaged(file.read_bytes(), drawn, may_cut=self.subject.may_be_cut)
        file.write_bytes(content)
        done = self.read(copy)
        faults = faults_of(done, self.whole, file.name)
        said = f"{self.subject.name}: {file.relative_to(copy)}, {what}"
        if faults:
            said += f": ended in {done.code}, {done.complained[-1000:]!a}"
        noticed = done.code == 2 or is_said(done, file.name)
        count = f"{self.subject.name} {'noticed' if noticed else 'unaffected'}"
        return Trial("flips", said, faults, ((count, 1),))
