"""The kinds of trials, by the name that `--parts` takes."""

from __future__ import annotations

from tests.campaign.disks import disks
from tests.campaign.folders import folders
from tests.campaign.kills import kills
from tests.campaign.trial import Part

PARTS: dict[str, Part] = {
    "disks": disks,
    "folders": folders,
    "kills": kills,
}
