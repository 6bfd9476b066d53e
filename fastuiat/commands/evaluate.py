"""`fastuiat eval`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from fastuiat.commands.output import Output, OutputOptions
from fastuiat.commands.parsing import parse
from fastuiat.commands.published import PublishedOptions
from fastuiat.config import Radius, UserError, parse_radius


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalOptions(PublishedOptions, OutputOptions):
    """Measure the accuracy of a run or checkpoint under attack."""

    path: tyro.conf.Positional[Path]
    """Run folder, checkpoint, or state dict."""
    attacks: tuple[Literal["clean", "pgd", "cw", "autoattack"], ...] = ("clean", "pgd")
    """Which attacks to run."""
    n: int | None = None
    """Only the first so many test images."""
    eps: Radius = 8 / 255
    """Radius of the L∞ ball."""
    seed: int = 0
    """Fixes starts and restarts."""
    batch_size: int = 200
    """Images at a time; AutoAttack's numbers depend on it."""
    dataset: str | None = None
    """By default the one the run was trained on."""
    data_dir: Path | None = None
    """By default the run's."""
    which: Literal["best", "last"] = "best"
    """Which checkpoint of a run."""
    weights: Literal["averaged", "raw"] = "averaged"
    """The averaged net where there is one, or the live one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    out: Path | None = None
    """Where eval/*.json goes; by default the run folder."""


def evaluate(argv: list[str]) -> None:
    options = parse(EvalOptions, argv, prog="fastuiat eval")
    from fastuiat import data, load_checkpoint
    from fastuiat.evaluation import evaluate as measure
    from fastuiat.evaluation import table
    from fastuiat.progress import show_evaluation
    from fastuiat.training.precision import resolve_device
    from fastuiat.training.run import stored_config

    if options.n is not None and options.n < 1:
        raise UserError(f"--n must be at least 1, got {options.n}")
    if parse_radius(options.eps) < 0:
        raise UserError("--eps must not be negative")
    model, info = load_checkpoint(
        options.path, which=options.which, weights=options.weights, **options.described()
    )
    output = Output(options)
    if note := info.get("note"):
        output.say(note)
    name = options.dataset or info.get("dataset")
    if name is None:
        raise UserError("name the data set of a bare state dict with --dataset")
    run = next((p for p in (options.path, *options.path.parents[:2]) if is_run(p)), None)
    folder = options.out or run or options.path.parent
    data_dir = options.data_dir
    if data_dir is None:
        data_dir = Path(stored_config(run)["data_dir"]) if run else Path("data")
    images = data.load(name, data_dir, "test")
    if images.num_classes != info["num_classes"]:
        raise UserError(
            f"{name} has {images.num_classes} classes, {options.path} {info['num_classes']}"
        )
    device = resolve_device(options.device)
    with show_evaluation(output.console) as progress:
        records = measure(
            model.to(device),
            images,
            attacks=list(options.attacks),
            eps=options.eps,
            n=options.n,
            seed=options.seed,
            batch_size=options.batch_size,
            device=device,
            out=folder,
            info=info,
            progress=progress,
        )
    shown = [{k: v for k, v in record.items() if k != "per_sample"} for record in records]
    seed_and_place = f"seed {options.seed}; records: {folder / 'eval'}"
    output.result({"folder": folder / "eval", "records": shown}, table(records), seed_and_place)


def is_run(path: Path) -> bool:
    """Whether this is a run folder: a checkpoint inside one is evaluated there."""
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()
