"""`fastuiat data prepare`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from fastuiat.commands.output import Output, OutputOptions
from fastuiat.commands.parsing import hyphenated, parse, refuse_second
from fastuiat.config import UserError, refuse_seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareOptions(OutputOptions):
    """Write the .beton files of a data set and check them."""

    dataset: tyro.conf.Positional[str]
    """Data set: a name, folder:PATH, or npz:PATH."""
    data_dir: Path = Path("data")
    """Folder with its published files, and for what is written."""
    extra_data: str | None = None
    """Generated images to append: ddpm1m, an .npz, or several with commas between."""
    unchecked_data: bool = False
    """Use its files also where they are not the published ones."""
    resolution: int | None = None
    """Pixels a side, as `train` has it."""
    seed: int = 0
    """The run's, which splits a folder without train/ and test/."""
    store: Literal["raw", "jpeg"] | None = None
    """How images are kept that are read from pictures or resized; by default raw up to 64 pixels a
    side and JPEG above."""
    skip_broken: bool = False
    """Leave pictures out that cannot be read, and name them."""


def prepare(argv: list[str]) -> None:
    usage = "usage: fastuiat data prepare NAME (fastuiat data prepare --help)"
    if argv[:1] in (["-h"], ["--help"]):
        print(usage)
        return
    if argv[:1] != ["prepare"]:
        raise UserError(usage)
    refuse_second(hyphenated(argv), "--extra-data")
    options = parse(PrepareOptions, argv[1:], prog="fastuiat data prepare")
    from fastuiat import data
    from fastuiat.progress import show_evaluation

    refuse_seed(options.seed)
    output = Output(options)
    with show_evaluation(output.console) as progress:
        path = data.prepare(
            options.dataset,
            options.data_dir,
            options.extra_data,
            unchecked=options.unchecked_data,
            how=data.Preparation(
                resolution=options.resolution,
                seed=options.seed,
                store=options.store,
                skip_broken=options.skip_broken,
                progress=progress,
                say=progress.say,
            ),
        )
    size = path.stat().st_size
    output.result({"path": path, "bytes": size}, f"{path}: {size:,} bytes, checked")
