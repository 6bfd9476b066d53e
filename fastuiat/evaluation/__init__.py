"""Accuracy under attack, in fp32, repeatable from what it writes."""

from fastuiat.evaluation.attacks import correct_under, pixels
from fastuiat.evaluation.autoattack import AutoAttackResult, run_autoattack
from fastuiat.evaluation.record import Strength, evaluate, table

__all__ = [
    "AutoAttackResult",
    "Strength",
    "correct_under",
    "evaluate",
    "pixels",
    "run_autoattack",
    "table",
]
