"""`--dataset folder:PATH`: a folder of pictures for each class."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import stat
from collections import Counter
from pathlib import Path

import numpy as np

from fastuiat.config import UserError, legible
from fastuiat.data.order import generator
from fastuiat.data.pictures import SUFFIXES
from fastuiat.data.preparation import Pictures
from fastuiat.data.sources import DatasetInfo, register_kind
from fastuiat.file_kinds import kind_of

RESOLUTION = 32
"""Pixels a side unless --resolution says another number."""
TEST_SHARE = 0.2
"""Of each class, where there is no folder of test pictures."""
LAYOUT = "a folder for each class is wanted, under train/ and test/ or in it"
SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation"}
"""Names, in small letters, of folders that are parts of a set and no classes."""
NOT_READ = (
    ".gif", ".tif", ".tiff", ".jfif", ".jp2", ".heic", ".heif", ".avif", ".ppm", ".pgm", ".tga",
)  # fmt: skip
"""Endings of pictures that are none of those that are read, so that leaving them out is said."""
MOST_NAMED = 5


def in_order(name: str) -> str:
    """A key that puts 2.png before 10.png."""
    return re.sub(r"\d+", lambda digits: digits[0].zfill(20), name)


def folders_in(folder: Path) -> list[str]:
    """The names of the folders in a folder, hidden ones left out; UserError where it has none."""
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if e.is_dir() and not e.name.startswith(".")]
    except OSError as error:
        kind = kind_of(folder)
        why = f"it is {kind}" if kind and kind != "a folder" else error.strerror
        raise UserError(f"{folder} cannot be read ({why}): {LAYOUT}") from error
    return sorted(names, key=in_order)


def parts_of(root: Path) -> dict[str, Path]:
    """The folder of each split, or of `all`; UserError where one of two is missing."""
    names = folders_in(root)
    there = [split for split in ("train", "test") if split in names]
    if len(there) == 2:
        return {split: root / split for split in there}
    if there and folders_in(root / there[0]):
        other = "test" if there == ["train"] else "train"
        rest = [name for name in names if name not in there]
        instead = f" (there is {', '.join(rest[:MOST_NAMED])})" if rest else ""
        raise UserError(f"{root} has {there[0]}/ and no {other}/{instead}: {LAYOUT}")
    parts = [name for name in names if name.lower() in SPLITS and folders_in(root / name)]
    if parts:
        raise UserError(
            f"{root} has {', '.join(parts)} with folders inside, which look like parts and not "
            f"like classes: name them train and test; {LAYOUT}"
        )
    return {"all": root}


def classes_of(parts: dict[str, Path]) -> tuple[str, ...]:
    """UserError where there are less than two, or train and test have not the same."""
    found = {split: folders_in(folder) for split, folder in parts.items()}
    first = next(iter(found))
    for split, names in found.items():
        if len(names) < 2:
            what = "no folder" if not names else f"one folder alone, {legible(names[0])}"
            raise UserError(
                f"{parts[split]} holds {what}: at least two classes are needed, {LAYOUT}"
            )
        if names != found[first]:
            unlike = sorted(set(names) ^ set(found[first]), key=in_order)
            named = ", ".join(map(legible, unlike[:MOST_NAMED]))
            more = f" and {len(unlike) - MOST_NAMED} more" if len(unlike) > MOST_NAMED else ""
            raise UserError(
                f"{parts[first]} and {parts[split]} have not the same classes: {named}{more} "
                "in one of them only"
            )
    return tuple(found[first])


def entries_of(place: str) -> tuple[list[str], list[str]]:
    """(paths of the folders, names of all else) in a folder, hidden ones left out."""
    folders, names = [], []
    try:
        with os.scandir(place) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if not entry.is_dir():
                    names.append(entry.name)
                elif entry.is_symlink():
                    raise UserError(
                        f"{entry.path} is a link to a folder, which is not followed: put the "
                        "pictures there, or make the class's own folder the link"
                    )
                else:
                    folders.append(entry.path)
    except OSError as error:
        raise UserError(f"{legible(place, 200)} cannot be read: {error.strerror}") from error
    return folders, names


def refuse_parts(place: str, folders: list[str]) -> None:
    """UserError on a class that is itself split into training and test pictures."""
    parts = sorted(name for name in map(os.path.basename, folders) if name.lower() in SPLITS)
    if len(parts) > 1:
        raise UserError(
            f"{legible(place, 200)} has {', '.join(parts)} in it, of which all would be used "
            f"alike: {LAYOUT}"
        )


def files_in(folder: Path, not_read: Counter[str]) -> list[tuple[str, int, int]]:
    """(path, size, time) of the pictures in a folder and below it, by name.

    The folder itself may be a link, and a picture; UserError on one inside that leads to a folder.
    Pictures of other kinds are counted in `not_read`, by their ending.
    """
    found: list[tuple[str, int, int]] = []
    waiting = [str(folder)]
    while waiting:
        place = waiting.pop()
        folders, names = entries_of(place)
        refuse_parts(place, folders)
        waiting += folders
        endings = (os.path.splitext(name)[1].lower() for name in names)
        not_read.update(ending for ending in endings if ending in NOT_READ)
        for name in names:
            if name.lower().endswith(SUFFIXES):
                path = os.path.join(place, name)
                try:
                    status = os.stat(path)
                except OSError as error:  # a link to nowhere
                    raise UserError(f"{path} cannot be read: {error.strerror}") from error
                if not stat.S_ISREG(status.st_mode):
                    raise UserError(f"{path} is {kind_of(path)}, not a picture: remove it")
                found.append((path, status.st_size, status.st_mtime_ns))
    return found


def pictures_of(root: Path, split: str, seed: int) -> Pictures:
    """All of a split, in the order of their files' names whatever their class.

    So a set that was written out with a number for each image comes back in its order.
    """
    parts = parts_of(root)
    classes = classes_of(parts)
    folder = parts.get(split) or parts["all"]
    rows, not_read = [], Counter[str]()
    for label, name in enumerate(classes):
        inside = files_in(folder / name, not_read)
        if not inside:
            raise UserError(f"{folder / name} holds no picture ({', '.join(SUFFIXES)})")
        rows += [(in_order(os.path.basename(file[0])), label, *file) for file in inside]
    rows.sort()
    labels = np.array([row[1] for row in rows], np.int64)
    if "all" in parts:
        for single in np.flatnonzero(np.bincount(labels) < 2).tolist():
            raise UserError(
                f"{folder / classes[single]} has one picture alone, which cannot be split into "
                "training and test: put pictures under train/ and test/"
            )
        chosen = split_by_seed(labels, split, seed)
        rows, labels = [rows[i] for i in chosen.tolist()], labels[chosen]
    digest = hashlib.sha256()
    for _, label, path, size, time in rows:
        digest.update(repr((label, os.path.relpath(path, folder), size, time)).encode())
    return Pictures(
        what=f"{root.resolve().name} {split}",
        source=[row[2] for row in rows],
        labels=labels,
        classes=classes,
        identity=digest.hexdigest(),
        not_read=not_read if split in parts or split == "train" else {},
    )


def split_by_seed(labels: np.ndarray, split: str, seed: int) -> np.ndarray:
    """Sorted rows of `train` or `test`: a fifth of each class is for testing, at least one."""
    test = []
    by_label = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
    for label, rows in enumerate(by_label):
        shuffled = generator(seed, "test", label).permutation(rows)
        test.append(shuffled[: max(1, round(TEST_SHARE * len(rows)))])
    chosen = np.sort(np.concatenate(test))
    if split == "test":
        return chosen
    return np.delete(np.arange(len(labels)), chosen)


def open_folder(path: Path, name: str) -> DatasetInfo:
    """What is known of a folder before its pictures are read; UserError on one that is none."""
    parts = parts_of(path)
    classes = classes_of(parts)
    return DatasetInfo(
        name=name,
        num_classes=len(classes),
        classes=classes,
        flip=True,
        resolution=RESOLUTION,
        pictures=functools.partial(pictures_of, path),
        is_split_by_seed="all" in parts,
    )


register_kind("folder", open_folder)
