"""`fastuiat eval`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from fastuiat.commands.output import Output, OutputOptions
from fastuiat.commands.parsing import parse
from fastuiat.commands.published import PublishedOptions
from fastuiat.config import Radius, UserError, parse_radius, radius_text


def sweep(words: list[str]) -> tuple[float, ...]:
    """LO HI N as so many radii, whole 255ths where they lie on one."""
    low, high = map(parse_radius, words[:2])
    if not (words[2].isdecimal() and int(words[2]) >= 2 and low < high):
        raise UserError("LO HI N must be two radii, LO below HI, and a number of at least 2")
    count = int(words[2])
    radii = (low + (high - low) * i / (count - 1) for i in range(count))
    return tuple(parse_radius(radius_text(radius)) for radius in radii)


def radii_type(nargs: int | Literal["*"], metavar: str, read: Any) -> PrimitiveConstructorSpec[Any]:
    """Several words that make radii; what is wrong with them is said by `read`."""
    return PrimitiveConstructorSpec(
        nargs=nargs,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: value is None or isinstance(value, tuple),
        str_from_instance=lambda value: [radius_text(r) for r in value] if value else ["none"],
    )


def several(words: list[str]) -> tuple[float, ...]:
    if not words:
        raise UserError("at least one radius is needed, such as 8/255")
    return tuple(map(parse_radius, words))


Radii = Annotated[tuple[float, ...], radii_type("*", "RADIUS [RADIUS ...]", several)]
Sweep = Annotated[tuple[float, ...] | None, radii_type(3, "LO HI N", sweep)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalOptions(PublishedOptions, OutputOptions):
    """Measure the accuracy of a run or checkpoint under attack."""

    path: tyro.conf.Positional[Path]
    """Run folder, checkpoint, or state dict."""
    attacks: tuple[Literal["clean", "pgd", "cw", "autoattack"], ...] = ("clean", "pgd")
    """Which attacks to run."""
    n: int | None = None
    """Only the first so many test images."""
    eps: Radii = (8 / 255,)
    """Radii of the L∞ ball; a negative one descends the loss (pgd, cw): the inverse attack."""
    eps_sweep: Sweep = None
    """LO HI N: so many radii evenly from LO to HI, in place of --eps."""
    alpha: Radius = 2 / 255
    """Step size of pgd and cw."""
    steps: int = 20
    """Steps of pgd and cw."""
    restarts: int = 1
    """Random starts of pgd and cw; a sample counts by its worst."""
    version: Literal["standard", "plus", "rand"] = "standard"
    """AutoAttack's version; rand is for nets that answer by chance."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile the net for AutoAttack; auto: where the work is worth it."""
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
    options = parse(EvalOptions, negative_radii(argv), prog="fastuiat eval")
    from fastuiat import data, load_checkpoint
    from fastuiat.device import resolve_device
    from fastuiat.evaluation import Strength, table
    from fastuiat.evaluation import evaluate as measure
    from fastuiat.progress import show_evaluation
    from fastuiat.training.run import stored_config

    if options.n is not None and options.n < 1:
        raise UserError(f"--n must be at least 1, got {options.n}")
    strength = Strength(
        alpha=options.alpha,
        steps=options.steps,
        restarts=options.restarts,
        version=options.version,
    )
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
            eps=options.eps_sweep or options.eps,
            n=options.n,
            seed=options.seed,
            batch_size=options.batch_size,
            device=device,
            out=folder,
            info=info,
            strength=strength,
            compile={"auto": None, "on": True, "off": False}[options.compile],
            progress=progress,
            say=progress.say,
        )
    shown = [{k: v for k, v in record.items() if k != "per_sample"} for record in records]
    seed_and_place = f"seed {options.seed}; records: {folder / 'eval'}"
    output.result({"folder": folder / "eval", "records": shown}, table(records), seed_and_place)


def negative_radii(argv: list[str]) -> list[str]:
    """-8/255 as a plain number: a parser takes the fraction for a flag."""
    fraction = re.compile(r"-[\d.]+/[\d.]+")
    return [repr(parse_radius(word)) if fraction.fullmatch(word) else word for word in argv]


def is_run(path: Path) -> bool:
    """Whether this is a run folder: a checkpoint inside one is evaluated there."""
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()
