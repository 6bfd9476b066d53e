"""The images as they are."""

from __future__ import annotations

from fastuiat.evaluation.attacks.base import Attack, register


@register("clean")
class Clean(Attack):
    """No attack: natural accuracy."""

    has_radius = False
