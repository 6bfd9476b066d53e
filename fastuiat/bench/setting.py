"""How a training step is run, and what its time means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fastuiat.bench.baselines import BASELINES
from fastuiat.bench.timing import Measurement
from fastuiat.bench.workload import Case
from fastuiat.device import has_bf16, missing_for_compilation, resolve_device, resolve_precision


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a case is run."""

    device: torch.device
    precision: str
    compiled: bool

    def notes(self, case: Case) -> dict[str, str]:
        """What each row ran, in words."""
        compiled = "compiled" if self.compiled else "not compiled"
        arithmetic = self.precision
        if arithmetic == "fp32" and not has_bf16(self.device):
            arithmetic += " (no bf16 in this hardware)"
        known = BASELINES.get(case.method)
        return {
            "naive": f"eager, fp32, NCHW. {known.source if known else ''}",
            "tuned-eager": f"eager, {arithmetic}, channels-last, the passes of the floor",
            "fastuiat": f"the step of `fastuiat train`: {arithmetic}, {compiled}",
            "fused": "fastuiat's, the frozen blocks by the kernels of conv3x3 and strided3x3, an "
            "attack's step by conv3x3_sign_step",
            "cudnn": "fastuiat's, the frozen blocks by cuDNN and pointwise graphs",
            "convolutions": f"its convolutions and matrix products alone: eager, {arithmetic}",
        }


def make_setting(device: str, precision: str, compiled: bool) -> tuple[Setting, str | None]:
    """The setting that options ask for, and what to say where it is not compiled against them."""
    place = resolve_device(device)
    missing = missing_for_compilation(place) if compiled else None
    setting = Setting(
        device=place,
        precision=resolve_precision(precision, place),
        compiled=compiled and missing is None,
    )
    return setting, f"not compiling: {missing}" if missing else None


def costs(m: Measurement, case: Case, flops: float | None, forward: int) -> dict[str, Any]:
    """What the time means: passes, images per second, floating-point operations per second."""
    median = m.spread.median if m.samples else None
    return {
        "passes": flops / forward if flops else None,
        "flops": flops,
        "images_per_s": case.batch_size / median if median else None,
        "tflops_per_s": flops / median / 1e12 if median and flops else None,
    }
