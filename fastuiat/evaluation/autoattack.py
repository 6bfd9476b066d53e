"""AutoAttack by its own package, with a state that a killed run goes on from.

The package's attacks run unchanged, one at a time, on batches frozen at the start of each attack,
as its standard evaluation does; the package's own resume file cannot be read back.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastuiat.config import UserError
from fastuiat.evaluation.attacks import Progress, finite_logits
from fastuiat.files import write_json


def package() -> tuple[Any, str]:
    """The AutoAttack class that is installed, and `name version`; UserError where none is."""
    for name in ("pyautoattack", "autoattack"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        return module.AutoAttack, f"{name} {importlib.metadata.version(name)}"
    raise UserError("AutoAttack is not installed: pip install pyautoattack")


@dataclass
class State:
    """Where an evaluation is. `queue` holds the rows the current attack has still to see."""

    fingerprint: str
    package: str
    clean: list[bool]
    robust: list[bool]
    attack: int = 0
    queue: list[int] | None = None
    accuracy: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AutoAttackResult:
    """`robust` bool (N,): right on the image and on every adversarial example found."""

    robust: Tensor
    accuracy: dict[str, float]
    seconds: dict[str, float]
    package: str
    target_classes: int


def fingerprint(model: nn.Module, x: Tensor, y: Tensor, settings: dict[str, Any]) -> str:
    """sha256 of weights, points, labels and settings."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for tensor in (*model.state_dict().values(), x, y):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def read_state(path: Path, expected: str) -> State | None:
    """The state to go on from, or None; UserError where it is of something else."""
    if not path.exists():
        return None
    try:
        state = State(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged: delete it to start again") from error
    if state.fingerprint != expected:
        raise UserError(
            f"{path} belongs to another checkpoint or other settings: delete it, or choose --out"
        )
    return state


def perturb(adversary: Any, attack: str, seed: int, x: Tensor, y: Tensor) -> Tensor:
    """One attack of the package on one batch, seeded as its standard evaluation seeds it."""
    if attack in ("apgd-ce", "apgd-dlr"):
        runner = adversary.apgd
        runner.loss = attack.removeprefix("apgd-")
    elif attack == "apgd-t":
        runner = adversary.apgd_targeted
    elif attack in ("fab", "fab-t"):
        runner = adversary.fab
        runner.targeted = attack == "fab-t"
        if runner.targeted:
            runner.n_restarts = 1
    else:
        runner = adversary.square
    runner.seed = seed
    return runner.perturb(x, y)


def run_autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    version: str = "standard",
    seed: int = 0,
    batch_size: int = 200,
    state_path: Path,
    device: torch.device,
    progress: Progress | None = None,
) -> AutoAttackResult:
    """Standard AutoAttack (Croce and Hein 2020) in the L∞ ball, resumable batch by batch.

    x fp32 (N, C, H, W) in [0, 1], y int64 (N,). The seed is set again for each batch, as the
    package does, so results belong to the batch size. The state file is left for the caller to
    remove. UserError on a foreign state or NaN logits.
    """
    make, name = package()
    settings = {"eps": eps, "version": version, "seed": seed, "batch_size": batch_size}
    key = fingerprint(model, x, y, settings | {"package": name})
    model = model.to(device).eval()
    adversary = make(model, norm="Linf", eps=eps, version=version, seed=seed, device=str(device))
    x, y = x.contiguous(), y.contiguous()
    state = read_state(state_path, key)
    if state is None:
        logits = [finite_logits(model, part.to(device)).cpu() for part in x.split(batch_size)]
        clean = torch.cat(logits).argmax(dim=1) == y.cpu()
        state = State(key, name, clean.tolist(), clean.tolist())
        state.accuracy["clean"] = sum(state.clean) / len(y)
    # With fewer classes than the usual nine targets there is only one target per other class.
    classes = finite_logits(model, x[:1].to(device)).shape[1]
    targets = min(9, classes - 1)
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = targets
    attacks = list(adversary.attacks_to_run)
    while state.attack < len(attacks):
        run_attack(adversary, attacks[state.attack], state, x, y, batch_size=batch_size, seed=seed,
                   state_path=state_path, device=device, progress=progress)  # fmt: skip
    return AutoAttackResult(
        torch.tensor(state.robust), state.accuracy, state.seconds, name, targets
    )


def run_attack(
    adversary: Any,
    attack: str,
    state: State,
    x: Tensor,
    y: Tensor,
    *,
    batch_size: int,
    seed: int,
    state_path: Path,
    device: torch.device,
    progress: Progress | None,
) -> None:
    """Take the current attack to its end, writing the state after every batch."""
    standing = [i for i, robust in enumerate(state.robust) if robust]
    if state.queue is None:
        state.queue = standing
    total = len(state.queue)
    while state.queue:
        rows, rest = state.queue[:batch_size], state.queue[batch_size:]
        began = time.monotonic()
        points, labels = x[rows].to(device), y[rows].to(device)
        with torch.no_grad():
            adversarial = perturb(adversary, attack, seed, points, labels)
        held = finite_logits(adversary.model, adversarial).argmax(dim=1) == labels
        for row, stands in zip(rows, held.tolist(), strict=True):
            state.robust[row] = stands
        elapsed = time.monotonic() - began
        state.seconds[attack] = state.seconds.get(attack, 0.0) + elapsed
        state.queue = rest
        write_json(state_path, asdict(state))
        if progress:
            progress(f"autoattack {attack}", total - len(rest), total)
    state.accuracy[attack] = sum(state.robust) / len(state.robust)
    state.attack, state.queue = state.attack + 1, None
    write_json(state_path, asdict(state))
