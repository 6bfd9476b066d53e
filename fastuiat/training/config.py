"""The settings of a training run: everything that moves a number, those of its method with it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fastuiat import methods
from fastuiat.config import (
    OptimizerConfig,
    UserError,
    positive,
    refuse_other_choices,
    refuse_other_types,
    refuse_seed,
)
from fastuiat.data import refuse_nameless, refuse_resolution

MOST_WORKERS = 1024
"""Threads, of which each that has no core to itself only slows the others down."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training run. Everything that moves a number is here and in the run's config.json.

    `TrainConfig()` is the run of `fastuiat train` without flags. `optimizer` and `settings` may be
    given as dicts of what differs from the defaults, nested settings as dicts in them:
    `settings={"lam": 3.0, "attack": {"steps": 5}}`. A dataclass's defaults know nothing of the data
    set or method beside them, as `fastuiat.recipes.config` does.
    """

    recipe: str | None = None
    """Named settings to begin from (`fastuiat recipes` lists them)."""
    dataset: str = "cifar10"
    """Data set to train on: a name, folder:PATH of a folder for each class, or npz:PATH."""
    data_dir: Path = Path("data")
    """Folder with the data sets' published files; downloads land there."""
    unchecked_data: bool = False
    """Use a data set's files also where they are not the published ones."""
    resolution: int | None = None
    """Pixels a side, a multiple of 8 from 16 to 224: images are resized to it; by default the data
    set's own, and 32 of folder:PATH."""
    augment: Literal["crop", "resized-crop", "none"] = "crop"
    """Crop out of a zero border of an eighth of the side, enlarge a random part, or neither."""
    flip: bool | None = None
    """--flip or --no-flip: mirror images by chance, anew each epoch; by default all but svhn and
    digits are."""
    arch: str = "resnet-18"
    """Network: resnet-18, prn-18, prn-18-v1 (the single-step methods'), wrn-D-W, the DeepMind
    line's dm-prn-18, dm-wrn-D-W, or timm:NAME, torchvision:NAME."""
    activation: Literal["relu", "silu"] = "relu"
    """Activation function of the network; those of timm and torchvision have their own."""
    method: str = "uiat"
    """Training method."""
    epochs: int = 100
    """Passes over the training set (with extra data: 50,000 images each)."""
    batch_size: int = 128
    """Images per step, over all devices."""
    accumulate: int = 1
    """Take each device's batch in so many parts, one after another, in that part of the memory.
    BatchNorm sees each part alone, as if each were on a device of its own."""
    batchnorm: Literal["local", "sync"] = "local"
    """Of several devices: each takes its own part's statistics, the running ones being their mean,
    or all take those of the whole batch."""
    seed: int = 0
    """Fixes weights, order, augmentation and noise."""
    out: Path | None = None
    """Run folder; by default runs/<recipe or data set-method-net>-s<seed>."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to run; auto takes CUDA where there is one."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic of the network; auto: bf16 where the device has it in hardware, else fp32."""
    compile: bool = True
    """Compile the hot regions with torch.compile."""
    loader: Literal["auto", "ffcv", "resident"] = "auto"
    """FFCV, or the whole set in the device's memory; auto takes FFCV where it is installed."""
    workers: int = 1
    """Loader threads."""
    extra_data: str | None = None
    """Generated images: ddpm1m, the path of an .npz with `image` and `label` or of the .npy of
    images beside that of labels, or several with commas between."""
    extra_share: float = 0.7
    """Share of generated images in each batch."""
    helper: Path | None = None
    """Run or checkpoint (its last) of the net that a method such as hat needs beside its own; by
    default one is trained first, with this run's settings, and kept in the run folder."""
    init: Path | None = None
    """Run, checkpoint or published file to take weights from in place of random ones: of a run its
    best, averaged where it averages. The head is new where the numbers of classes differ."""
    freeze_epochs: int = 0
    """Train the head alone in so many first epochs, and hold what --init gave below it."""
    weight_averaging: float = 0.0
    """Decay of the averaged weights; 0 keeps none."""
    val_size: int = 1024
    """Images split off the training set to choose the best checkpoint; 0 for none."""
    train_size: int | None = None
    """Train on so many images only, drawn from the others by the seed; by default on all."""
    test_every: int = 0
    """Also measure on the test set every so many epochs (never used to choose); 0 for never."""
    log_every: int = 50
    """Steps between two log lines."""
    max_steps: int | None = None
    """Stop after so many steps, the schedule unchanged."""
    checkpoint_minutes: float = 10.0
    """Minutes between checkpoints inside an epoch; each epoch's end has one anyway."""
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    """The optimiser's settings."""
    settings: Any = None
    """The settings of the method; by default its own."""

    def __post_init__(self) -> None:
        for name in ("data_dir", "out", "helper", "init"):
            if isinstance(path := getattr(self, name), str) and path:
                object.__setattr__(self, name, Path(path))
        refuse_other_types(type(self), vars(self))
        self._complete("optimizer", OptimizerConfig)
        self._complete("settings", methods.get(self.method).Config)
        refuse_other_choices(self)
        positive(
            epochs=self.epochs,
            batch_size=self.batch_size,
            accumulate=self.accumulate,
            log_every=self.log_every,
            workers=self.workers,
            checkpoint_minutes=self.checkpoint_minutes,
        )
        for name in ("max_steps", "train_size"):
            if (value := getattr(self, name)) is not None:
                positive(**{name: value})
        refuse_seed(self.seed)
        if self.resolution is not None:
            refuse_resolution(self.resolution)
        if self.workers > MOST_WORKERS:
            raise UserError(f"--workers must be at most {MOST_WORKERS}, got {self.workers}")
        for name in ("val_size", "test_every"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} must not be negative or infinite")
        if not 0 <= self.freeze_epochs <= self.epochs:
            raise UserError(
                f"--freeze-epochs must be from 0 to the run's {self.epochs} epochs, got "
                f"{self.freeze_epochs}"
            )
        if self.batch_size % self.accumulate:
            raise UserError(
                f"--batch-size {self.batch_size} does not divide into --accumulate "
                f"{self.accumulate} parts"
            )
        refuse_nameless(self.extra_data)
        if self.batchnorm == "sync" and self.accumulate > 1:
            raise UserError(
                "--batchnorm sync takes the statistics of a whole batch, and --accumulate cuts it "
                "in parts: leave one of them out"
            )
        if not 0 < self.extra_share <= 1:
            raise UserError(f"--extra-share must be in (0, 1], got {self.extra_share:g}")
        if not 0 <= self.weight_averaging < 1:
            raise UserError(f"--weight-averaging must be in [0, 1), got {self.weight_averaging:g}")

    def _complete(self, name: str, cls: type) -> None:
        """Make a nested setting of what differs in it; UserError on settings of another method."""
        value = getattr(self, name)
        if value is None or isinstance(value, dict):
            object.__setattr__(self, name, methods.configure(cls, value or {}))
        elif not isinstance(value, cls):
            raise UserError(
                f"{name} are {type(value).__qualname__}, --method {self.method} takes "
                f"{cls.__qualname__}: give settings=None with another method"
            )

    def to_json(self) -> dict[str, Any]:
        plain = dataclasses.asdict(self)
        return {k: str(v) if isinstance(v, Path) else v for k, v in plain.items()}


def plain(config: TrainConfig) -> dict[str, Any]:
    """The settings as config.json gives them back, without `out`: a run may be moved."""
    settings: dict[str, Any] = json.loads(json.dumps(config.to_json()))
    del settings["out"]
    return settings


def refuse_idle(config: TrainConfig, named: Collection[str]) -> None:
    """UserError on a setting among those that the user named which does nothing beside the rest."""
    settings, sgd = config.settings, config.optimizer
    without_gamma = getattr(settings, "gamma", None) == 0
    idle = {
        "activation": (":" in config.arch, f"with --arch {config.arch}, which has its own"),
        "extra_share": (config.extra_data is None, "without --extra-data"),
        "workers": (config.loader == "resident", "with --loader resident, which has no threads"),
        "test_every": (
            config.test_every > config.epochs,
            f"above the run's {config.epochs} epochs",
        ),
        "decay_batchnorm": (sgd.weight_decay == 0, "with --weight-decay 0"),
        "momentum_epoch": (without_gamma, "with --gamma 0, which mixes nothing"),
        "h": (without_gamma, "with --gamma 0, which leaves the helper examples out"),
    }
    for name in named:
        nothing, why = idle.get(name, (False, ""))
        if nothing:
            raise UserError(f"--{name.replace('_', '-')} does nothing {why}: leave it out")
