"""An evaluation with everything that is needed to repeat it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

from fastuiat.config import UserError, positive, radius_text
from fastuiat.convolutions import repeatable
from fastuiat.data import ImageSet
from fastuiat.evaluation.attacks import LOSSES, Progress, correct_over_restarts, pixels
from fastuiat.evaluation.autoattack import Say, run_autoattack
from fastuiat.files import write_json
from fastuiat.machine import summary

ALPHA, STEPS = 2 / 255, 20
"""PGD-20 and CW-20 of the published tables."""


def bits(correct: Tensor) -> str:
    """One character a sample: 1 where it was classified correctly."""
    return "".join("1" if c else "0" for c in correct.tolist())


@dataclass(frozen=True, kw_only=True)
class Strength:
    """How hard the attacks try; none of it is in a file's name where it is usual."""

    alpha: float = ALPHA
    """Step of pgd and cw, in pixel units."""
    steps: int = STEPS
    """Steps of pgd and cw."""
    restarts: int = 1
    """Random starts of pgd and cw, each sample's worst case."""
    version: str = "standard"
    """AutoAttack's version: standard, plus or rand."""

    def __post_init__(self) -> None:
        positive(alpha=self.alpha, steps=self.steps, restarts=self.restarts)

    def label(self, attack: str) -> str:
        """The attack with what is unusual of it: pgd-20, pgd-50_r5, autoattack_plus."""
        if attack == "autoattack":
            return attack if self.version == "standard" else f"{attack}_{self.version}"
        if attack not in LOSSES:
            return attack
        step = "" if self.alpha == ALPHA else f"_alpha{in_file_name(self.alpha)}"
        restarts = "" if self.restarts == 1 else f"_r{self.restarts}"
        return f"{attack}-{self.steps}{step}{restarts}"


USUAL = Strength()


def in_file_name(radius: float) -> str:
    return radius_text(radius).replace("/", "over")


def file_name(attack: str, eps: float, n: int, strength: Strength = USUAL) -> str:
    """The record of an attack, without its folder and .json; `clean` has no radius."""
    radius = "" if attack == "clean" else f"_eps{in_file_name(eps)}"
    return f"{strength.label(attack)}{radius}_n{n}"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What all attacks of one evaluation share."""

    model: nn.Module
    images: ImageSet
    strength: Strength
    seed: int
    batch_size: int
    device: torch.device
    compile: bool | None
    progress: Progress | None
    say: Say | None

    def autoattack(self, eps: float, state: Path) -> tuple[Tensor, float, dict[str, Any]]:
        """Which samples stand, bool (N,); seconds; what the record says of the attack."""
        if eps == 0:
            clean, seconds, _ = self.gradient_attack("clean", 0.0)
            return clean, seconds, {"version": self.strength.version}
        result = run_autoattack(
            self.model,
            pixels(self.images.images, torch.device("cpu")).contiguous(),
            torch.from_numpy(self.images.labels),
            eps=eps,
            version=self.strength.version,
            seed=self.seed,
            batch_size=self.batch_size,
            compile=self.compile,
            state_path=state,
            device=self.device,
            progress=self.progress,
            say=self.say,
        )
        settings = {
            "version": self.strength.version,
            "package": result.package,
            "parts": result.accuracy,
            "part_seconds": result.seconds,
            "part_points": result.points,
            "runs": result.parts,
            "target_classes": result.target_classes,
            "left_out": result.left_out,
            "warnings": result.warnings,
            "compiled": result.compiled,
            "compile_seconds": result.compile_seconds,
        }
        seconds = sum(result.seconds.values()) + result.compile_seconds
        return result.robust, seconds, settings

    def gradient_attack(self, attack: str, eps: float) -> tuple[Tensor, float, dict[str, Any]]:
        """The same for clean, pgd and cw."""
        began = time.monotonic()
        strength, loss = self.strength, LOSSES.get(attack)
        correct, accuracy = correct_over_restarts(
            self.model,
            self.images,
            attack,
            eps=eps if loss else 0.0,
            alpha=strength.alpha,
            steps=strength.steps,
            restarts=strength.restarts,
            seed=self.seed,
            batch_size=self.batch_size,
            device=self.device,
            progress=self.named(attack, eps),
        )
        settings: dict[str, Any] = {}
        if loss:
            settings = {"alpha": radius_text(strength.alpha), "steps": strength.steps}
            settings |= {"loss": loss, "start": "uniform", "restarts": strength.restarts}
            settings |= {"inverse": eps < 0, "restart_accuracy": accuracy}
        return correct, time.monotonic() - began, settings

    def named(self, attack: str, eps: float) -> Progress | None:
        """The progress of one radius of a sweep under a name of its own."""
        show = self.progress
        if show is None or attack == "clean":
            return show
        name = f"{self.strength.label(attack)} {radius_text(eps)}"
        return lambda _, done, total: show(name, done, total)

    def record(
        self, attack: str, eps: float, correct: Tensor, seconds: float, settings: dict[str, Any]
    ) -> dict[str, Any]:
        """All that is needed to repeat the measurement, and its outcome sample by sample.

        Always: `attack` (clean, pgd, cw, autoattack), `accuracy` (a share), `correct`, `n`,
        `dataset`, `split`, `seed`, `batch_size`, `seconds`, the machine, `time`, `checkpoint`
        (path, sha256 …) and `per_sample`, a character 0 or 1 per sample in the data set's order.
        All but clean: `eps` as text (`8/255`, `-8/255`: the inverse attack) and `eps_value`.
        pgd, cw: `alpha`, `steps`, `loss`, `start`, `restarts`, `inverse`, `restart_accuracy` (what
        holds after each restart, the last one being `accuracy`).
        autoattack: `version`, `package`, `parts` (accuracy after each attack, from `clean` on),
        `part_seconds`, `part_points` (samples that it met), `runs` (the same for every target class
        and restart), `target_classes`, `left_out` (attacks that the number of classes does not
        allow), `warnings`, `compiled`, `compile_seconds`; `version` alone at eps 0.
        """
        count = len(self.images.labels)
        radius = {"eps": radius_text(eps), "eps_value": eps}
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


@repeatable()
def evaluate(
    model: nn.Module,
    images: ImageSet,
    *,
    attacks: list[str],
    eps: float | Sequence[float],
    n: int | None,
    seed: int,
    batch_size: int,
    device: torch.device,
    out: Path,
    info: dict[str, Any],
    strength: Strength = USUAL,
    compile: bool | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> list[dict[str, Any]]:
    """Measure each attack on the first n test images and write OUT/eval/<attack>.json.

    Each radius of `eps` has a record of its own; a negative one is the inverse attack of pgd and
    cw, as in the paper's Figures 1 and 4. `info` says which weights these are (path, sha256 …).
    `compile` is AutoAttack's. An unfinished AutoAttack is gone on with. UserError where OUT/eval
    holds the results of another checkpoint or cannot be written, or on a negative radius for
    AutoAttack.
    """
    radii = sorted({eps} if isinstance(eps, int | float) else set(eps))
    if "autoattack" in attacks and radii[0] < 0:
        raise UserError("AutoAttack has no inverse: give it radii from 0 on")
    if n is not None:
        images = dataclasses.replace(images, images=images.images[:n], labels=images.labels[:n])
    folder = out / "eval"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}") from error
    todo = [(a, e) for a in dict.fromkeys(attacks) for e in (radii[:1] if a == "clean" else radii)]
    names = {part: file_name(*part, len(images.labels), strength) for part in todo}
    for name in names.values():
        refuse_foreign(folder / f"{name}.json", info)
    evaluation = Evaluation(
        model=model.eval(), images=images, strength=strength, seed=seed, batch_size=batch_size,
        device=device, compile=compile, progress=progress, say=say,
    )  # fmt: skip
    records = []
    for (attack, radius), name in names.items():
        state = folder / f"{name}.state"
        if attack == "autoattack":
            outcome = evaluation.autoattack(radius, state)
        else:
            outcome = evaluation.gradient_attack(attack, radius)
        records.append(evaluation.record(attack, radius, *outcome) | {"checkpoint": info})
        write_json(folder / f"{name}.json", records[-1])
        if attack == "autoattack":
            state.unlink(missing_ok=True)
    return records


def machine(device: torch.device) -> dict[str, Any]:
    tf32 = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    return {"device": device.type, **summary(device), "precision": "tf32" if tf32 else "fp32"}


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


def name_of(record: dict[str, Any]) -> str:
    """The attack as a table calls it: the usual one by its name alone."""
    attack, unusual = str(record["attack"]), []
    if record.get("steps", STEPS) != STEPS:
        attack += f"-{record['steps']}"
    if record.get("restarts", 1) != 1:
        unusual.append(f"{record['restarts']} restarts")
    if record.get("version", "standard") != "standard":
        unusual.append(record["version"])
    return ", ".join([attack, *unusual])


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
            name_of(record),
            record.get("eps", "–"),
            str(record["n"]),
            f"{100 * record['accuracy']:.2f}%",
            f"{record['seconds']:.1f}",
        )
    return result
