"""Where an AutoAttack is, as a file that a later process goes on from to the bit, and its end."""

from __future__ import annotations

import base64
import hashlib
import json
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastuiat.config import UserError
from fastuiat.evaluation.package import Run
from fastuiat.files import json_in, write_json
from fastuiat.writer import refuse_links, refuse_replaced


@dataclass(frozen=True)
class Found:
    """What a run found in one batch: `held`, the points that the net still gets right."""

    held: list[bool]
    stream: str
    """Where its random numbers have got to, as `stream_text` says."""
    zero_gradients: int
    failure: str | None
    """Why the net is compiled no more."""


@dataclass
class State:
    """Where an evaluation is. `queue` holds the rows the current run has still to see."""

    fingerprint: str
    package: str
    clean: list[bool]
    robust: list[bool]
    warnings: list[str]
    run: int = 0
    queue: list[int] | None = None
    streams: list[str] = field(default_factory=list)
    """Where the random numbers of each batch of the current attack have got to."""
    compiled: bool | None = None
    """Whether the net is compiled; None while that is open."""
    accuracy: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    points: dict[str, int] = field(default_factory=dict)
    compile_seconds: float = 0.0
    zero_gradients: dict[str, int] = field(default_factory=dict)
    parts: list[dict[str, Any]] = field(default_factory=list)
    """A row per run: attack, target, restart, points that it met, fallen, accuracy, seconds."""

    def keep(self, run: Run, place: int, rows: list[int], found: Found) -> None:
        """What a run has found of the batch in its place."""
        for row, stands in zip(rows, found.held, strict=True):
            self.robust[row] = stands
        self.parts[-1]["fallen"] += len(rows) - sum(found.held)
        if not run.last:
            self.streams[place : place + 1] = [found.stream]
        if found.zero_gradients:
            counts = self.zero_gradients
            counts[run.attack] = counts.get(run.attack, 0) + found.zero_gradients


@dataclass(frozen=True)
class AutoAttackResult:
    """`robust` bool (N,): right on the image and on every adversarial example found.

    By attack: `accuracy` after it, its `seconds`, the `points` that stood before it; `parts` has
    the same for each target class and restart. `left_out` names attacks that the number of classes
    does not allow.
    """

    robust: Tensor
    accuracy: dict[str, float]
    seconds: dict[str, float]
    points: dict[str, int]
    parts: list[dict[str, Any]]
    warnings: list[str]
    left_out: list[str]
    package: str
    target_classes: int
    compiled: bool
    compile_seconds: float


def fingerprint(model: nn.Module, x: Tensor, y: Tensor, settings: dict[str, Any]) -> str:
    """sha256 of weights, points, labels and settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for tensor in (*model.state_dict().values(), x, y):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def checksum_of(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def refuse_other_place(folder: Path) -> None:
    """UserError where OUT/eval, or OUT, is another folder by now or a link that leads out of it."""
    refuse_replaced(folder)
    refuse_replaced(folder.parent)
    refuse_links(folder.parent, (folder.name,))


def write_state(path: Path, state: State) -> None:
    """Whole or not at all, with a checksum: a changed digit would be a wrong accuracy."""
    told = asdict(state)
    refuse_other_place(path.parent)
    write_json(path, {"checksum": checksum_of(told), **told})


def is_possible(state: State, points: int, runs: int) -> bool:
    """Whether it can be of so many points and runs; older states have no checksum."""
    lists = (state.clean, state.robust)
    queue = state.queue or []
    return (
        all(len(part) == points and {*map(type, part)} <= {bool} for part in lists)
        and type(state.run) is int
        and 0 <= state.run <= runs
        and all(type(row) is int and 0 <= row < points for row in queue)
        and (state.queue is None or len(state.parts) > 0)
    )


def read_state(path: Path | None, expected: str, *, points: int, runs: int) -> State | None:
    """The state to go on from, or None; UserError where it is damaged or of something else."""
    if path is None or not path.exists():
        return None
    damaged = UserError(f"{path} is damaged: delete it to start again")
    try:
        told = json_in(path)
        if told.pop("checksum", None) not in (None, checksum_of(told)):
            raise damaged
        state = State(**told)
        is_other = state.fingerprint != expected
        if not (is_other or is_possible(state, points, runs)):
            raise damaged
    except UserError:
        raise
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise damaged from error
    if is_other:
        raise UserError(
            f"{path} belongs to another checkpoint or other settings: delete it, or choose --out"
        )
    return state


def stream_text(device: torch.device) -> str:
    """The state of torch's generators on the CPU and the device, as text."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    packed = (zlib.compress(state.numpy().tobytes()) for state in states)
    return " ".join(base64.b64encode(p).decode() for p in packed)


MOST_OF_A_STREAM = 1 << 16
"""Bytes of a generator's state; PyTorch's on the CPU has 5,056."""


def set_stream(text: str, device: torch.device) -> None:
    """UserError on what is no text of `stream_text`, however much it would unpack to."""
    try:
        packed = [base64.b64decode(part) for part in text.split()]
        unpacked = [zlib.decompressobj().decompress(part, MOST_OF_A_STREAM) for part in packed]
        states = [torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in unpacked]
        torch.set_rng_state(states[0])
        if device.type == "cuda":
            torch.cuda.set_rng_state(states[1], device)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError, zlib.error) as error:
        raise UserError(
            "the AutoAttack's .state holds no random numbers to go on with: delete it to start "
            "again"
        ) from error
