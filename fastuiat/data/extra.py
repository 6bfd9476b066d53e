"""Generated images: an .npz with `image` uint8 (M, 32, 32, 3) and `label` (M,)."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from fastuiat.config import UserError
from fastuiat.data.sources import DATASETS, ImageSet, checked, dataset_info

FULL_POOL = 100
"""A pool of this many images a class on average has some of every class."""


def extra_path(spec: str, dataset: str, data_dir: Path) -> Path:
    """Where the file of `ddpm1m`, or of a path, lies; it is downloaded if it must be."""
    if spec != "ddpm1m":
        return Path(spec)
    pool = dataset_info(dataset).ddpm1m
    if pool is None:
        have = ", ".join(name for name, info in DATASETS.items() if info.ddpm1m)
        raise UserError(f"there are no ddpm1m images of {dataset}, only of {have}")
    return pool.fetched(Path(data_dir))


def load_extra(spec: str, dataset: str, data_dir: Path) -> ImageSet:
    """Generated images for a data set; UserError on a file that does not fit it."""
    path = extra_path(spec, dataset, data_dir)
    if not path.is_file():
        raise UserError(f"--extra-data {path} does not exist: give ddpm1m or the path of an .npz")
    try:
        with np.load(path, allow_pickle=False) as content:
            if not hasattr(content, "files"):
                raise UserError(f"{path} is a plain array, not an .npz with 'image' and 'label'")
            lacking = [key for key in ("image", "label") if key not in content.files]
            if lacking:
                raise UserError(
                    f"{path} lacks {' and '.join(map(repr, lacking))}: it has "
                    f"{', '.join(content.files) or 'nothing'}"
                )
            images, labels = content["image"], content["label"]
    except UserError:
        raise
    except (
        OSError,
        ValueError,
        EOFError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
        AttributeError,
        TypeError,
    ) as error:
        raise UserError(f"{path} is truncated or no .npz of plain arrays ({error})") from error
    num_classes = dataset_info(dataset).num_classes
    extra = checked(f"{dataset}+extra", images, labels, num_classes, path)
    found = np.count_nonzero(np.bincount(extra.labels, minlength=num_classes))
    if found < num_classes and len(extra.labels) >= FULL_POOL * num_classes:
        raise UserError(
            f"{path} holds {found} of the {num_classes} classes of {dataset}: is it of another "
            "data set?"
        )
    return extra
