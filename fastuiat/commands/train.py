"""`fastuiat train`, and the settings that it parses."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from fastuiat.commands.output import Output, split_output
from fastuiat.commands.parsing import early, parse
from fastuiat.config import OptimizerConfig, TrainConfig, UserError


def method_settings(cls: Any) -> list[str]:
    """The flags of a settings class, its nested ones included."""
    flags: list[str] = []
    for field in dataclasses.fields(cls):
        nested = field.default_factory
        if nested is not dataclasses.MISSING and dataclasses.is_dataclass(nested):
            flags += method_settings(nested)
        else:
            flags.append("--" + field.name.replace("_", "-"))
    return flags


def parse_training(default: Any, argv: list[str]) -> Any:
    """The settings of `train`; an unknown flag is answered with those that the method has."""
    if early([word.replace("_", "-") for word in argv], "--inverse-bn") is not None:
        raise UserError("--inverse-bn is --inverse-forward now: eval, train or attached")
    try:
        return parse(
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
        known = ", ".join(method_settings(type(default.settings))) or "none"
        raise UserError(
            f"no flag {unknown[1]} with --method {default.method}, whose settings are: {known} "
            "(fastuiat train --help)"
        ) from None


def train_class(method: str) -> Any:
    """TrainConfig with the settings of one method, which is what `train` parses."""
    from fastuiat import methods

    settings = methods.get(method).Config
    return dataclasses.make_dataclass(
        "TrainConfig",
        [("settings", settings, dataclasses.field(default_factory=settings))],
        bases=(TrainConfig,),
        frozen=True,
        kw_only=True,
    )


def default_config(argv: list[str]) -> Any:
    """The settings before flags: recipe, data set, method and extra data choose them."""
    return resolved_config(argv)[0]


def resolved_config(argv: list[str]) -> tuple[Any, dict[str, str]]:
    """(settings before flags, where each comes from)."""
    from fastuiat import methods, recipes

    chosen: dict[str, Any] = {}
    for flag in ("dataset", "method", "extra_data"):
        if value := early(argv, "--" + flag.replace("_", "-")):
            chosen[flag] = None if value == "None" else value
    epochs = early(argv, "--epochs")
    length = int(epochs) if epochs and epochs.isdecimal() else None  # tyro refuses any other
    resolved = recipes.resolve(early(argv, "--recipe"), chosen, length)
    method = resolved.run["method"]
    settings = methods.configure(methods.get(method).Config, resolved.settings)
    return train_class(method)(**resolved.run, settings=settings), resolved.sources


def stored_default(folder: Path) -> Any:
    """The settings of a run as a parsed config, for --resume."""
    from fastuiat import methods
    from fastuiat.training.run import stored_config

    stored = stored_config(folder)
    try:
        config = methods.get(stored["method"]).Config
        settings = methods.configure(config, stored.pop("settings"))
        for name in ("data_dir", "out", "helper"):
            stored[name] = None if stored[name] is None else Path(stored[name])
        stored["optimizer"] = OptimizerConfig(**stored["optimizer"])
        return train_class(stored["method"])(**stored, settings=settings)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'} is not of this version: {error}") from error


def train(argv: list[str]) -> None:
    from fastuiat.progress import show_training

    options, argv = split_output(argv)
    output = Output(options)
    resumed = early(argv, "--resume")
    if resumed is not None:
        from fastuiat.training.run import resume

        at = next(i for i, w in enumerate(argv) if w.startswith("--resume"))
        rest = argv[:at] + argv[at + (1 if "=" in argv[at] else 2) :]
        default = stored_default(Path(resumed))
        method = early(rest, "--method") or default.method
        if method != default.method:
            raise UserError(
                f"--resume keeps the run's settings, but --method is {default.method}, not {method}"
            )
        config = parse_training(default, rest)
        with show_training(output.console) as progress:
            trainer = resume(config, Path(resumed), progress, say=progress.say)
    else:
        from fastuiat.training.run import train as start

        default = default_config(argv)
        config = parse_training(default, argv)
        with show_training(output.console) as progress:
            trainer = start(config, progress, say=progress.say)
    document = {"run": trainer.folder, "step": trainer.step, "last_epoch": progress.validated}
    output.result(document, f"run folder: {trainer.folder}")
