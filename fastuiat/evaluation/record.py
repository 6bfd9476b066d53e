"""An evaluation with everything that is needed to repeat it."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from fastuiat.config import UserError, radius_text
from fastuiat.data import ImageSet
from fastuiat.evaluation.attacks import LOSSES, Progress, correct_under, pixels
from fastuiat.evaluation.autoattack import run_autoattack
from fastuiat.files import write_json

ALPHA, STEPS = 2 / 255, 20


def bits(correct: Tensor) -> str:
    """One character a sample: 1 where it was classified correctly."""
    return "".join("1" if c else "0" for c in correct.tolist())


def file_name(attack: str, eps: float, n: int) -> str:
    strength = "" if attack == "clean" else f"_eps{radius_text(eps).replace('/', 'over')}"
    label = f"{attack}-{STEPS}" if attack in LOSSES else attack
    return f"{label}{strength}_n{n}"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What all attacks of one evaluation share."""

    model: nn.Module
    images: ImageSet
    eps: float
    seed: int
    batch_size: int
    device: torch.device
    progress: Progress | None

    def autoattack(self, state: Path) -> tuple[Tensor, float, dict[str, Any]]:
        """Which samples stand, bool (N,); seconds; what the record says of the attack."""
        result = run_autoattack(
            self.model,
            pixels(self.images.images, torch.device("cpu")).contiguous(),
            torch.from_numpy(self.images.labels),
            eps=self.eps,
            seed=self.seed,
            batch_size=self.batch_size,
            state_path=state,
            device=self.device,
            progress=self.progress,
        )
        settings = {
            "version": "standard",
            "package": result.package,
            "parts": result.accuracy,
            "part_seconds": result.seconds,
            "target_classes": result.target_classes,
        }
        return result.robust, sum(result.seconds.values()), settings

    def gradient_attack(self, attack: str) -> tuple[Tensor, float, dict[str, Any]]:
        """The same for clean, pgd and cw."""
        began = time.monotonic()
        correct = correct_under(
            self.model,
            self.images,
            attack,
            eps=self.eps,
            alpha=ALPHA,
            steps=STEPS,
            seed=self.seed,
            batch_size=self.batch_size,
            device=self.device,
            progress=self.progress,
        )
        settings: dict[str, Any] = {}
        if attack in LOSSES:
            settings = {"alpha": radius_text(ALPHA), "steps": STEPS}
            settings |= {"loss": LOSSES[attack], "start": "uniform"}
        return correct, time.monotonic() - began, settings

    def record(
        self, attack: str, correct: Tensor, seconds: float, settings: dict[str, Any]
    ) -> dict[str, Any]:
        """All that is needed to repeat the measurement, and its outcome sample by sample."""
        count = len(self.images.labels)
        radius = {"eps": radius_text(self.eps), "eps_value": self.eps}
        return {
            "attack": attack,
            **({} if attack == "clean" else radius),
            **settings,
            "accuracy": int(correct.sum()) / count,
            "correct": int(correct.sum()),
            "n": count,
            "dataset": self.images.name,
            "split": "test",
            "seed": self.seed,
            "batch_size": self.batch_size,
            "seconds": seconds,
            **machine(self.device),
            "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "per_sample": bits(correct),
        }


def evaluate(
    model: nn.Module,
    images: ImageSet,
    *,
    attacks: list[str],
    eps: float,
    n: int | None,
    seed: int,
    batch_size: int,
    device: torch.device,
    out: Path,
    info: dict[str, Any],
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Measure each attack on the first n test images and write OUT/eval/<attack>.json.

    `info` says which weights these are (path, sha256 …). An unfinished AutoAttack is gone on with.
    UserError where OUT/eval holds the results of another checkpoint, or cannot be written.
    """
    if n is not None:
        images = dataclasses.replace(images, images=images.images[:n], labels=images.labels[:n])
    folder = out / "eval"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}") from error
    names = {attack: file_name(attack, eps, len(images.labels)) for attack in attacks}
    for name in names.values():
        refuse_foreign(folder / f"{name}.json", info)
    evaluation = Evaluation(
        model=model.eval(),
        images=images,
        eps=eps,
        seed=seed,
        batch_size=batch_size,
        device=device,
        progress=progress,
    )
    records = []
    for attack, name in names.items():
        state = folder / f"{name}.state"
        if attack == "autoattack":
            outcome = evaluation.autoattack(state)
        else:
            outcome = evaluation.gradient_attack(attack)
        records.append(evaluation.record(attack, *outcome) | {"checkpoint": info})
        write_json(folder / f"{name}.json", records[-1])
        if attack == "autoattack":
            state.unlink(missing_ok=True)
    return records


def machine(device: torch.device) -> dict[str, Any]:
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": device.type,
        "gpu": gpu,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "precision": "fp32",
    }


def refuse_foreign(path: Path, info: dict[str, Any]) -> None:
    """A run's own results may be renewed; those of another checkpoint stay."""
    if not path.exists():
        return
    try:
        owner = json.loads(path.read_text())["checkpoint"]["path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no evaluation record: remove it or choose --out") from error
    if owner != info.get("path"):
        raise UserError(f"{path} is of {owner}: choose another --out")


def table(records: list[dict[str, Any]]) -> Table:
    """The records as rows: attack, radius, points, accuracy, time."""
    result = Table(title=f"{records[0]['checkpoint'].get('path')} on {records[0]['dataset']}")
    for heading, justify in (
        ("attack", "left"),
        ("eps", "right"),
        ("n", "right"),
        ("accuracy", "right"),
        ("s", "right"),
    ):
        result.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for record in records:
        result.add_row(
            record["attack"],
            record.get("eps", "–"),
            str(record["n"]),
            f"{100 * record['accuracy']:.2f}%",
            f"{record['seconds']:.1f}",
        )
    return result
