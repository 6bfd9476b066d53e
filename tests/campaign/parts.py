"""The kinds of trials, by the name that `--parts` takes."""

from __future__ import annotations

from tests.campaign import files, flips, words
from tests.campaign.disks import disks
from tests.campaign.folders import folders
from tests.campaign.kills import kills
from tests.campaign.trial import Part

PARTS: dict[str, Part] = {
    "disks": disks,
    "files": files.trials,
    "flips": flips.trials,
    "folders": folders,
    "kills": kills,
    "words": words.trials,
}
