"""The command line: parse, call, exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import os
import re
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import tyro

from fastuiat.config import Radius, TrainConfig, UserError, parse_radius

USAGE = """usage: fastuiat COMMAND [--help]

  train          train a robust classifier; --resume RUN goes on with one
  eval           measure clean, PGD, CW and AutoAttack accuracy of a run or checkpoint
  bench SUITE    measure a training step, the kernels, or the loaders on this machine
  data prepare   write and check the .beton file that FFCV reads
  recipes        list the paper's settings by name, or print one
  reproduce      run a table of the paper and set it beside the paper's values
  doctor         what this machine can do
"""


def parse(
    cls: Any, argv: list[str], *, prog: str, default: Any = None, description: str | None = None
) -> Any:
    """tyro's parse, its complaint folded into one line."""
    complaint = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                cls,
                args=argv,
                prog=prog,
                description=description,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands),
                **options,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(first_complaint(complaint.getvalue()) + f" ({prog} --help)") from None


def first_complaint(box: str) -> str:
    """What is wrong, out of tyro's framed report, without the help that it repeats."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    # A title, then parts between rules; the frame is left out where the stream is plain.
    _title, *rows = [row for line in plain.splitlines() if (row := line.strip("│| "))] or [""]
    parts = [list(g) for ruled, g in groupby(rows, lambda r: not r.strip("─-╰╯+")) if not ruled]
    words = " ".join(" ".join(parts[0]).split()) if parts else ""
    # "Error parsing --eps: …" names the flag; "Error parsing TrainConfig: …" names nothing.
    words = re.sub(r"^Error parsing (?:(--[\w-]+: )|[\w.]+: )", r"\1", words)
    return words.rstrip(".") or "the command could not be parsed"


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
    try:
        return parse(
            type(default),
            argv,
            prog="fastuiat train",
            default=default,
            description="Train a robust classifier. `--resume RUN` goes on with a run, with the "
            "settings it has.",
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


def early(argv: list[str], flag: str) -> str | None:
    """The value of a flag that must be known before the rest can be parsed; the last one wins."""
    found = None
    for i, word in enumerate(argv):
        if word == flag:
            if i + 1 == len(argv) or argv[i + 1].startswith("--"):
                raise UserError(f"{flag} needs a value")
            found = argv[i + 1]
        elif word.startswith(flag + "="):
            found = word.split("=", 1)[1]
    return found


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
        return train_class(stored["method"])(**stored, settings=settings)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder / 'config.json'} is not of this version: {error}") from error


def train(argv: list[str]) -> None:
    from fastuiat.progress import show_training

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
        with show_training() as progress:
            trainer = resume(config, Path(resumed), progress, say=progress.say)
    else:
        from fastuiat.training.run import train as start

        default = default_config(argv)
        config = parse_training(default, argv)
        with show_training() as progress:
            trainer = start(config, progress, say=progress.say)
    print(f"run folder: {trainer.folder}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalOptions:
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
    arch: str | None = None
    """Net of a bare state dict."""
    which: Literal["best", "last"] = "best"
    """Which checkpoint of a run."""
    weights: Literal["averaged", "raw"] = "averaged"
    """The averaged net where there is one, or the live one."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    out: Path | None = None
    """Where eval/*.json goes; by default the run folder."""


def evaluate(argv: list[str]) -> None:
    options = parse(EvalOptions, argv, prog="fastuiat eval")
    from rich.console import Console

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
        options.path, options.arch, which=options.which, weights=options.weights
    )
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
    with show_evaluation() as progress:
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
    Console().print(table(records))
    print(f"seed {options.seed}; records: {folder / 'eval'}")


def is_run(path: Path) -> bool:
    """Whether this is a run folder: a checkpoint inside one is evaluated there."""
    return (path / "config.json").is_file() and (path / "checkpoints").is_dir()


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Write the .beton file of a data set and check it."""

    dataset: tyro.conf.Positional[str]
    """Data set."""
    data_dir: Path = Path("data")
    """Folder with its published files."""
    extra_data: str | None = None
    """Generated images to append: ddpm1m or an .npz."""


def prepare(argv: list[str]) -> None:
    if argv[:1] != ["prepare"]:
        raise UserError("usage: fastuiat data prepare NAME [--data-dir DIR] [--extra-data FILE]")
    options = parse(PrepareOptions, argv[1:], prog="fastuiat data prepare")
    from fastuiat import data

    path = data.prepare(options.dataset, options.data_dir, options.extra_data)
    print(f"{path}: {path.stat().st_size:,} bytes, checked")


def recipes(argv: list[str]) -> None:
    from fastuiat.recipes import RECIPES, described

    if not argv:
        print("\n".join(RECIPES))
        return
    config, sources = resolved_config(["--recipe", argv[0], *argv[1:]])
    for name, value, source in described(config, sources):
        print(f"{name:20} {value:14} {source}")


def reproduce(argv: list[str]) -> None:
    from fastuiat.reproduce import Options, reproduce

    def configure(flags: list[str]) -> Any:
        default = default_config(flags)
        return parse(type(default), flags, prog="fastuiat train", default=default)

    reproduce(parse(Options, argv, prog="fastuiat reproduce"), configure)


def bench(argv: list[str]) -> None:
    from fastuiat.bench.cli import main

    main(argv, parse)


def doctor(argv: list[str]) -> None:
    import torch

    from fastuiat import __version__, data
    from fastuiat.training.compile import missing_for_compilation
    from fastuiat.training.precision import resolve_device, resolve_precision

    device = resolve_device("auto")
    rows = {
        "fastuiat": __version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "cpu": f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
        "precision": resolve_precision("auto", device),
        "compile": missing_for_compilation(device) or "yes",
        "ffcv": "yes" if data.ffcv_available() else "not installed",
        "autoattack": autoattack_package(),
    }
    for name, value in rows.items():
        print(f"{name:12} {value}")


def autoattack_package() -> str:
    from importlib.util import find_spec

    found = [name for name in ("pyautoattack", "autoattack") if find_spec(name)]
    return ", ".join(found) or "not installed (pip install pyautoattack)"


DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM}
"""A full or unwritable disk: the user's to mend, wherever it shows."""

COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "eval": evaluate,
    "bench": bench,
    "data": prepare,
    "recipes": recipes,
    "reproduce": reproduce,
    "doctor": doctor,
}


def main(argv: list[str] | None = None) -> None:
    """Run one command; a user's error is one line on stderr and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    try:
        if argv[0] not in COMMANDS:
            raise UserError(f"unknown command '{argv[0]}': choose from {', '.join(COMMANDS)}")
        COMMANDS[argv[0]](argv[1:])
    except UserError as error:
        print(f"fastuiat: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os._exit(1)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        place = f"{error.filename}: " if error.filename else ""
        print(f"fastuiat: {place}{error.strerror}; nothing written before is lost", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        from fastuiat.training.trainer import Interrupted

        if not isinstance(error, Interrupted):
            raise
        print(f"fastuiat: stopped by {error}, checkpoint saved", file=sys.stderr)
        sys.exit(128 + error.signum)
