"""`fastuiat eval`."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from fastuiat.commands.output import Output, OutputOptions
from fastuiat.commands.parsing import flags_in, parse
from fastuiat.commands.published import PublishedOptions, constants_joined, say_what_was_taken
from fastuiat.config import UserError, count_in, parse_radius, positive, radius_text, refuse_seed

if TYPE_CHECKING:
    import torch

    from fastuiat.data import ImageSet
    from fastuiat.distributed import Ranks


MOST_RADII = 1000
"""Of a sweep: there are 255 grey levels."""


def sweep(words: list[str]) -> tuple[float, ...]:
    """LO HI N as so many radii, whole 255ths where they lie on one."""
    low, high = map(parse_radius, words[:2])
    count = count_in(words[2])
    if count is None or not (2 <= count <= MOST_RADII and low < high):
        raise UserError(
            f"LO HI N must be two radii, LO below HI, and a number from 2 to {MOST_RADII}"
        )
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
    n: int | None = None
    """Only the first so many test images."""
    eps: Radii = (8 / 255,)
    """Radii of the L∞ ball; a negative one descends the loss: the inverse attack."""
    eps_sweep: Sweep = None
    """LO HI N: so many radii evenly from LO to HI, in place of --eps."""
    seed: int = 0
    """Fixes starts and restarts."""
    batch_size: int = 200
    """Images at a time; AutoAttack's numbers depend on it."""
    dataset: str | None = None
    """By default the one the run was trained on."""
    data_dir: Path | None = None
    """By default the run's."""
    unchecked_data: bool = False
    """Use the data set's files also where they are not the published ones."""
    resolution: int | None = None
    """Pixels a side that images are resized to; by default those that the run was trained on."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    rank_timeout: float = 24.0
    """Hours that the ranks of a torchrun wait for one that hangs."""
    out: Path | None = None
    """Where eval/*.json goes; by default the run folder."""

    def __post_init__(self) -> None:
        """Each attack checks its own settings, which a subclass adds to these."""
        refuse_seed(self.seed)
        positive(batch_size=self.batch_size)


def eval_class() -> Any:
    """EvalOptions with the names of all attacks and their settings, which is what `eval` parses."""
    from fastuiat.evaluation import attacks

    names: Any = Literal[tuple(attacks.names())]
    which = Annotated[tuple[names, ...], tyro.conf.arg(help="Which attacks to run.")]
    return dataclasses.make_dataclass(
        "EvalOptions",
        [("attacks", which, dataclasses.field(default=("clean", "pgd")))],
        bases=(EvalOptions, *attacks.configs()),
        frozen=True,
        kw_only=True,
    )


def settings_of(options: Any, typed: set[str]) -> dict[str, Any]:
    """The attacks' settings by name; UserError on a typed flag that does nothing for them."""
    from fastuiat.evaluation import attacks

    chosen = [attacks.get(name) for name in options.attacks]
    used = {name for attack in chosen for name in attack.settings()}
    words = " ".join(dict.fromkeys(options.attacks))
    for flag in sorted(typed):
        owners = attacks.owners(flag)
        if owners and flag not in used:
            raise UserError(
                f"--{flag.replace('_', '-')} does nothing for --attacks {words}: "
                f"it is a setting of {' and '.join(owners)}"
            )
    if {"eps", "eps_sweep"} <= typed:
        raise UserError("--eps does nothing beside --eps-sweep: give one of them")
    radii = sorted({"eps", "eps_sweep"} & typed)
    if radii and not any(attack.has_radius for attack in chosen):
        raise UserError(f"--{radii[0].replace('_', '-')} does nothing for --attacks {words}")
    return {name: getattr(options, name) for name in sorted(used)}


def evaluate(argv: list[str]) -> None:
    argv = constants_joined(negative_radii(argv))
    options = parse(eval_class(), argv, prog="fastuiat eval", description=EvalOptions.__doc__)
    typed = flags_in(argv)
    settings = settings_of(options, typed)
    if options.n is not None and options.n < 1:
        raise UserError(f"--n must be at least 1, got {options.n}")
    positive(rank_timeout=options.rank_timeout)
    from fastuiat.device import resolve_device
    from fastuiat.distributed import process_group

    device = resolve_device(options.device)
    with process_group(device, patience=3600 * options.rank_timeout) as ranks:
        evaluate_on(ranks, device, options, typed, settings)


def evaluate_on(
    ranks: Ranks, device: torch.device, options: Any, typed: set[str], settings: dict[str, Any]
) -> None:
    """What the options say, shared out over the ranks."""
    from fastuiat.evaluation import evaluate as measure
    from fastuiat.evaluation import table
    from fastuiat.progress import show_evaluation
    from fastuiat.training.checkpoint import open_checkpoint

    output = Output(options)
    with ranks.agreed():
        model, info = open_checkpoint(options.path, dataset=options.dataset, **options.described())
        model.to(device)
    say_what_was_taken(output, options.path, options, typed, info)
    name = options.dataset or info.get("dataset")
    if name is None:
        raise UserError("name the data set of a bare state dict with --dataset")
    run = run_of(options.path)
    if run is None and options.path.is_dir():  # it has lost its config.json
        run = options.path
    folder = options.out or run or options.path.parent
    images = images_for(options, name, info, run, ranks, output)
    with show_evaluation(output.console) as progress:
        records = measure(
            model,
            images,
            attacks=options.attacks,
            eps=options.eps_sweep or options.eps,
            n=options.n,
            seed=options.seed,
            batch_size=options.batch_size,
            device=device,
            out=folder,
            info=info,
            settings=settings,
            progress=progress,
            say=progress.say,
            ranks=ranks,
        )
    shown = [{k: v for k, v in record.items() if k != "per_sample"} for record in records]
    seed_and_place = f"seed {options.seed}; records: {folder / 'eval'}"
    output.result({"folder": folder / "eval", "records": shown}, table(records), seed_and_place)


def images_for(
    options: Any, name: str, info: dict[str, Any], run: Path | None, ranks: Ranks, output: Output
) -> ImageSet:
    """The test images of a data set, as the net knows images; UserError where it does not."""
    from fastuiat import data
    from fastuiat.progress import in_lines
    from fastuiat.training.folder import stored_config

    data_dir = options.data_dir
    if data_dir is None:
        data_dir = Path(stored_config(run)["data_dir"]) if run else Path("data")
    how = data.Preparation(
        resolution=options.resolution or info.get("resolution"),
        seed=info.get("split_seed", 0),
        progress=in_lines(output.say),
        say=output.say,
    )
    images = ranks.after_first(
        lambda: data.load(name, data_dir, "test", unchecked=options.unchecked_data, how=how)
    )
    if images.num_classes != info["num_classes"]:
        raise UserError(
            f"{name} has {images.num_classes} classes, {options.path} {info['num_classes']}"
        )
    refuse_other_order(images, info)
    if images.fingerprint and images.fingerprint.checked == "unchecked":
        output.say(f"{name}'s test files are not the published ones: used as they are")
    return images


def refuse_other_order(images: ImageSet, info: dict[str, Any]) -> None:
    """UserError where the net knows the same classes by other numbers."""
    known = list(info.get("classes") or [])
    if known != list(images.classes) and sorted(known) == sorted(images.classes):
        raise UserError(f"{images.name} has the classes of the net in another order")


def negative_radii(argv: list[str]) -> list[str]:
    """-8/255 as a plain number: a parser takes the fraction for a flag."""
    fraction = re.compile(r"-[\d.]+/[\d.]+")
    return [repr(parse_radius(word)) if fraction.fullmatch(word) else word for word in argv]


def run_of(path: Path) -> Path | None:
    """The run folder that a path is, or that its checkpoint lies in: it is evaluated there."""
    inside = (path, *path.parents[:2], *path.resolve().parents[:2])
    return next(
        (p for p in inside if (p / "config.json").is_file() and (p / "checkpoints").is_dir()), None
    )
