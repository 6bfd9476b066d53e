"""Accuracy under attack, repeatable from what it writes.

In fp32; on a GPU with PyTorch's own choice for its convolutions, TF32 unless it is switched off.
"""

from fastuiat.evaluation import attacks
from fastuiat.evaluation.accuracy import correct_under, pixels
from fastuiat.evaluation.autoattack import AutoAttackResult, run_autoattack
from fastuiat.evaluation.record import evaluate, table

__all__ = [
    "AutoAttackResult",
    "attacks",
    "correct_under",
    "evaluate",
    "pixels",
    "run_autoattack",
    "table",
]
