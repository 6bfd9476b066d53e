"""The stages one after another, each ended at its share of the time, each kept before the next."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastuiat.bench.gpu import keeper, report, results
from fastuiat.bench.gpu.report import Report, now
from fastuiat.bench.gpu.stages import STAGES, Place, Stage
from fastuiat.bench.gpu.summary import (
    CUT,
    FAILED,
    MEMORY,
    MISSING,
    NOT_RUN,
    PASSED,
    said_of,
)
from fastuiat.bench.timing import NO_TIME
from fastuiat.config import UserError

LEAST_BUDGET = 60.0
RESERVE = 6.0
"""Seconds of the budget for the last writing."""
POLL = 0.1
LAST_LINES = 40
"""Of a log, in which a stage that failed says why."""
PROMPT = "$ "
"""Before a command in a log."""
SAVE_EVERY = 20.0
"""Seconds between what is kept of a running stage: a killed machine keeps the rows it had."""
GONE = 5.0
"""Seconds that a keeper takes at most once its command's grace is over."""


@dataclass(frozen=True, kw_only=True)
class GpuOptions:
    """Everything that a GPU has to show, in order of worth, in the time that there is."""

    budget: float = 540.0
    """Seconds for all of it; the stages share them, and what one leaves over the next have."""
    out: Path = Path("gpu-report")
    """Folder of the report. Called again with it, what has passed is left out: carry it along to
    the next machine."""
    only: tuple[str, ...] = ()
    """These stages alone."""
    skip: tuple[str, ...] = ()
    """All stages but these."""
    data_dir: Path = Path("data")
    """Folder with CIFAR-10's published files, for the stage train."""

    def __post_init__(self) -> None:
        if not LEAST_BUDGET <= self.budget < float("inf"):
            raise UserError(
                f"--budget {self.budget:g} is too short: no stage says anything in under "
                f"{LEAST_BUDGET:g} seconds"
            )


def chosen(stages: Sequence[Stage], options: GpuOptions) -> list[Stage]:
    """UserError on a stage that does not exist, and where none is left."""
    known = [stage.name for stage in stages]
    for name in (*options.only, *options.skip):
        if name not in known:
            raise UserError(f"unknown stage '{name}': choose from {', '.join(known)}")
    asked = [
        s
        for s in stages
        if (not options.only or s.name in options.only) and s.name not in options.skip
    ]
    if not asked:
        raise UserError("--only and --skip leave no stage")
    return asked


def gpu(options: GpuOptions) -> None:
    """`fastuiat bench gpu`."""
    run(options)


def run(
    options: GpuOptions,
    *,
    stages: Sequence[Stage] = STAGES,
    hardware: dict[str, Any] | None = None,
) -> Report:
    """All stages that are asked for and have not passed; prints as it goes, and the summary.

    `hardware` is what the report says of the machine, by default that of its GPU.
    """
    began = time.monotonic()
    asked = chosen(stages, options)
    kept = Report.open(options.out, hardware or report.hardware())
    with alone(kept), stoppable():
        kept.resume()
        for stage in stages:
            why = "its turn had not come" if stage in asked else "not asked for"
            if kept.stages.setdefault(stage.name, {"verdict": NOT_RUN})["verdict"] == NOT_RUN:
                kept.stages[stage.name]["note"] = why
        call = {"time": now(), "budget": options.budget, "seconds": 0.0}
        kept.state["calls"].append(call)
        try:
            Runner(options, kept, asked, began, call).run()
        finally:
            call["seconds"] = round(time.monotonic() - began, 1)
            kept.save()
            for line in kept.summary():
                print(line, flush=True)
    return kept


@contextlib.contextmanager
def alone(kept: Report) -> Iterator[None]:
    """One call at a time for a folder."""
    with open(kept.work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another bench gpu is filling {kept.out}: wait for it") from None
        yield


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM, which a time limit sends first, is as good as Ctrl-C."""

    def stop(signum: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Runner:
    """One call."""

    def __init__(
        self,
        options: GpuOptions,
        kept: Report,
        asked: Sequence[Stage],
        began: float,
        call: dict[str, Any],
    ) -> None:
        self.options, self.kept, self.asked, self.call = options, kept, asked, call
        self.began = began
        self.deadline = began + options.budget - RESERVE
        self.last_saved = began

    def run(self) -> None:
        waiting = []
        for stage in self.asked:
            if self.kept.stages[stage.name]["verdict"] == PASSED:
                print(f"{stage.name}: passed before", flush=True)
            elif (entry := self.without(stage)) is not None:
                self.conclude(stage, entry)
            else:
                waiting.append(stage)
        # What has failed at this commit already comes behind what has not been tried.
        waiting.sort(key=lambda stage: self.kept.stages[stage.name]["verdict"] == FAILED)
        for i, stage in enumerate(waiting):
            seconds = self.share(waiting[i:])
            if seconds is None:
                if self.kept.stages[stage.name]["verdict"] == NOT_RUN:
                    self.conclude(stage, {"verdict": NOT_RUN, "note": "no time left for it"})
                continue
            self.one(stage, seconds)

    def conclude(self, stage: Stage, entry: dict[str, Any], records: Path | None = None) -> None:
        self.call["seconds"] = round(time.monotonic() - self.began, 1)
        self.kept.end(stage.name, entry, records)
        print(f"{stage.name}: {entry['verdict']}; {said_of(entry)}".rstrip("; "), flush=True)

    def without(self, stage: Stage) -> dict[str, Any] | None:
        """The row of a stage that cannot be run here."""
        if package := stage.missing():
            return {"verdict": MISSING, "note": f"the package {package} is not here"}
        if obstacle := stage.obstacle(self.place(stage, 0.0)):
            return {"verdict": NOT_RUN, "note": obstacle}
        return None

    def place(self, stage: Stage, seconds: float) -> Place:
        data_dir, work = self.options.data_dir.resolve(), self.kept.work
        memory = (self.kept.state.get("gpu") or {}).get("memory_bytes")
        return Place(report.root(), data_dir, work, stage.name, seconds, memory)

    def share(self, waiting: Sequence[Stage]) -> float | None:
        """Seconds for the first of the waiting stages; None where too few are left for it.

        By shares, but the first gets what it needs at least: it is worth more than the others.
        """
        left = self.deadline - time.monotonic()
        first = waiting[0]
        if left < first.least:
            return None
        return max(first.least, left * first.share / sum(stage.share for stage in waiting))

    def one(self, stage: Stage, seconds: float) -> None:
        """Run a stage's commands in so many seconds, and write down what they came to."""
        place = self.place(stage, seconds)
        for stale in (place.records, place.outcomes, place.junit, place.log):
            stale.unlink(missing_ok=True)
        print(f"{stage.name}: at most {seconds:.0f} s", flush=True)
        self.kept.begin(stage.name, seconds)
        began, codes = time.monotonic(), []
        try:
            for i, make in enumerate(stage.commands):
                left = began + seconds - time.monotonic()
                limit = left / (len(stage.commands) - i)
                codes.append(self.watch(stage, make(replace(place, seconds=limit)), limit))
        except BaseException:
            codes.append(None)  # whatever it is, the stage has not passed
            raise
        finally:
            entry = entry_of(stage, place, codes)
            entry |= {"seconds": round(time.monotonic() - began, 1), "allotted": round(seconds)}
            self.conclude(stage, entry, place.records)

    def watch(self, stage: Stage, command: list[str], limit: float) -> int | None:
        """The command's exit code; None where it was ended at its limit."""
        place = self.place(stage, limit)
        grace = min(stage.grace, limit / 4)
        until = time.monotonic() + limit - grace
        with open(place.log, "ab") as log:
            log.write(f"{PROMPT}{' '.join(command)}\n".encode())
            log.flush()
            words = [sys.executable, "-IS", keeper.__file__, str(int(stage.stop)), str(grace)]
            process = subprocess.Popen(
                [*words, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.kept.work,
                env=environment(self.kept) | stage.environment(place),
                start_new_session=True,
            )
            assert process.stdin is not None
            try:
                while process.poll() is None and time.monotonic() < until:
                    time.sleep(POLL)
                    self.save_now_and_then(stage)
                if process.poll() is not None:
                    return process.returncode
            finally:
                process.stdin.close()  # the keeper ends what still runs
                with contextlib.suppress(subprocess.TimeoutExpired):  # a driver may hold it
                    process.wait(grace + GONE)
            return None

    def save_now_and_then(self, stage: Stage) -> None:
        if time.monotonic() - self.last_saved >= SAVE_EVERY:
            self.kept.save(running=stage.name)
            self.last_saved = time.monotonic()


def environment(kept: Report) -> dict[str, str]:
    """That of a stage: our sources first, and caches of its own, which are carried along."""
    own = [str(folder) for folder in (report.root(), report.root() / "kernels") if folder.is_dir()]
    given = os.environ.get("PYTHONPATH")
    told = {
        "PYTHONPATH": os.pathsep.join([*own, *([given] if given else [])]),
        "PYTHONUNBUFFERED": "1",
        # Else a second session of the profiler may see nothing of the device (kineto#1554).
        "TEARDOWN_CUPTI": "0",
        "TORCHINDUCTOR_CACHE_DIR": str(kept.caches / "inductor"),
        "TRITON_CACHE_DIR": str(kept.caches / "triton"),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(kept.work / "hypothesis"),
    }
    given_to_all = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    return given_to_all | told


def entry_of(stage: Stage, place: Place, codes: Sequence[int | None]) -> dict[str, Any]:
    """Verdict, figures and a word of explanation, from exit codes, records, tests and log."""
    log = results.tail(place.log)
    records = list(results.json_lines(place.records))
    errors = results.errors_of(records)
    tests = results.tests_of(place.outcomes, stage.tests) if stage.tests else None
    entry: dict[str, Any] = {"codes": list(codes)}
    if tests:
        entry |= {"tests": tests, "figures": results.said_of_tests(tests)}
    elif stage.figures:
        entry["figures"] = stage.figures(place)
    elif records:
        entry["figures"] = results.figures(records)
    bad = [code for code in codes if code]
    last = "\n".join(log.splitlines()[-LAST_LINES:])  # a warning before it decides nothing
    words = "\n".join([last, *errors, *results.reasons(place.outcomes)])
    failed = bool(tests and tests["failed"])
    if not bad and None not in codes and not errors and not failed:
        return {"verdict": PASSED, **entry}
    if "out of memory" in words.lower():
        return {"verdict": MEMORY, **entry}
    package = results.missing_package(words)
    lacks = f"the package {package} is not here" if package else None
    if lacks and not (tests and tests["passed"]):
        return {"verdict": MISSING, "note": lacks, **entry}
    no_time = not bad and not failed and all(error.endswith(NO_TIME) for error in errors)
    if not bad and (None in codes or no_time):
        return {"verdict": CUT, **entry}
    note = lacks or next(iter(errors), None)
    if not note and bad and not failed:
        said = [x for x in log.splitlines() if x.strip() and not x.startswith(PROMPT)]
        note = f"exit code {bad[0]}" + (f": {said[-1].strip()}" if said else "")
    return {"verdict": FAILED, "note": note, **entry}
