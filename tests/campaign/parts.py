"""The kinds of trials, by the name that `--parts` takes."""

from __future__ import annotations

from tests.campaign import files, flips, words
from tests.campaign.trial import Part

PARTS: dict[str, Part] = {
    "files": files.trials,
    "flips": flips.trials,
    "words": words.trials,
}
