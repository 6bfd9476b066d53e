"""From settings to a finished run folder: assemble, start or resume, train."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import torch

from fastuiat import data, machine, methods
from fastuiat.config import TrainConfig, UserError, changed_since, of_this_version
from fastuiat.data import ImageSet
from fastuiat.device import missing_for_compilation, resolve_device, resolve_precision
from fastuiat.evaluation.attacks import correct_under
from fastuiat.fast.view import TrainingView
from fastuiat.files import write_json
from fastuiat.models import build_model
from fastuiat.training import required
from fastuiat.training.checkpoint import FORMAT, net_of, read
from fastuiat.training.trainer import Evaluate, Progress, Trainer

FREE_ON_RESUME = {"workers", "loader", "log_every", "checkpoint_minutes", "out", "data_dir"}
"""Settings that move no number; all others stay as the run began."""
VALIDATION_STEPS = 10
EVALUATION_BATCH = 256


def default_folder(config: TrainConfig) -> Path:
    if config.recipe:
        return Path("runs") / f"{config.recipe.replace('/', '-')}-s{config.seed}"
    return Path("runs") / f"{config.dataset}-{config.method}-{config.arch}-s{config.seed}"


def environment(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on beside the settings."""
    versions = {name: machine.versions()[name] for name in ("fastuiat", "platform")}
    return {**versions, **machine.summary(device), "command": sys.argv}


def settle(config: TrainConfig) -> tuple[TrainConfig, torch.device, str, list[str]]:
    """Resolve `auto` by what this machine has; notes say what was decided and why."""
    notes = []
    device = resolve_device(config.device)
    precision = resolve_precision(config.precision, device)
    compiled = config.compile
    if compiled and (missing := missing_for_compilation(device)):
        compiled = False
        notes.append(f"not compiling: {missing}")
    settled = dataclasses.replace(
        config,
        device=cast(Any, device.type),
        precision=cast(Any, precision),
        compile=compiled,
        out=config.out or default_folder(config),
    )
    return settled, device, precision, notes


def evaluation_on(images: Any, config: TrainConfig, device: torch.device) -> Evaluate:
    """Natural and PGD accuracy of a net on a part that does not train it, in fp32."""
    attack = getattr(config.settings, "attack", None)
    eps, alpha = (attack.eps, attack.validation_alpha) if attack else (8 / 255, 2 / 255)

    def evaluate(net: torch.nn.Module) -> dict[str, float]:
        shares = {}
        for name, kind in (("natural", "clean"), ("robust", "pgd")):
            correct = correct_under(
                net,
                images,
                kind,
                eps=eps,
                alpha=alpha,
                steps=VALIDATION_STEPS,
                seed=config.seed,
                batch_size=min(EVALUATION_BATCH, len(images.labels)),
                device=device,
            )
            shares[name] = correct.float().mean().item()
        return shares

    return evaluate


def part(images: ImageSet, rows: Any) -> ImageSet:
    return dataclasses.replace(images, images=images.images[rows], labels=images.labels[rows])


def training_data(config: TrainConfig) -> tuple[Any, Any, data.Order, ImageSet]:
    """(images, labels, their order, validation part); images are not joined into one array."""
    train_set = data.load(config.dataset, config.data_dir, "train")
    train_index, val_index = data.validation_split(
        len(train_set.labels), config.val_size, config.seed, config.train_size
    )
    images: Any = train_set.images
    labels, num_extra = train_set.labels, 0
    if config.extra_data:
        extra = data.load_extra(config.extra_data, config.dataset, config.data_dir)
        images, labels, num_extra = data.joined(train_set, extra)
    order = data.Order(
        seed=config.seed,
        train_index=train_index,
        batch_size=config.batch_size,
        num_extra=num_extra,
        first_extra=len(train_set.labels),
        extra_share=config.extra_share if num_extra else 0.0,
    )
    return images, labels, order, part(train_set, val_index)


def assemble(
    config: TrainConfig, device: torch.device, precision: str, progress: Progress
) -> Trainer:
    """Build everything a run needs. Nothing is written but a data set's prepared file."""
    info = data.dataset_info(config.dataset)
    torch.manual_seed(config.seed)
    net = build_model(config.arch, info.num_classes, config.activation)
    make_method = functools.partial(
        methods.get(config.method),
        config.settings,
        num_classes=info.num_classes,
        image_shape=(3, 32, 32),
        epochs=config.epochs,
        seed=config.seed,
    )
    make_method(num_samples=1)  # refuses its settings before any data is read or fetched
    images, labels, order, validation = training_data(config)
    method = make_method(num_samples=len(labels))
    loader = data.make_loader(
        config.loader,
        images,
        labels,
        order,
        device=device,
        flip=info.flip,
        workers=config.workers,
        cache_dir=config.data_dir,
        name=config.dataset,
    )
    test = None
    if config.test_every:
        test_set = data.load(config.dataset, config.data_dir, "test")
        test = evaluation_on(test_set, config, device)
    return Trainer(
        config,
        net=net.to(device),
        net_info={
            "arch": config.arch,
            "activation": config.activation,
            "num_classes": info.num_classes,
            "dataset": config.dataset,
        },
        method=method.to(device),
        loader=loader,
        device=device,
        precision=precision,
        validate=evaluation_on(validation, config, device) if config.val_size else None,
        test=test,
        folder=Path(config.out or default_folder(config)),
        progress=progress,
    )


def refuse_folder(folder: Path) -> None:
    """UserError where a new run cannot go, before anything else is done; leaves no trace."""
    if (folder / "config.json").exists():
        raise UserError(f"{folder} already holds a run: --resume {folder}, or choose another --out")
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}): choose --out") from error
    finally:
        for parent in made:
            with contextlib.suppress(OSError):
                parent.rmdir()


def open_folder(folder: Path, config: TrainConfig, device: torch.device) -> None:
    """Make the run folder with its settings; UserError where there is no room."""
    try:
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        write_json(folder / "environment.json", environment(device))
        write_json(folder / "config.json", config.to_json())
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error}") from error


def stored_json(folder: Path) -> dict[str, Any]:
    """config.json as it was written; UserError where there is none."""
    path = folder / "config.json"
    try:
        stored = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{folder} is no run folder: it has no config.json") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(stored, dict):
        raise UserError(f"{path} holds no settings")
    return stored


def stored_config(folder: Path) -> dict[str, Any]:
    """The settings that a run began with, as they are called now; UserError where there is none."""
    stored = stored_json(folder)
    try:
        return of_this_version(stored)
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} is not of this version: {error}") from error


def refuse_other_mathematics(folder: Path) -> None:
    """UserError on a run whose rest would be trained by another loss than it began with."""
    if change := changed_since(stored_json(folder)):
        raise UserError(f"{folder} cannot go on: {change}; train it anew")


def refuse_changes(stored: dict[str, Any], config: TrainConfig) -> None:
    """UserError that names the first setting which differs from the run's own."""
    wanted = config.to_json()
    for name, value in stored.items():
        if name not in FREE_ON_RESUME and wanted.get(name) != value:
            new = wanted.get(name)
            while isinstance(value, dict) and isinstance(new, dict):
                name = next(k for k in value | new if value.get(k) != new.get(k))
                value, new = value.get(name), new.get(name)
            flag = name.replace("_", "-")
            raise UserError(
                f"--resume keeps the run's settings, but --{flag} is {value}, not {new}"
            )


def run_state(path: Path, trainer: Trainer) -> dict[str, Any]:
    """The trainer's own checkpoint; UserError on a damaged or foreign one."""
    state = read(path)
    if state.get("format") != FORMAT or net_of(state) != trainer.net_info:
        raise UserError(f"{path} is not of this run: it cannot be resumed from")
    return state


def provide_required(trainer: Trainer, config: TrainConfig, progress: Progress, say: Any) -> None:
    """Give the method the nets it requires, training them in folders of their own first."""

    def view(net: torch.nn.Module) -> TrainingView:
        return TrainingView(
            net.to(trainer.device),
            device=trainer.device,
            precision=config.precision,
            compiled=config.compile,
        )

    required.provide(
        trainer.method,
        config,
        trainer.net_info["num_classes"],
        train=lambda own: train_or_resume(own, progress, say=say),
        view=view,
        say=say,
    )


def train_or_resume(config: TrainConfig, progress: Progress, *, say: Any = print) -> Trainer:
    """Bring the run in `config.out` to its end, whether it has begun or not."""
    assert config.out is not None
    if (config.out / "config.json").exists():
        return resume(config, config.out, progress, say=say)
    return train(config, progress, say=say)


def train(config: TrainConfig, progress: Progress, *, say: Any = print) -> Trainer:
    """Start a new run and finish it."""
    config, device, precision, notes = settle(config)
    for note in notes:
        say(note)
    folder = Path(config.out or default_folder(config))
    refuse_folder(folder)
    trainer = assemble(config, device, precision, progress)
    required.check(config, trainer.net_info["num_classes"])
    open_folder(folder, config, device)
    provide_required(trainer, config, progress, say)
    trainer.train()
    return trainer


def resume(config: TrainConfig, folder: Path, progress: Progress, *, say: Any = print) -> Trainer:
    """Continue the run in `folder` to the same end that it would have reached."""
    refuse_changes(stored_config(folder), config)
    config = dataclasses.replace(config, out=folder)
    settled, device, precision, _ = settle(config)
    if settled.compile != config.compile:
        raise UserError("the run was compiled, and this machine cannot: install g++ and headers")
    threads = json.loads((folder / "environment.json").read_text())["threads"]
    if threads != torch.get_num_threads():
        # Another thread count sums in another order.
        torch.set_num_threads(threads)
        say(f"using {threads} threads, as the run did")
    trainer = assemble(settled, device, precision, progress)
    last = folder / "checkpoints" / "last.pt"
    offset = trainer.restore(run_state(last, trainer)) if last.exists() else 0
    if trainer.is_finished:
        say(f"{folder} is finished: step {trainer.step}")
        trainer.loader.close()
        return trainer
    refuse_other_mathematics(folder)
    provide_required(trainer, settled, progress, say)
    say(f"resuming {folder} at step {trainer.step} of {trainer.last_step}")
    os.makedirs(folder / "checkpoints", exist_ok=True)
    trainer.train(offset)
    return trainer
