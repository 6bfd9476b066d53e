"""`fastuiat train`, and the settings that it parses."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastuiat.commands.launch import launch, processes_in
from fastuiat.commands.output import Output, OutputOptions, split_output
from fastuiat.commands.parsing import early, hyphenated, parse, refuse_second
from fastuiat.config import UserError, count_in

if TYPE_CHECKING:
    from fastuiat.training.config import TrainConfig


RANK_TIMEOUT = 30.0
"""Minutes; compiling a large net takes some, and not the same on every rank."""


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
    from fastuiat import recipes

    argv = flip_said(argv)
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
            "settings it has; `--resume-or-start` begins the run of --out or goes on with it. "
            "`--config FILE` takes settings from JSON or TOML, such as a run's config.json, and "
            "flags lie on top. "
            "`--processes N` trains on N processes of this machine, `--rank-timeout` being the "
            "minutes that they wait for one that hangs. `--quiet` prints the run folder alone, "
            "`--json` one JSON document on stdout.",
        )
    except UserError as error:
        unknown = re.match(r"Unrecognized options: (--[\w-]+)", str(error))
        if not unknown:
            raise
        names = recipes.places_of(begun.settings)
        known = ", ".join("--" + name.replace("_", "-") for name in names) or "none"
        raise UserError(
            f"no flag {unknown[1]} with --method {begun.method}, whose settings are: {known} "
            "(fastuiat train --help)"
        ) from None
    return type(begun)(**{name: getattr(parsed, name) for name in values})


def flip_said(argv: list[str]) -> list[str]:
    """--flip and --no-flip as words with a value: without either the data set decides."""
    values = {"--flip": "--flip=True", "--no-flip": "--flip=False"}
    following = [*argv, ""][1:]
    return [
        word if word == "--flip" and after in ("True", "False", "None") else values.get(word, word)
        for word, after in zip(argv, following, strict=True)
    ]


def named_in(argv: list[str]) -> list[str]:
    """The settings that flags name: `nesterov` of --no-nesterov."""
    words = [word[2:].split("=")[0] for word in argv if word.startswith("--")]
    return [word.removeprefix("no-").replace("-", "_") for word in words]


def settings_in(argv: list[str]) -> tuple[TrainConfig, dict[str, str]]:
    """The settings that the flags of `train` make, and where each comes from.

    Recipe, data set, method, extra data and length choose what the others are laid over; a file
    of settings lies between those and the flags.
    """
    from fastuiat import recipes
    from fastuiat.commands.settings_file import layer_of
    from fastuiat.training.config import refuse_idle

    for flag in ("--extra-data", "--config"):
        refuse_second(argv, flag)
    path, argv = taken_out(argv, "--config")
    recipe, file = early(argv, "--recipe"), None
    if path is not None:
        recipe, file = layer_of(Path(path), recipe, early(argv, "--method"))
    chosen: dict[str, Any] = {}
    for flag in ("dataset", "method", "extra_data"):
        if value := early(argv, "--" + flag.replace("_", "-")):
            chosen[flag] = None if value == "None" else value
    epochs = early(argv, "--epochs")
    if epochs and (count := count_in(epochs)) is not None:  # the parser refuses any other
        chosen["epochs"] = count
    begun, sources = recipes.resolve(recipe, chosen, file)
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


def taken_out(argv: list[str], flag: str) -> tuple[str | None, list[str]]:
    """(the value of a flag that is none of the settings, the other words)."""
    value = early(argv, flag)
    if value is None:
        return None, argv
    at = next(i for i, word in enumerate(argv) if word.split("=")[0] == flag)
    return value, argv[:at] + argv[at + (1 if "=" in argv[at] else 2) :]


def minutes_in(argv: list[str]) -> tuple[float, list[str]]:
    """(minutes of `--rank-timeout`, the other words)."""
    value, argv = taken_out(argv, "--rank-timeout")
    if value is None:
        return RANK_TIMEOUT, argv
    try:
        minutes = float(value)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise UserError(f"--rank-timeout needs minutes above 0, got '{value}'")
    return minutes, argv


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the words of `train` ask for: `run` to go on with, or None."""

    output: OutputOptions
    minutes: float
    run: Path | None
    begin_or_go_on: bool
    config: TrainConfig


def asked_in(argv: list[str]) -> Asked:
    """UserError on words that are none of `train` or do not go together."""
    output, argv = split_output(argv)
    minutes, argv = minutes_in(argv)
    begin_or_go_on = "--resume-or-start" in argv
    argv = [word for word in argv if word != "--resume-or-start"]
    run, argv = taken_out(argv, "--resume")
    if run is None:
        return Asked(output, minutes, None, begin_or_go_on, settings_in(argv)[0])
    if begin_or_go_on:
        raise UserError("--resume-or-start goes with --out, not with --resume")
    if early(argv, "--config") is not None:
        raise UserError("--resume keeps the run's settings: leave --config out")
    return Asked(output, minutes, Path(run), False, resumed_settings(Path(run), argv))


def train(argv: list[str]) -> None:
    processes, argv = processes_in(hyphenated(argv))
    asked = asked_in(argv)  # before any rank is started
    if processes:
        launch(processes, ["train", *argv])
        return
    from fastuiat.device import resolve_device
    from fastuiat.distributed import process_group
    from fastuiat.progress import show_training
    from fastuiat.training.run import resume, settle, train_or_resume
    from fastuiat.training.run import train as begin

    run, config, output = asked.run, asked.config, Output(asked.output)
    device = resolve_device(config.device)
    with (
        process_group(device, patience=60 * asked.minutes) as ranks,
        show_training(output.console) as progress,
    ):
        told: dict[str, Any] = {"progress": progress, "say": progress.say, "ranks": ranks}
        if run is not None:
            folder = resume(config, run, **told)
        elif asked.begin_or_go_on:
            folder = train_or_resume(settle(config)[0], **told)
        else:
            folder = begin(config, **told)
    document = {"run": folder, "step": progress.done, "last_epoch": progress.validated}
    output.result(document, f"run folder: {folder}")
