"""What a run trains on, and whether it is what the run began with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastuiat import data
from fastuiat.config import UserError
from fastuiat.data import ImageSet
from fastuiat.distributed import ALONE, Ranks
from fastuiat.progress import in_lines
from fastuiat.training.config import TrainConfig

Say = Callable[[str], None]


def part(images: ImageSet, rows: Any) -> ImageSet:
    return dataclasses.replace(images, images=images.images[rows], labels=images.labels[rows])


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """What a run trains on, and what chooses its best net."""

    images: Any
    """In one array, or in two parts that are not joined."""
    labels: Any
    order: data.Order
    validation: ImageSet
    source: str
    """A sum over images and labels."""
    known_by: dict[str, Any]
    """The fingerprints that a checkpoint keeps."""


def load_part(config: TrainConfig, split: str, say: Say | None = None) -> ImageSet:
    """The `train` or `test` part of the run's data set; `say` hears how its preparation goes."""
    how = data.Preparation(
        resolution=config.resolution,
        seed=config.seed,
        progress=in_lines(say) if say else None,
        say=say,
    )
    return data.load(
        config.dataset, config.data_dir, split, unchecked=config.unchecked_data, how=how
    )


def training_data(
    config: TrainConfig, ranks: Ranks = ALONE, say: Say | None = None
) -> TrainingData:
    train_set = load_part(config, "train", say)
    train_index, val_index = data.validation_split(
        len(train_set.labels), config.val_size, config.seed, config.train_size
    )
    extra = None
    if config.extra_data is not None:
        extra = data.load_extra(
            config.extra_data, config.dataset, config.data_dir, config.resolution
        )
    images, labels, source = data.joined(train_set, extra)
    num_extra = 0 if extra is None else len(extra.labels)
    order = data.Order(
        seed=config.seed,
        train_index=train_index,
        batch_size=config.batch_size,
        num_extra=num_extra,
        first_extra=len(train_set.labels),
        extra_share=config.extra_share if num_extra else 0.0,
        rank=ranks.rank,
        world=ranks.world,
    )
    known_by = {
        "train": data.json_of(train_set),
        "extra": None if extra is None else data.json_of(extra),
        "split": data.split_json(train_index, val_index),
    }
    return TrainingData(images, labels, order, part(train_set, val_index), source, known_by)


def say_what_is_unchecked(known_by: dict[str, Any], say: Say) -> None:
    train = known_by["train"]
    if train["checked"] == "unchecked":
        say(f"the files of {train['name']} are not the published ones: used as they are")


def refuse_other_data(
    folder: Path, state: dict[str, Any], known_by: dict[str, Any], say: Say
) -> None:
    """UserError that says what a run would go on with otherwise than its checkpoint has it."""
    if "data" not in state:
        say("the checkpoint has no fingerprint of its data: whether they are the same is not known")
        return
    try:
        change = data.training_difference(state["data"], known_by)
    except (ValueError, AttributeError) as error:
        raise UserError(f"the last checkpoint of {folder} is damaged: {error}") from error
    if change:
        raise UserError(
            f"{folder} cannot go on with other data: what is another now is {change}; put back "
            "what it began with, or train anew"
        )


def is_mirrored(config: TrainConfig) -> bool:
    """Whether training images are, as the settings or else the data set have it."""
    return data.dataset_info(config.dataset).flip if config.flip is None else config.flip


def loader_of(own: TrainingData, config: TrainConfig, device: torch.device) -> data.Loader:
    """What gives the run its batches."""
    return data.make_loader(
        config.loader,
        own.images,
        own.labels,
        own.order,
        device=device,
        flip=is_mirrored(config),
        augment=config.augment,
        workers=config.workers,
        cache_dir=config.data_dir,
        name=config.dataset,
        source=own.source,
    )
