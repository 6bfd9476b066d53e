"""Handwritten digits that come with scikit-learn, 8×8 enlarged to 32×32: a set to try things on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from fastuiat.data.sources import DatasetInfo, register

DIGITS = tuple("0123456789")


def read(data_dir: Path, split: str) -> tuple[Any, Any]:
    """scikit-learn's 1797 digits, every fifth one a test image."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = np.minimum(digits.images * 16, 255).astype(np.uint8)
    images = np.repeat(small.repeat(4, axis=1).repeat(4, axis=2)[..., None], 3, axis=3)
    is_test = np.arange(len(images)) % 5 == 4
    chosen = is_test if split == "test" else ~is_test
    return images[chosen], digits.target[chosen]


register(DatasetInfo(name="digits", num_classes=10, classes=DIGITS, flip=False, read=read))
