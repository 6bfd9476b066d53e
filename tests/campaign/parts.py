"""The kinds of trials, by the name that `--parts` takes."""

from __future__ import annotations

from tests.campaign import flips
from tests.campaign.trial import Part

PARTS: dict[str, Part] = {
    "flips": flips.trials,
}
