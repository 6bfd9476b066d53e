"""`fastuiat train`, and the settings that it parses."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastuiat.commands.output import Output, split_output
from fastuiat.commands.parsing import early, hyphenated, parse, refuse_second
from fastuiat.config import UserError

if TYPE_CHECKING:
    from fastuiat.training.config import TrainConfig


def method_flags(cls: Any) -> list[str]:
    """The flags of a settings class, its nested ones included."""
    flags: list[str] = []
    for field in dataclasses.fields(cls):
        nested = field.default_factory
        if nested is not dataclasses.MISSING and dataclasses.is_dataclass(nested):
            flags += method_flags(nested)
        else:
            flags.append("--" + field.name.replace("_", "-"))
    return flags


def flags_of(method: str) -> Any:
    """TrainConfig with the settings of one method, which is what `train` parses."""
    from fastuiat import methods
    from fastuiat.training.config import TrainConfig

    settings = methods.get(method).Config
    return dataclasses.make_dataclass(
        "TrainConfig",
        [("settings", settings, dataclasses.field(default_factory=settings))],
        bases=(TrainConfig,),
        frozen=True,
        kw_only=True,
    )


def parse_over(begun: TrainConfig, argv: list[str]) -> TrainConfig:
    """`begun` with flags laid over it; an unknown one is answered with those of the method."""
    if early(argv, "--inverse-bn") is not None:
        raise UserError("--inverse-bn is --inverse-forward now: eval, train or attached")
    values = {f.name: getattr(begun, f.name) for f in dataclasses.fields(begun)}
    default = flags_of(begun.method)(**values)
    try:
        parsed = parse(
            type(default),
            argv,
            prog="fastuiat train",
            default=default,
            description="Train a robust classifier. `--resume RUN` goes on with a run, with the "
            "settings it has. `--quiet` prints the run folder alone, `--json` one JSON document on "
            "stdout.",
        )
    except UserError as error:
        unknown = re.match(r"Unrecognized options: (--[\w-]+)", str(error))
        if not unknown:
            raise
        known = ", ".join(method_flags(type(begun.settings))) or "none"
        raise UserError(
            f"no flag {unknown[1]} with --method {begun.method}, whose settings are: {known} "
            "(fastuiat train --help)"
        ) from None
    return type(begun)(**{name: getattr(parsed, name) for name in values})


def named_in(argv: list[str]) -> list[str]:
    """The settings that flags name: `nesterov` of --no-nesterov."""
    words = [word[2:].split("=")[0] for word in argv if word.startswith("--")]
    return [word.removeprefix("no-").replace("-", "_") for word in words]


def settings_in(argv: list[str]) -> tuple[TrainConfig, dict[str, str]]:
    """The settings that the flags of `train` make, and where each comes from.

    Recipe, data set, method, extra data and length choose what the others are laid over.
    """
    from fastuiat import recipes
    from fastuiat.training.config import refuse_idle

    refuse_second(argv, "--extra-data")
    chosen: dict[str, Any] = {}
    for flag in ("dataset", "method", "extra_data"):
        if value := early(argv, "--" + flag.replace("_", "-")):
            chosen[flag] = None if value == "None" else value
    epochs = early(argv, "--epochs")
    if epochs and epochs.isdecimal():  # the parser refuses any other
        chosen["epochs"] = int(epochs)
    begun, sources = recipes.resolve(early(argv, "--recipe"), chosen)
    config, named = parse_over(begun, argv), named_in(argv)
    refuse_idle(config, named)
    return config, sources | dict.fromkeys(named, recipes.FLAG)


def resumed_settings(folder: Path, argv: list[str]) -> TrainConfig:
    """Those of the run, with flags laid over them."""
    from fastuiat.training.folder import config_of

    stored = config_of(folder)
    method = early(argv, "--method") or stored.method
    if method != stored.method:
        raise UserError(
            f"--resume keeps the run's settings, but --method is {stored.method}, not {method}"
        )
    return parse_over(stored, argv)


def train(argv: list[str]) -> None:
    options, argv = split_output(hyphenated(argv))
    output = Output(options)
    run = early(argv, "--resume")
    if run is not None:
        at = next(i for i, w in enumerate(argv) if w.startswith("--resume"))
        argv = argv[:at] + argv[at + (1 if "=" in argv[at] else 2) :]
        config = resumed_settings(Path(run), argv)
    else:
        config, _ = settings_in(argv)
    from fastuiat.progress import show_training
    from fastuiat.training.run import resume
    from fastuiat.training.run import train as begin

    with show_training(output.console) as progress:
        if run is not None:
            folder = resume(config, Path(run), progress=progress, say=progress.say)
        else:
            folder = begin(config, progress=progress, say=progress.say)
    document = {"run": folder, "step": progress.done, "last_epoch": progress.validated}
    output.result(document, f"run folder: {folder}")
