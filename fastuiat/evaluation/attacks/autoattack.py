"""AutoAttack as an attack of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from fastuiat.config import UserError
from fastuiat.evaluation.accuracy import pixels
from fastuiat.evaluation.attacks.base import Attack, Evaluation, Outcome, register
from fastuiat.evaluation.autoattack import AutoAttackResult, run_autoattack


@register("autoattack")
class AutoAttack(Attack):
    """The ensemble of Croce and Hein (2020), by its own package."""

    has_inverse = False

    @dataclass(frozen=True, kw_only=True)
    class Config(Attack.Config):
        version: Literal["standard", "plus", "rand"] = "standard"
        """AutoAttack's version; rand is for nets that answer by chance."""
        compile: Literal["auto", "on", "off"] = "auto"
        """Compile the net for AutoAttack; auto: where the work is worth it."""

        def __post_init__(self) -> None:
            if self.version == "rand" and self.compile == "on":
                raise UserError(
                    "--compile on does nothing with --version rand: a graph draws other numbers"
                )

    def label(self) -> str:
        version = self.config.version
        return self.name if version == "standard" else f"{self.name}_{version}"

    def measure(self, evaluation: Evaluation, eps: float, state: Path | None = None) -> Outcome:
        version = self.config.version
        if eps == 0:
            correct, seconds, _ = super().measure(evaluation, 0.0)
            return Outcome(correct, seconds, {"version": version})
        result = run_autoattack(
            evaluation.model,
            pixels(evaluation.images.images, torch.device("cpu")).contiguous(),
            torch.from_numpy(evaluation.images.labels),
            eps=eps,
            version=version,
            seed=evaluation.seed,
            batch_size=evaluation.batch_size,
            compile={"auto": None, "on": True, "off": False}[self.config.compile],
            state_path=state,
            device=evaluation.device,
            progress=evaluation.progress,
            say=evaluation.say,
            ranks=evaluation.ranks,
        )
        seconds = sum(result.seconds.values()) + result.compile_seconds
        return Outcome(result.robust, seconds, {"version": version} | facts(result))


def facts(result: AutoAttackResult) -> dict[str, Any]:
    """What a record says of it."""
    return {
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
