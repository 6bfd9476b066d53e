"""Generated images: an .npz with `image` uint8 (M, 32, 32, 3) and `label` (M,)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fastuiat.config import UserError
from fastuiat.data.on_disk import Npz
from fastuiat.data.sources import (
    DATASETS,
    IMAGES,
    LABELS,
    ImageSet,
    checked,
    dataset_info,
    fingerprinted,
)
from fastuiat.file_kinds import kind_of

FULL_POOL = 100
"""A pool of this many images a class on average has some of every class."""
MOST_NAMED = 6
"""Arrays of a foreign file."""
WANTED = f"wanted is an .npz with 'image' {IMAGES} and 'label' {LABELS}"


def refuse_nameless(spec: str | Path | None) -> None:
    """UserError on an empty --extra-data, as of a shell's variable that is not set."""
    if spec is not None and str(spec) in ("", "."):
        raise UserError("--extra-data names no file: give ddpm1m or the path of an .npz")


def extra_path(spec: str | Path, dataset: str, data_dir: Path) -> Path:
    """Where the file of `ddpm1m`, or of a path, lies; it is downloaded if it must be."""
    refuse_nameless(spec)
    if spec != "ddpm1m":
        return Path(spec)
    pool = dataset_info(dataset).ddpm1m
    if pool is None:
        have = ", ".join(name for name, info in DATASETS.items() if info.ddpm1m)
        raise UserError(f"there are no ddpm1m images of {dataset}, only of {have}")
    return pool.fetched(Path(data_dir))


def load_extra(spec: str | Path, dataset: str, data_dir: str | Path) -> ImageSet:
    """Generated images for a data set, with their fingerprint; UserError on a file that does not
    fit it. Uncompressed images stay on disk."""
    path = extra_path(spec, dataset, Path(data_dir))
    kind = kind_of(path)
    if not path.exists():
        raise UserError(f"--extra-data {path} does not exist: give ddpm1m or the path of an .npz")
    # Any zip may be an .npz with something beside its arrays.
    if kind is None or not ("zip archive" in kind or ".npz" in kind):
        raise UserError(f"--extra-data {path} is {kind or 'no .npz'}: {WANTED}")
    with Npz(path) as content:
        if lacking := [repr(key) for key in ("image", "label") if key not in content.members]:
            raise UserError(
                f"{path} lacks {' and '.join(lacking)}: it has {described(content)}; {WANTED}"
            )
        labels, images = content.array("label"), content.on_disk("image")
    num_classes = dataset_info(dataset).num_classes
    extra = checked(f"{dataset}+extra", images, labels, num_classes, path)
    found = np.count_nonzero(np.bincount(extra.labels, minlength=num_classes))
    if found < num_classes and len(extra.labels) >= FULL_POOL * num_classes:
        raise UserError(
            f"{path} holds {found} of the {num_classes} classes of {dataset}: is it of another "
            "data set?"
        )
    return fingerprinted(extra, "extra")


def described(content: Npz) -> str:
    """What an .npz has, as far as it can be told."""
    words = []
    for name in list(content.members)[:MOST_NAMED]:
        try:
            words.append(f"{name!r} {content.header(name)}")
        except UserError:
            words.append(repr(name))
    if len(content.members) > MOST_NAMED:
        words.append("…")
    return ", ".join(words) or "nothing"
