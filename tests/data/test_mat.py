"""MATLAB files are read as SciPy reads them, and damaged ones do not take the process with them."""

from __future__ import annotations

import random
import struct
import zlib

import numpy as np
import pytest
from scipy.io import savemat

from fastuiat.data.mat import read_mat

DAMAGED = (OSError, ValueError, EOFError, KeyError, zlib.error, struct.error)
CONTENT = {
    "X": np.random.default_rng(0).integers(0, 256, (4, 3, 2, 5), dtype=np.uint8),
    "y": np.array([[10], [1], [9]], np.uint8),
    "doubles": np.linspace(0, 1, 7),
    "whole": np.arange(300.0)[:, None],
    "small": np.array([[3]], np.int16),
    "long": np.array([2**40, -5]),
    "a_name_of_some_length": np.zeros((2, 2), np.float32),
    "nothing": np.zeros((0, 3)),
}


@pytest.mark.parametrize("packed", [False, True])
def test_as_they_were_saved(tmp_path, packed):
    path = tmp_path / "a.mat"
    others = {"text": "hello", "cell": np.array([1, "a"], object), "struct": {"a": 1}, "z": 1j}
    savemat(path, CONTENT | others, do_compression=packed, oned_as="column")
    found = read_mat(path)
    assert set(found) == set(CONTENT | others)
    for name, saved in CONTENT.items():
        array = found[name]
        assert array is not None and array.dtype == saved.dtype
        np.testing.assert_array_equal(array, saved if saved.ndim > 1 else saved[:, None])
    assert all(found[name] is None for name in others)


@pytest.mark.parametrize("packed", [False, True])
def test_damaged_ones(tmp_path, packed):
    """Read, or refused by an exception that is documented."""
    path = tmp_path / "a.mat"
    savemat(path, CONTENT, do_compression=packed)
    whole, draw = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(400):
        content = bytearray(whole)
        for _ in range(draw.choice([1, 2, 5])):
            content[draw.randrange(len(content))] = draw.randrange(256)
        end = len(content) if draw.random() < 0.7 else draw.randrange(len(content))
        path.write_bytes(content[:end])
        try:
            read_mat(path)
        except DAMAGED:
            refused += 1
    assert refused > 100


def test_a_part_that_claims_or_unpacks_to_too_much(tmp_path):
    path = tmp_path / "a.mat"
    savemat(path, {"X": CONTENT["X"]})
    header = path.read_bytes()[:128]
    path.write_bytes(header + struct.pack("<II", 14, (1 << 32) - 1))
    with pytest.raises(ValueError, match="claims 4,294,967,295 bytes"):
        read_mat(path)
    bomb = zlib.compress(struct.pack("<II", 14, 64) + bytes(50 << 20))
    path.write_bytes(header + struct.pack("<II", 15, len(bomb)) + bomb)
    with pytest.raises(EOFError, match="goes on"):
        read_mat(path)
