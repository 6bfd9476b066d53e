"""The folder that `fastuiat bench gpu` fills: at most eight flat files, each small and whole.

state.json      what each stage came to, at which commit, on what; benchmarks/results/ takes it
records.jsonl   the records of the benches
summary.txt     the lines that are printed at the end
logs.tar.gz     full logs, outcomes of tests by line and as JUnit XML
caches.tar.gz   what was compiled last, as far as it fits
train.tar.gz    the table and the runs of the stage `train`, as far as they fit
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import tempfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import fastuiat
from fastuiat import sealed
from fastuiat.bench.gpu.packing import LIMIT, Unit, by_folder, pack, unpack
from fastuiat.bench.gpu.results import json_lines
from fastuiat.bench.gpu.summary import KILLED, RUNNING, lines_of, name_for, source_name
from fastuiat.config import UserError
from fastuiat.files import json_in, write_atomically, write_json

FORMAT = "fastuiat-gpu-1"
FILES = (
    "state.json",
    "records.jsonl",
    "summary.txt",
    "logs.tar.gz",
    "caches.tar.gz",
    "train.tar.gz",
)
HALF_WRITTEN = re.compile(rf"\.({'|'.join(map(re.escape, FILES))})-[0-9a-f]{{8}}")
LOG_CAPS = (8 << 20, 1 << 20, 1 << 18)
"""Bytes of each log that are kept, tried in turn until all of them fit."""
CACHE_SECONDS = 4.0
SOURCES = (
    "fastuiat/**/*.py",
    "fastuiat/**/*.toml",
    "kernels/**/*.py",
    "tests/**/*.py",
    "pyproject.toml",
)


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def root() -> Path:
    """The folder that holds the package."""
    return Path(fastuiat.__file__).resolve().parents[1]


def digest_of_sources() -> str:
    """Of all that a stage runs, changed files of a commit too, and where git is missing."""
    digest = hashlib.sha256()
    for path in sorted({p for pattern in SOURCES for p in root().glob(pattern)}):
        digest.update(f"{path.relative_to(root()).as_posix()}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def scratch() -> Path:
    """This user's folder for what stays on this machine; always the same one, for what compilers
    cache refers to its own place."""
    folder = Path(tempfile.gettempdir()) / f"fastuiat-gpu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder} belongs to somebody else: set TMPDIR to another folder")
    return folder


class Report:
    """The folder, what it says, and what stays on this machine."""

    def __init__(self, out: Path, state: dict[str, Any]) -> None:
        self.out, self.state = out, state
        self.stages: dict[str, dict[str, Any]] = state["stages"]
        self.scratch = scratch()
        self.work = self.scratch / state["id"]
        self.caches = self.scratch / "caches"
        self.work.mkdir(mode=0o700, exist_ok=True)
        self.caches.mkdir(mode=0o700, exist_ok=True)
        self.lines: list[str] = []
        """Of all records of stages that have ended."""
        self._packed: dict[str, Any] = {}
        """What each large archive was last made of."""

    @classmethod
    def open(cls, out: Path, hardware: dict[str, Any]) -> Report:
        """That of the folder, with what an earlier call left in it, or a new one.

        UserError where it is of other sources or of another device, or no such folder at all.
        """
        here = hardware | {"sources": digest_of_sources()}
        path = out / "state.json"
        if path.exists():
            state = read_state(path, new_folder(out, here))
            refuse_other(out, state, here)
            return cls(out, state)
        if out.is_file() or (out.is_dir() and any(out.iterdir())):
            raise UserError(f"--out {out} is no report of bench gpu: {new_folder(out, here)}")
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {out} cannot be made: {error.strerror}") from error
        state = {"format": FORMAT, "id": secrets.token_hex(6), "time": now(), **here}
        return cls(out, state | {"calls": [], "stages": {}})

    def resume(self) -> None:
        """Clear away what a kill left half written; unpack what a machine before this one made."""
        for path in self.out.iterdir():
            if HALF_WRITTEN.fullmatch(path.name):
                path.unlink()
        self.lines = lines_in(self.out / "records.jsonl")
        known = set(self.lines)
        for stage, entry in self.stages.items():
            if entry["verdict"] == RUNNING:
                entry |= {"verdict": KILLED, "note": "with the call that ran it"}
                mine = lines_in(self.work / f"{stage}.jsonl")
                self.lines += [line for line in mine if line not in known]
        if not any(self.work.glob("*.log")):
            unpack(self.out / "logs.tar.gz", self.work)
        if not any(self.caches.iterdir()):
            unpack(self.out / "caches.tar.gz", self.caches)
        runs = self.work / "train"
        if not runs.exists():
            unpack(self.out / "train.tar.gz", runs)

    def begin(self, stage: str, seconds: float) -> None:
        self.stages[stage] = {"verdict": RUNNING, "time": now(), "allotted": round(seconds)}
        self.save()

    def end(self, stage: str, entry: dict[str, Any], records: Path | None = None) -> None:
        """What the stage came to; its records are kept first, and the state is written last."""
        self.stages[stage] = {"time": now(), **entry}
        if records is not None:
            self.lines += lines_in(records)
        self.save(packed=True)

    def save(self, *, packed: bool = False, running: str | None = None) -> None:
        """Write everything: also the records of a running stage, and if `packed` what is large."""
        lines = list(self.lines)
        if running is not None:
            lines += lines_in(self.work / f"{running}.jsonl")
        self._write("records.jsonl", "".join(newest(lines)).encode())
        self._write("logs.tar.gz", self.pack_logs())
        if packed:
            self.pack_caches()
            self.pack_runs()
        said = "".join(f"{line}\n" for line in self.summary())
        self._write("summary.txt", said.encode(errors="backslashreplace"))  # of file names
        write_json(self.out / "state.json", self.state)

    def summary(self) -> list[str]:
        return lines_of(self.state)

    def _write(self, name: str, content: bytes) -> None:
        write_atomically(self.out / name, lambda file: file.write(content))

    def pack_logs(self) -> bytes:
        kinds = (".log", ".xml", "-tests.jsonl")
        files = [p for p in sorted(self.work.iterdir()) if p.name.endswith(kinds)]
        content = b""
        for most in LOG_CAPS:
            content, left_out = pack([Unit(p.name, {p.name: p}, most) for p in files])
            if not left_out:
                break
        return content

    def pack_caches(self) -> None:
        """What was compiled last: the stage that was cut off is the one that needs it again."""
        units = by_folder(self.caches)
        left_out = self._pack("caches.tar.gz", units, CACHE_SECONDS)
        if left_out is not None:
            kept = len(units) - len(left_out)
            self.state["caches"] = {"packed": kept, "left_out": len(left_out)}

    def _pack(self, name: str, units: list[Unit], seconds: float) -> list[str] | None:
        """The units that had no room; None where nothing has changed since."""
        seen = [(unit.name, unit.newest, unit.size) for unit in units]
        if seen == self._packed.get(name, []):
            return None
        self._packed[name] = seen
        content, left_out = pack(units, seconds=seconds)
        self._write(name, content)
        return left_out

    def pack_runs(self) -> None:
        """The table first, then whole runs: without its checkpoint a run is of no use."""
        runs = self.work / "train"
        if not runs.is_dir():
            return
        tables = [p for p in sorted(runs.iterdir()) if p.is_file()]
        units = [Unit("the table", {p.name: p for p in tables})]
        configs = sorted(runs.rglob("config.json"))
        for config in configs:
            if any(other.parent in config.parent.parents for other in configs):
                continue  # a run's helper is a part of it
            files = [p for p in sorted(config.parent.rglob("*")) if p.is_file()]
            kept = {p.relative_to(runs).as_posix(): p for p in files if is_small_part(p)}
            units.append(Unit(config.parent.relative_to(runs).as_posix(), kept))
        units[1:] = sorted(units[1:], key=lambda unit: unit.size)
        left_out = self._pack("train.tar.gz", units, float("inf"))
        if left_out is not None:
            self.state["runs_left_out"] = left_out


def is_small_part(path: Path) -> bool:
    return not {"tensorboard", "report-figures"} & set(path.parts) and path.suffix != ".html"


def lines_in(path: Path) -> list[str]:
    return [sealed.line(record).decode().rstrip("\n") for record in json_lines(path)]


def newest(lines: list[str]) -> list[str]:
    """The last ones that fit a file."""
    kept, size = [], 0
    for line in reversed(lines):
        size += len(line.encode()) + 1
        if size > LIMIT:
            break
        kept.append(f"{line}\n")
    return kept[::-1]


def read_state(path: Path, advice: str) -> dict[str, Any]:
    """UserError on what is no state of this format."""
    try:
        state = json_in(path)
        if state["format"] != FORMAT or not re.fullmatch("[0-9a-f]{12}", state["id"]):
            raise ValueError("of another format")
        dict(state["stages"]), {state.get("commit")}, state["sources"], name_for(state)
        lines_of(state), [dict(part) for part in (*state["stages"].values(), *state["calls"])]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path} is damaged, or of another version ({error}): {advice}") from None
    return state


def refuse_other(out: Path, state: dict[str, Any], here: dict[str, Any]) -> None:
    other = []
    known = {s["commit"] for s in (state, here) if s.get("commit")}
    if len(known) > 1:
        other.append(f"of {source_name(state)}, these sources are {source_name(here)}")
    elif state["sources"] != here["sources"]:
        other.append(f"of {source_name(state)} with other changes than these sources have")
    if state["device"] != here["device"]:
        other.append(f"of {state['device']}, this is {here['device']}")
    if other:
        raise UserError(f"--out {out} is {' and '.join(other)}: {new_folder(out, here)}")


def new_folder(out: Path, here: dict[str, Any]) -> str:
    """Advice: a name that is free, as a flag to be copied."""
    beside = out if out.name.strip(".") else out.resolve()
    name = f"{beside.name}-{name_for(here)}"
    folder, number = beside.with_name(name), 2
    while folder.exists():
        folder, number = beside.with_name(f"{name}-{number}"), number + 1
    return f"choose a new folder, say --out {folder}"


def hardware() -> dict[str, Any]:
    """What this machine is; UserError where it has no GPU that PyTorch sees."""
    import torch

    from fastuiat.machine import describe

    if not torch.cuda.is_available():
        raise UserError("bench gpu: PyTorch sees no CUDA device here")
    return describe(torch.device("cuda"))
