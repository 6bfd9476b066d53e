"""N-FGSM (de Jorge et al. 2022): more noise and no projection."""

from __future__ import annotations

from typing import ClassVar

from fastuiat.methods.base import register
from fastuiat.methods.rs_fgsm import RandomStepMethod


@register("n-fgsm")
class NFGSM(RandomStepMethod):
    """CE(f(x̂), y), x̂ one step of eps from U(−2·eps, 2·eps), kept in the pixel range only."""

    alpha_ratio: ClassVar[float] = 1.0
    noise_ratio: ClassVar[float] = 2.0
    project: ClassVar[bool] = False
