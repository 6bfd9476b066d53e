"""Whether records that stand beside each other were measured on the same test images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastuiat.bounds import parsed_json, plain_text
from fastuiat.config import UserError
from fastuiat.data import Fingerprint, difference, names_path


def refuse_other_test_set(folder: Path, found: Fingerprint, instead: str) -> None:
    """UserError where a record in a folder was measured on other images than those `found`.

    `instead` is what to do then. A record of the time before fingerprints is known by its data
    set's name alone.
    """
    for path in sorted(folder.glob("*.json")):
        try:
            record = parsed_json(plain_text(path))
            change = None if "attack" not in record else _difference(record, found)
        except (OSError, ValueError, TypeError):  # no record: others say so where it matters
            continue
        if change:
            raise UserError(f"{path} was measured on another test set ({change}): {instead}")


def _difference(record: dict[str, Any], found: Fingerprint) -> str | None:
    """What is another in the record, in words."""
    moved = names_path(str(record.get("dataset"))) and names_path(found.name) and record.get("data")
    if record.get("dataset") != found.name and not moved:  # its path says nothing of the images
        return f"{record.get('dataset')}, not {found.name}"
    if not record.get("data"):
        return None
    changed = difference(Fingerprint.from_json(record["data"]), found)
    return changed and f"{changed} changed since"
