"""From settings to a finished run folder: assemble, start or resume, train.

`train` is the library's entry.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from torch import nn

from fastuiat import data, methods
from fastuiat.config import UserError
from fastuiat.device import missing_for_compilation, resolve_device, resolve_precision
from fastuiat.distributed import ALONE, Ranks
from fastuiat.evaluation import attacks
from fastuiat.memory import sizes_in_words
from fastuiat.models import build_model
from fastuiat.progress import show_training
from fastuiat.training import required, starting
from fastuiat.training.agreement import (
    refuse_uneven,
    refuse_unlike_data,
    refuse_unlike_ranks,
    refuse_unseen,
)
from fastuiat.training.checkpoint import FORMAT, net_of, read
from fastuiat.training.config import TrainConfig, plain
from fastuiat.training.folder import (
    config_of,
    default_folder,
    holds_run,
    last_checkpoint,
    match_checkpoint,
    open_folder,
    other_ranks,
    refuse_changes,
    refuse_folder,
    refuse_other_mathematics,
    remove_empty,
    threads_in,
)
from fastuiat.training.metrics import cut_back, cut_off
from fastuiat.training.run_data import (
    load_part,
    loader_of,
    refuse_other_data,
    say_what_is_unchecked,
    training_data,
)
from fastuiat.training.step import TrainingStep
from fastuiat.training.trainer import Evaluate, Progress, Trainer
from fastuiat.writer import only_writer

Say = Callable[[str], None]
"""Who hears a line of notes."""
VALIDATION_STEPS = 10
EVALUATION_BATCH = 256


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


def evaluation_on(
    images: Any, config: TrainConfig, device: torch.device, ranks: Ranks = ALONE
) -> Evaluate:
    """Natural and PGD accuracy of a net on a part that does not train it, in fp32.

    Several ranks share it out: all of them are to ask at the same step.
    """
    trained = getattr(config.settings, "attack", None)
    eps, alpha = (trained.eps, trained.validation_alpha) if trained else (8 / 255, 2 / 255)
    clean = attacks.create("clean")
    pgd = attacks.create("pgd", alpha=alpha, steps=VALIDATION_STEPS)

    def evaluate(net: torch.nn.Module) -> dict[str, float]:
        shares = {}
        for name, attack in (("natural", clean), ("robust", pgd)):
            correct = attack.correct(
                net,
                images,
                eps=eps,
                seed=config.seed,
                batch_size=min(EVALUATION_BATCH, len(images.labels)),
                device=device,
                ranks=ranks,
            )
            shares[name] = correct.float().mean().item()
        return shares

    return evaluate


def first_net(
    config: TrainConfig, net_info: dict[str, Any], state: dict[str, Any] | None, ranks: Ranks
) -> tuple[nn.Module, starting.Start | None]:
    """With the weights of --init or the seed's, and what is said of them."""
    torch.manual_seed(config.seed)
    net = build_model(net_info["arch"], net_info["num_classes"], net_info["activation"])
    with ranks.agreed():
        return starting.begun(config.init, net, net_info, state)


def assemble(
    config: TrainConfig,
    device: torch.device,
    precision: str,
    progress: Progress,
    ranks: Ranks = ALONE,
    say: Say | None = None,
    state: dict[str, Any] | None = None,
) -> Trainer:
    """Build everything a run needs. Nothing is written but a data set's prepared file.

    Rank 0 fetches and prepares; the others find what it made. `state` is the checkpoint that the
    run goes on from, which is not loaded here; without one its weights are those of --init.
    """
    refuse_uneven(config, ranks)
    starting.refuse_settings(config)
    info = data.dataset_info(config.dataset)
    resolution = data.resolution_of(info, config.resolution)
    net_info = starting.net_info_of(config, info, (3, resolution, resolution))
    net, start = first_net(config, net_info, state, ranks)
    make_method = functools.partial(
        methods.get(config.method),
        config.settings,
        num_classes=info.num_classes,
        image_shape=(3, resolution, resolution),
        epochs=config.epochs,
        seed=config.seed,
    )
    make_method(num_samples=1)  # refuses its settings before any data is read or fetched
    own = ranks.after_first(lambda: training_data(config, ranks, say))
    method = make_method(num_samples=len(own.labels))
    loader = ranks.after_first(lambda: loader_of(own, config, device))
    validate = evaluation_on(own.validation, config, device, ranks) if config.val_size else None
    test = None
    if config.test_every:
        test_set = ranks.after_first(lambda: load_part(config, "test", say))
        test = evaluation_on(test_set, config, device, ranks)
    step = TrainingStep(
        net.to(device),
        method,
        total_steps=config.epochs * own.order.steps_per_epoch,
        optimizer=config.optimizer,
        weight_averaging=config.weight_averaging,
        precision=precision,
        compile=config.compile,
        accumulate=config.accumulate,
        ranks=ranks,
        batchnorm=config.batchnorm,
    )
    return Trainer(
        config,
        step=step,
        net_info=net_info,
        data=own.known_by,
        loader=loader,
        validate=validate,
        test=test,
        folder=Path(config.out or default_folder(config)),
        progress=progress,
        ranks=ranks,
        start=start,
        head_first=starting.head_first(config.freeze_epochs, net, net_info),
    )


def say_of_the_run(trainer: Trainer, say: Say) -> None:
    """What it is good to know before the first step."""
    say_what_is_unchecked(trainer.data, say)
    for line in sizes_in_words(trainer.method):
        say(line)


def refuse_foreign(state: dict[str, Any], path: Path, trainer: Trainer) -> None:
    """UserError on a checkpoint of another run."""
    known = trainer.net_info
    if state.get("format") != FORMAT or known | net_of(state) != known:
        raise UserError(f"{path} is not of this run: it cannot be resumed from")


def provide_required(trainer: Trainer, config: TrainConfig, progress: Progress, say: Say) -> None:
    """Give the method the nets it requires, training them in folders of their own first."""
    required.provide(
        trainer.method,
        config,
        trainer.net_info["num_classes"],
        train=lambda own: train_or_resume(own, progress=progress, say=say, ranks=trainer.ranks),
        say=say,
        ranks=trainer.ranks,
    )


@contextlib.contextmanager
def shown(progress: Progress | None, say: Say | None) -> Iterator[tuple[Progress, Say]]:
    """Whom a run speaks to: those given, else the standard output."""
    if progress is not None:
        yield progress, say or print
        return
    with show_training(Console()) as display:
        yield display, say or display.say


def own_generator(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The caller's random numbers go on after the run as if it had not been."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


@contextlib.contextmanager
def threads_of(folder: Path, say: Say) -> Iterator[None]:
    """As many threads as the run in the folder began with: another count sums in another order."""
    before = torch.get_num_threads()
    threads = threads_in(folder)
    if threads == before:
        yield
        return
    say(f"using {threads} threads, as the run did")
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def train(
    config: TrainConfig,
    *,
    progress: Progress | None = None,
    say: Say | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Train by these settings, from the beginning to the end; returns the run folder.

    It is `config.out`, or runs/<recipe or data set-method-net>-s<seed>, and holds config.json,
    metrics.jsonl and checkpoints/{last,best}.pt, which `fastuiat.load_checkpoint` reads and
    `fastuiat train --resume` goes on with. Progress is shown on the standard output unless
    `progress` takes it; notes go to `say`. Of several `ranks`, which all call this, the first one
    writes the folder.

    UserError on settings that cannot be, before anything is written: also where the folder holds a
    run. In the main thread Ctrl-C and SIGTERM end the run by `Interrupted`, after a checkpoint.

    >>> import fastuiat
    >>> config = fastuiat.TrainConfig(
    ...     dataset="digits", arch="wrn-10-1", epochs=1, val_size=64, compile=False, out="run",
    ...     settings={"attack": {"steps": 1}},
    ... )
    >>> folder = fastuiat.train(config)  # doctest: +ELLIPSIS
    z: 10 × 3 × 32 × 32 in float32, 0.1 MB
    P: 1,438 × 10 in float32, 0.1 MB
    epoch   1 ... validation: robust ...
    >>> net, info = fastuiat.load_checkpoint(folder)
    >>> info["dataset"], info["epoch"]
    ('digits', 1)
    """
    config, device, precision, notes = settle(config)
    folder = Path(config.out or default_folder(config))
    refuse_unlike_ranks(config, ranks)
    with ranks.agreed():
        if ranks.is_first:
            refuse_folder(folder)
    with own_generator(device), shown(progress, say) as (progress, say), ExitStack() as stack:
        for note in notes:
            say(note)
        trainer = assemble(config, device, precision, progress, ranks, say)
        refuse_unlike_data(trainer.data, ranks)
        say_of_the_run(trainer, say)
        with ranks.agreed():
            required.check(config, trainer.net_info["num_classes"])
            if ranks.is_first:
                elsewhere = "choose another --out"
                if not folder.exists():
                    stack.callback(remove_empty, folder)  # a refusal leaves no trace
                stack.enter_context(only_writer(folder, advice=elsewhere, say=say))
                if (folder / "eval").is_dir():  # somebody may be evaluating into it
                    stack.enter_context(only_writer(folder / "eval", advice=elsewhere, say=say))
        refuse_unseen(folder, ranks)
        with ranks.agreed():
            if ranks.is_first:
                open_folder(folder, config, device, ranks.world, trainer.start)
        trainer.keep_start(say)
        provide_required(trainer, config, progress, say)
        trainer.train()
    return trainer.folder


def resume(
    config: TrainConfig,
    folder: Path,
    *,
    progress: Progress | None = None,
    say: Say | None = None,
    ranks: Ranks = ALONE,
) -> Path:
    """Continue the run in `folder` to the same end that it would have reached; returns it.

    `config` is `config_of(folder)`, changed in nothing but what FREE_ON_RESUME names.
    """
    refuse_unlike_ranks(config, ranks)
    with ranks.agreed():
        refuse_changes(plain(config_of(folder)), config)
    config = dataclasses.replace(config, out=folder)
    settled, device, precision, _ = settle(config)
    if settled.compile != config.compile:
        raise UserError("the run was compiled, and this machine cannot: install g++ and headers")
    busy = "wait until it ends, or end it, before you resume"
    with (
        own_generator(device),
        shown(progress, say) as (progress, say),
        ExitStack() as stack,
    ):
        last = last_checkpoint(folder)
        with ranks.agreed():
            if ranks.is_first:
                stack.enter_context(only_writer(folder, advice=busy, say=say))
            stack.enter_context(threads_of(folder, say))
            state = read(last) if last.exists() else None
            match_checkpoint(folder, state, say)
        refuse_unseen(folder, ranks)
        if change := other_ranks(folder, ranks.world, config):
            say(change)
        trainer = assemble(settled, device, precision, progress, ranks, say, state)
        refuse_unlike_data(trainer.data, ranks)
        say_of_the_run(trainer, say)
        if state is not None:
            refuse_foreign(state, last, trainer)
            refuse_other_data(folder, state, trainer.data, say)
            trainer.restore(state)
        if trainer.is_finished:
            offset = log_until(folder, state, say, ranks)
            if ranks.is_first:
                cut_off(folder, offset)
            say(f"{folder} is finished: step {trainer.step}")
            progress.begin(trainer.step, trainer.last_step)
            trainer.loader.close()
            return folder
        refuse_other_mathematics(folder)
        provide_required(trainer, settled, progress, say)
        say(f"resuming {folder} at step {trainer.step} of {trainer.last_step}")
        offset = log_until(folder, state, say, ranks)
        trainer.keep_start(say)
        trainer.train(offset)
    return folder


def log_until(folder: Path, state: dict[str, Any] | None, say: Say, ranks: Ranks) -> int:
    """Bytes of the log up to the checkpoint, behind which rank 0 has cut it."""
    offset = 0
    with ranks.agreed():
        if ranks.is_first:
            os.makedirs(folder / "checkpoints", exist_ok=True)
            offset, note = cut_back(folder, state) if state else (0, None)
            if note:
                say(note)
    return offset


def train_or_resume(
    config: TrainConfig, *, progress: Progress, say: Say, ranks: Ranks = ALONE
) -> Path:
    """Bring the run in `config.out` to its end, whether it has begun or not."""
    folder = config.out
    assert folder is not None
    if ranks.from_first(lambda: holds_run(folder)):
        return resume(config, folder, progress=progress, say=say, ranks=ranks)
    return train(config, progress=progress, say=say, ranks=ranks)
