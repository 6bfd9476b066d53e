"""Record files as they are read: whole records of this format, with all that readers lean on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastuiat import sealed
from fastuiat.bench import suites
from fastuiat.bench.record import FORMAT, config_hash
from fastuiat.bounds import MOST_TEXT, plain_bytes
from fastuiat.config import UserError

FAMILY = "fastuiat-bench-"
NEEDED: dict[str, type | tuple[type, ...]] = {
    "suite": str,
    "case": str,
    "provider": str,
    "device": str,
    "n": int,
    "config": dict,
    "config_hash": str,
    "time": str,
}
"""What a reader leans on, and its types; times are numbers, or null where the row failed."""
TIMES = ("median_s", "p20_s", "p80_s")


MACHINES = ("cpu", "gpu")
"""What describes one, if it was measured there."""


def read_records(
    path: Path, *, say: Callable[[str], object] = lambda word: None
) -> list[dict[str, Any]]:
    """The records of a file in their order; `say` is told of half a line that a kill left.

    UserError where the file cannot be read, holds nothing, or holds anything but records of this
    format: a number that is doubtful is not compared.
    """
    try:
        content = plain_bytes(path, MOST_TEXT)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if not content.strip():
        raise UserError(f"{path} is empty: measure with `fastuiat bench SUITE --json {path}`")
    records, broken = [], []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            value = sealed.unsealed(line)
        except sealed.Damaged as error:
            raise UserError(f"{path}:{number} is damaged: {error}") from None
        except UnicodeDecodeError:
            raise UserError(f"{path}:{number} is no record: it is not text") from None
        except ValueError:
            # A kill ends a file in half a line; the next bench ends that line and goes on.
            if not line.lstrip().startswith(b"{"):
                raise UserError(f"{path}:{number} is no record: not a line of JSON") from None
            broken.append(number)
            continue
        records.append(checked(value, f"{path}:{number}"))
    if not records:
        raise UserError(f"{path} holds no whole record: its only line was cut off")
    for number in broken:
        say(f"{path}:{number} was cut off, as by a kill, and is left out")
    return records


def checked(value: Any, where: str) -> dict[str, Any]:
    """The record, if it is one of this format, has what its suite needs, and agrees with itself."""
    found = value.get("format") if isinstance(value, dict) else None
    if not isinstance(found, str) or not found.startswith(FAMILY):
        raise UserError(f"{where} is no record of fastuiat bench")
    if found != FORMAT:
        raise UserError(
            f"{where} is of format {found}, this version reads {FORMAT}: measure again, or read it "
            "with the version that wrote it"
        )
    wrong = [name for name, kind in NEEDED.items() if not isinstance(value.get(name), kind)]
    if not wrong:
        needed = suites.of(value["suite"]).needs
        wrong = [name for name, kind in needed.items() if not isinstance(value.get(name), kind)]
    wrong += [name for name in MACHINES if not isinstance(value.get(name), dict | None)]
    times = [value.get(name) for name in TIMES]
    if value.get("error") is None and not all(is_time(t) for t in times):
        wrong += [name for name, t in zip(TIMES, times, strict=True) if not is_time(t)]
    if wrong:
        raise UserError(f"{where} is damaged: no usable {', '.join(wrong)}")
    if config_hash(value["config"]) != value["config_hash"]:
        raise UserError(f"{where} is damaged: its configuration has another hash than it says")
    return value


def is_time(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf
