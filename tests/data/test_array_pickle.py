"""Pickled arrays are read as Python reads them; nothing a pickle names is run."""

from __future__ import annotations

import pickle
import random

import numpy as np
import pytest

from fastuiat.data.array_pickle import read_array_pickle

ARRAY = np.random.default_rng(0).integers(0, 256, (5, 12), dtype=np.uint8)


@pytest.mark.parametrize("protocol", range(1, 6))
@pytest.mark.parametrize(
    "array",
    [
        ARRAY,
        np.asfortranarray(ARRAY),
        ARRAY.astype(">i4"),
        ARRAY.astype(np.float64),
        ARRAY[:0],
        np.array(7),
    ],
    ids=["uint8", "fortran", "big-endian", "float64", "empty", "scalar"],
)
def test_arrays(protocol, array):
    found = read_array_pickle(pickle.dumps({"data": array, b"labels": [1, 2]}, protocol))
    assert found["labels"] == [1, 2] and found["data"].dtype == array.dtype
    np.testing.assert_array_equal(found["data"], array)


@pytest.mark.parametrize("protocol", range(1, 6))
def test_scalars_are_numbers(protocol):
    labels = [np.int64(3), np.uint8(200), np.float32(0.5), 4]
    assert read_array_pickle(pickle.dumps({"labels": labels}, protocol))["labels"] == labels


def test_what_python_2_wrote():
    """Its strings come as text, the bytes of an array among them."""
    written = (
        b"\x80\x02}q\x01U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\n"
        b"q\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x01K\x03\x86cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01"
        b"\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x03\x01\xff\x07tbs."
    )
    np.testing.assert_array_equal(pickle.loads(written, encoding="latin1")["data"], [[1, 255, 7]])
    np.testing.assert_array_equal(read_array_pickle(written)["data"], [[1, 255, 7]])


def test_other_things_are_refused():
    for value in (np.array(["a"], object), np.zeros(2, "datetime64[s]"), random.Random(0), print):
        with pytest.raises(pickle.UnpicklingError, match="refused"):
            read_array_pickle(pickle.dumps({"data": value}))


def test_damaged_ones_raise(tmp_path):
    """None takes memory by a number that stands in it, and none the process."""
    draw = random.Random(0)
    for protocol in (2, 4):
        whole = pickle.dumps({"data": ARRAY, "labels": list(range(5)), "f": ["a"] * 5}, protocol)
        for _ in range(1500):
            content = bytearray(whole)
            for _ in range(draw.choice([1, 2, 5])):
                content[draw.randrange(len(content))] = draw.randrange(256)
            try:
                read_array_pickle(bytes(content))
            except Exception as error:
                assert not isinstance(error, MemoryError)
    far = pickle.dumps({"a": 1}, 2)[:-1] + b"r\xff\xff\xff\x7f."  # its 2147483647th memory
    assert read_array_pickle(far) == {"a": 1}
