"""What images and labels are, in a few numbers that are another as soon as one byte is."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastuiat.data.on_disk import Images, ImagesOnDisk, parts_of

LARGE = 4 << 30
"""Bytes above which a set is known by a sample of its images, and size and time of its files."""
SAMPLE = 4096
"""Images of it."""
_BLOCK = 4096
"""Images at a time: 12 MB of CIFAR's, which stay in a cache between the sums made of them."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """A part of a data set as it was read. All sums are in hexadecimal."""

    name: str
    """Of the data set."""
    split: str
    """`train`, `test`, or `extra` of generated images."""
    n: int
    """Images in all, also where only the first of them are used."""
    num_classes: int
    sha256: str
    """SHA-256 of the images (uint8, in rows of pixels, channels last) and of the labels (int64,
    little-endian) behind them."""
    images: str
    """SHA-256 of the images alone."""
    labels: str
    """SHA-256 of the labels alone."""
    unordered: str
    """Of the images whatever their order."""
    sampled: int | None = None
    """Images that the sums are made of, of a set that is LARGE: its files' sizes and times go into
    them too. None: all."""
    checked: str | None = None
    """What was found right: `published content`, `published md5`, or `unchecked` of what is not as
    published and used all the same; None where nothing is published to check by."""

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Fingerprint:
        """ValueError on what is none."""
        names = {field.name for field in dataclasses.fields(Fingerprint)}
        try:
            made = Fingerprint(**{k: v for k, v in stored.items() if k in names})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"no fingerprint: {error}") from error
        sums = (made.sha256, made.images, made.labels, made.unordered)
        if not isinstance(made.n, int) or not all(isinstance(s, str) for s in sums):
            raise ValueError("no fingerprint: sums are missing")
        return made


def fingerprint_of(
    images: Any, labels: np.ndarray, *, name: str, split: str, num_classes: int, identity: str = ""
) -> Fingerprint:
    """Of images uint8 (N, H, W, C) and labels int64 (N,).

    The images are gone through once; of a set that is LARGE, some of them, and `identity` tells
    its files apart.
    """
    if images.nbytes > LARGE:
        return Fingerprint(
            name=name,
            split=split,
            n=len(labels),
            num_classes=num_classes,
            sha256=sample_sum(images, labels, identity),
            images=(alone := sample_sum(images, labels[:0], identity)),
            labels=_sum_of_labels(labels),
            unordered=alone,
            sampled=SAMPLE,
        )
    digest, keys = hashlib.sha256(), []
    for block in blocks_of(images):
        digest.update(block.data)
        keys.append(_keys(block))
    unordered = hashlib.sha256(np.sort(np.concatenate(keys)).astype("<u8").data)
    numbers = np.ascontiguousarray(labels, dtype="<i8")
    alone = digest.hexdigest()
    digest.update(numbers.data)
    return Fingerprint(
        name=name,
        split=split,
        n=len(labels),
        num_classes=num_classes,
        sha256=digest.hexdigest(),
        images=alone,
        labels=_sum_of_labels(numbers),
        unordered=unordered.hexdigest(),
    )


def sample_sum(images: Any, labels: np.ndarray, identity: str) -> str:
    """Of a fixed sample of the images, of the labels, and of what tells their files apart."""
    rows = sample_of(len(images))
    digest = hashlib.sha256(repr((tuple(images.shape), identity)).encode())
    for first in range(0, len(rows), _BLOCK // 16):
        digest.update(np.ascontiguousarray(images[rows[first : first + _BLOCK // 16]]).data)
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()


def sample_of(count: int) -> np.ndarray:
    """The numbers of SAMPLE images of so many, evenly spread, the first and the last among them."""
    return np.linspace(0, count - 1, SAMPLE).astype(np.int64)


def _sum_of_labels(labels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").data).hexdigest()


def content_sum(images: np.ndarray, labels: np.ndarray) -> str:
    """`Fingerprint.sha256` of a stretch of a data set."""
    digest = hashlib.sha256(np.ascontiguousarray(images).data)
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()


def blocks_of(images: Images) -> Iterator[np.ndarray]:
    """The images in order, some thousands at a time, dense."""
    for part in parts_of(images):
        if isinstance(part, ImagesOnDisk):
            yield from part.blocks()
            continue
        for first in range(0, len(part), _BLOCK):
            yield np.ascontiguousarray(part[first : first + _BLOCK])


def _keys(block: np.ndarray) -> np.ndarray:
    """A number for each image, uint64 (B,): a polynomial of its bytes, eight at a time."""
    rows = block.reshape(len(block), -1)
    if lacking := -rows.shape[1] * rows.itemsize % 8:
        rows = np.pad(rows.view(np.uint8), ((0, 0), (0, lacking)))
    words = np.ascontiguousarray(rows).view("<u8")
    keys: np.ndarray = words @ np.cumprod(np.full(words.shape[1], _FACTOR))
    return keys


def split_json(train_index: np.ndarray, val_index: np.ndarray) -> dict[str, Any]:
    """Which images train a net and which choose it."""
    return {
        "train": len(train_index),
        "validation": len(val_index),
        "sha256": content_sum(train_index.astype("<i8"), val_index),
    }


def difference(before: Fingerprint, now: Fingerprint, what: str = "images") -> str | None:
    """What of the data is another now, in words; None where nothing is."""
    if before.n != now.n:
        return f"the number of {what} (it was {before.n}, it is {now.n})"
    if before.num_classes != now.num_classes:
        return f"the number of classes (it was {before.num_classes}, it is {now.num_classes})"
    if before.images != now.images and before.unordered == now.unordered:
        return f"the order of the {what}"
    or_times = " or the times of their files" if now.sampled else ""
    changed = [f"the {what}{or_times}"] if before.images != now.images else []
    changed += [f"the labels of the {what}"] if before.labels != now.labels else []
    return " and ".join(changed) or None


def training_difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What a run trains on otherwise than it did, in words; None where nothing is.

    Both are what a checkpoint keeps: `train`, `extra` (or None) and `split`. ValueError where
    `before` is none.
    """
    changes: list[str | None] = []
    for key, what in (("train", "training images"), ("extra", "--extra-data's images")):
        old, new = before.get(key), now.get(key)
        if old is None or new is None:
            changes.append(f"the {what}" if old != new else None)
        else:
            changes.append(difference(Fingerprint.from_json(old), Fingerprint.from_json(new), what))
    if not any(changes) and before.get("split") != now.get("split"):
        changes.append(
            "the split into training and validation images (NumPy's version may change it)"
        )
    return ", ".join(change for change in changes if change) or None


def sum_of(parts: Sequence[Fingerprint]) -> str:
    """One SHA-256 for data sets that follow each other; that of a single one is its own."""
    if len(parts) == 1:
        return parts[0].sha256
    return hashlib.sha256(" ".join(part.sha256 for part in parts).encode()).hexdigest()
