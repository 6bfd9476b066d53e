"""The command line: parse, call, exit code."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Callable
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
  doctor         what this machine can do
"""


def parse(cls: Any, argv: list[str], *, prog: str, default: Any = None) -> Any:
    """tyro's parse, its complaint folded into one line."""
    complaint = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                cls,
                args=argv,
                prog=prog,
                config=(tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands),
                **options,
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        text = re.sub(r"\x1b\[[0-9;]*m|[─│╭╮╰╯]", " ", complaint.getvalue())
        words = " ".join(text.split()).replace("Parsing error ", "")
        raise UserError(words or "the command could not be parsed") from None


def early(argv: list[str], flag: str) -> str | None:
    """The value of a flag that has to be known before the rest can be parsed."""
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(flag + "="):
            return word.split("=", 1)[1]
    return None


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


def fitting(cls: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The values that a settings class has a field for: data-set defaults suit many methods."""
    names = {f.name for f in dataclasses.fields(cls)}
    return {k: v for k, v in values.items() if k in names}


def default_config(argv: list[str]) -> Any:
    """The settings before flags: recipe, then data set and extra data, then the rest."""
    from fastuiat import methods, recipes

    base = dict(recipes.DEFAULTS)
    if name := early(argv, "--recipe"):
        if name not in recipes.RECIPES:
            known = ", ".join(recipes.RECIPES)
            raise UserError(f"unknown recipe '{name}': choose from {known}")
        base |= {"recipe": name, **recipes.RECIPES[name]}
    for flag in ("dataset", "method", "extra_data"):
        if value := early(argv, "--" + flag.replace("_", "-")):
            base[flag] = value
    if base.get("extra_data") == "None":
        base["extra_data"] = None
    run, settings = recipes.recipe_settings(base["dataset"], base.get("extra_data"))
    epochs = early(argv, "--epochs")
    if epochs is not None and epochs != str(run.get("epochs")):
        # T and T' of the recipe belong to its own length.
        settings = {k: v for k, v in settings.items() if not k.endswith("_epoch")}
    cls = train_class(base["method"])
    config = methods.get(base["method"]).Config
    return cls(**base | run, settings=methods.configure(config, fitting(config, settings)))


def stored_default(folder: Path) -> Any:
    """The settings of a run as a parsed config, for --resume."""
    from fastuiat import methods
    from fastuiat.training.run import stored_config

    stored = stored_config(folder)
    try:
        config = methods.get(stored["method"]).Config
        settings = methods.configure(config, stored.pop("settings"))
        for name in ("data_dir", "out"):
            stored[name] = Path(stored[name])
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
        config = parse(type(default), rest, prog="fastuiat train", default=default)
        with show_training() as progress:
            trainer = resume(config, Path(resumed), progress, say=progress.say)
    else:
        from fastuiat.training.run import train as start

        default = default_config(argv)
        config = parse(type(default), argv, prog="fastuiat train", default=default)
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
    folder = options.out or (options.path if options.path.is_dir() else options.path.parent)
    data_dir = options.data_dir
    if data_dir is None and options.path.is_dir() and (options.path / "config.json").exists():
        data_dir = Path(stored_config(options.path)["data_dir"])
    images = data.load(name, data_dir or Path("data"), "test")
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
    from fastuiat.recipes import RECIPES

    if not argv:
        print("\n".join(RECIPES))
        return
    config = default_config(["--recipe", argv[0]])
    for name, value in config.to_json().items():
        print(f"{name.replace('_', '-'):20} {value}")


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


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "eval": evaluate,
    "bench": bench,
    "data": prepare,
    "recipes": recipes,
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
    except Exception as error:
        from fastuiat.training.trainer import Interrupted

        if not isinstance(error, Interrupted):
            raise
        print(f"fastuiat: stopped by {error}, checkpoint saved", file=sys.stderr)
        sys.exit(128 + error.signum)
