"""`fastuiat doctor`."""

from __future__ import annotations

import dataclasses

from fastuiat.commands.output import Output, OutputOptions, columns
from fastuiat.commands.parsing import parse


@dataclasses.dataclass(frozen=True, kw_only=True)
class DoctorOptions(OutputOptions):
    """What this machine can do."""


def doctor(argv: list[str]) -> None:
    options = parse(DoctorOptions, argv, prog="fastuiat doctor")
    from fastuiat import __version__, data, machine
    from fastuiat.device import missing_for_compilation, resolve_device, resolve_precision

    device = resolve_device("auto")
    here = machine.summary(device)
    rows = {
        "fastuiat": __version__,
        "torch": here["torch"],
        "device": here["gpu"] or "cpu",
        "cpu": f"{here['cpu']}, {here['threads']} threads",
        "precision": resolve_precision("auto", device),
        "compile": missing_for_compilation(device) or "yes",
        "ffcv": "yes" if data.ffcv_available() else "not installed",
        "autoattack": autoattack_package(),
    }
    Output(options).result(rows, columns(list(rows.items())))


def autoattack_package() -> str:
    from importlib.util import find_spec

    found = [name for name in ("pyautoattack", "autoattack") if find_spec(name)]
    return ", ".join(found) or "not installed (pip install pyautoattack)"
