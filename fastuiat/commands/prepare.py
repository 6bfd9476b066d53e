"""`fastuiat data prepare`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import tyro

from fastuiat.commands.output import Output, OutputOptions
from fastuiat.commands.parsing import hyphenated, parse, refuse_second
from fastuiat.config import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareOptions(OutputOptions):
    """Write the .beton file of a data set and check it."""

    dataset: tyro.conf.Positional[str]
    """Data set."""
    data_dir: Path = Path("data")
    """Folder with its published files."""
    extra_data: str | None = None
    """Generated images to append: ddpm1m or an .npz."""
    unchecked_data: bool = False
    """Use its files also where they are not the published ones."""


def prepare(argv: list[str]) -> None:
    if argv[:1] != ["prepare"]:
        raise UserError("usage: fastuiat data prepare NAME [--data-dir DIR] [--extra-data FILE]")
    refuse_second(hyphenated(argv), "--extra-data")
    options = parse(PrepareOptions, argv[1:], prog="fastuiat data prepare")
    from fastuiat import data

    path = data.prepare(
        options.dataset,
        options.data_dir,
        options.extra_data,
        unchecked=options.unchecked_data,
    )
    size = path.stat().st_size
    Output(options).result({"path": path, "bytes": size}, f"{path}: {size:,} bytes, checked")
