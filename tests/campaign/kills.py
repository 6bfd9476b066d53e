"""Commands that are killed at moments of all their phases, several times, and gone on with.

What nobody touched any more afterwards must end in the bits of what nobody touched at all.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

from tests.campaign.subjects import (
    AUTOATTACK,
    DATA,
    EVERY_STEP,
    SMALL,
    TRAINING,
    Attacking,
    Benching,
    Pool,
    Preparing,
    Reproducing,
    Subject,
    Torchrun,
    Training,
    Trials,
    pictures,
)
from tests.campaign.trial import Trial
from tests.forks import Forks
from tests.moments import Moment
from tests.processes import Process, below, left_in

TIME = "a time"
"""In place of a moment: anywhere in the life of the process, by the clock."""
MOST_KILLS = 4
"""Of one command, before it is left alone."""
LATEST = 0.15
"""Seconds behind a moment."""
LONGEST = 6.0
"""Seconds by the clock."""
STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM}


def subjects() -> list[Subject]:
    """All that is killed; the weights are of how much each costs, and of what it may lose."""
    uiat = ("--method", "uiat", "--steps", "1", "--log-every", "1")
    eager = ("train", *SMALL, "--no-compile")
    small_table = (
        *("--rows", "rs-fgsm/eps-8", "n-fgsm/eps-8", "--dataset", "digits", "--arch", "wrn-10-1"),
        *("--epochs", "1", "--n", "4", "--seeds", "0", "--jobs", "2", *DATA),
    )
    step = ("--arch", "wrn-10-1", "--batch-size", "2", "--method", "natural", "--budget", "1")
    ranks = ("--processes", "2")
    return [
        Training("uiat", (*eager, *uiat, *EVERY_STEP), TRAINING, 8),
        Training(
            "uiat, averaged, epoch by epoch",
            (*eager, *uiat, "--weight-averaging", "0.9"), TRAINING, 3,
        ),
        Training(
            "rs-fgsm, ended inside an epoch",
            (*eager, "--method", "rs-fgsm", *EVERY_STEP, "--max-steps", "8", "--log-every", "2"),
            TRAINING, 2,
        ),
        Training(
            "uiat-oneoff",
            (*eager, "--method", "uiat-oneoff", "--oneoff-epoch", "2", "--steps", "1", *EVERY_STEP),
            TRAINING, 1,
        ),
        Training(
            "compiled", ("train", *SMALL, "--method", "rs-fgsm", *EVERY_STEP),
            (*TRAINING, "compile", "compile"), 0.5,
        ),
        Training(
            "a process of its own", (*eager, *uiat, *EVERY_STEP), (TIME,), 0.7, {"fresh": True}
        ),
        Training("ranks", (*eager, *uiat, *EVERY_STEP, *ranks), (*TRAINING, TIME), 1),
        Torchrun(
            "torchrun", (*eager, *uiat, *EVERY_STEP), (TIME,), 0.5,
            {"module": "torch.distributed.run"},
        ),
        Reproducing(
            "reproduce",
            ("reproduce", "table5", *small_table, "--out", "rep", "--record", "record.jsonl"),
            (*TRAINING, "file", "table", "attack", "state", "record", TIME), 0.8,
        ),
        Attacking(
            "autoattack",
            AUTOATTACK,
            ("file", "state", "attack", "record", TIME), 2,
        ),
        Preparing(
            "a published set", ("data", "prepare", "digits", "--data-dir", "made"),
            ("file", "file", TIME), 0.5,
        ),
        Pool(
            "an extra pool",
            ("data", "prepare", "digits", "--data-dir", "made", "--extra-data", "../pool.npz"),
            ("file", "file", TIME), 0.5,
        ),
        pictures(1, TIME),
        Benching(
            "bench", ("bench", "step", *step, "--no-compile", "--json", "records.jsonl"),
            ("file", "case", TIME), 0.3,
        ),
    ]  # fmt: skip


class Strike:
    """One start of a command, and its end by a signal, unless it came to its own before."""

    def __init__(
        self, draw: random.Random, subject: Subject, folder: Path, forks: Forks, before: int
    ) -> None:
        """`before` strikes have been: what is left to do is less by then."""
        self.draw, self.subject, self.forks = draw, subject, forks
        self.folder = folder
        self.name = draw.choice(subject.moments)
        self.moment = None
        if self.name != TIME:
            most = max(1, subject.counts.get(self.name, 3) // (before + 1))
            self.moment = Moment(self.name, draw.randint(1, most))
        self.signum = draw.choice([signal.SIGKILL] * 3 + [signal.SIGTERM, signal.SIGINT])
        self.delay = draw.choice([0.0, draw.uniform(0, LATEST)])
        self.seconds = draw.uniform(0, LONGEST)
        self.who = draw.random()
        self.process: Process | None = None

    def done(self) -> bool:
        """Whether the signal has been sent to somebody who was alive."""
        process = self.forks.start(
            *self.subject.command(self.folder),
            folder=self.folder,
            moment=self.moment,
            **self.subject.how,
        )
        self.process = process
        standing = self.wait(process)
        alive = [process.pid, *below(process.pid)] if process.poll() is None else []
        if not alive or (self.moment and standing is None):
            process.ended()
            return False
        victim = standing if standing and self.who < 0.5 else alive[int(self.who * len(alive))]
        if standing and self.delay:
            process.let_go_on()
            time.sleep(self.delay)
        sent = self.send(victim, self.signum)
        if standing:
            self.send(standing, signal.SIGCONT)
        return sent

    def wait(self, process: Process) -> int | None:
        """Until it stands at its moment, or as long as was drawn."""
        if self.moment:
            return process.stopped()
        process.ended_within(self.seconds)
        return None

    @staticmethod
    def send(pid: int, signum: int) -> bool:
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            return False
        return True

    def __str__(self) -> str:
        where = str(self.moment or f"{self.seconds:.2f} s")
        later = f" + {self.delay:.3f} s" if self.moment and self.delay else ""
        return f"{self.signum.name} at {where}{later}"


def said_wrong(process: Process, subject: Subject, struck: bool) -> set[str]:
    """What a process did wrong that was struck, or left alone."""
    faults = set()
    if not process.ended():
        faults.add("hang")
    complained = process.stderr
    is_torchrun = isinstance(subject, Torchrun)  # it speaks of its own end in its own way
    if "Traceback" in complained and not is_torchrun:
        faults.add("traceback")
    if not struck and process.returncode != 0:
        faults.add("other bits" if "fastuiat: " in complained else "no line")
    if struck and (process.returncode or 0) > 0 and process.returncode not in STOPPED:
        faults |= set() if is_torchrun or "fastuiat: " in complained else {"no line"}
    return faults


class Kills(Trials):
    """The trials, which share what nobody touched."""

    all_subjects = staticmethod(subjects)

    def trial(self) -> Trial:
        subject, own, folder = self.drawn()
        folder.mkdir()
        subject.before(self.forks, folder)
        strikes, counts, faults = [], Counter[str](), set[str]()
        for before in range(own.randint(1, MOST_KILLS)):
            strike = Strike(own, subject, folder, self.forks, before)
            struck = strike.done()
            assert strike.process
            faults |= said_wrong(strike.process, subject, struck)
            strikes.append(str(strike) + ("" if struck else " (over before)"))
            if struck:
                counts["kills"] += 1
                counts[f"in {strike.name}"] += 1
            if left_in(folder):
                faults.add("left behind")
        what = f"{subject.name}: {'; '.join(strikes)}"
        last = self.forks.run(*subject.command(folder), folder=folder, **subject.how)
        if wrong := said_wrong(last, subject, struck=False):
            what += f" [{last.stderr.strip()[-300:]}]"
        faults |= wrong or subject.faults(folder)
        faults |= {"left behind"} if left_in(folder) else set()
        if not faults:
            shutil.rmtree(folder)
        return Trial("kills", what, tuple(sorted(faults)), tuple(counts.items()))
