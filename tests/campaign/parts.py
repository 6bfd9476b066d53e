"""The kinds of trials, by the name that `--parts` takes."""

from __future__ import annotations

from tests.campaign import files, words
from tests.campaign.trial import Part

PARTS: dict[str, Part] = {
    "files": files.trials,
    "words": words.trials,
}
