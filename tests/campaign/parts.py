"""The kinds of trials, by the name that `--parts` takes."""

from __future__ import annotations

from tests.campaign import files, flips, words
from tests.campaign.disks import Disks
from tests.campaign.folders import Folders
from tests.campaign.kills import Kills
from tests.campaign.trial import Part

PARTS: dict[str, Part] = {
    "disks": Disks.endless,
    "files": files.trials,
    "flips": flips.trials,
    "folders": Folders.endless,
    "kills": Kills.endless,
    "words": words.trials,
}
