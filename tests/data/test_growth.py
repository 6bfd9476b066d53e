"""Many classes, many small files, many epochs behind: what they cost grows with what there is."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from fastuiat.data import Preparation, load, preparation
from fastuiat.data.image_folder import TEST_SHARE, split_by_seed
from fastuiat.data.order import Order, generator
from fastuiat.data.picture_workers import PictureWorkers
from tests.large import calls_in, moved

TWICE = 2.3
"""What twice as much may cost."""


class Counted(np.ndarray):
    """Counts the elements that are compared or computed with."""

    seen = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        Counted.seen += max(np.size(value) for value in inputs)
        plain = [np.asarray(value) for value in inputs]
        return getattr(ufunc, method)(*plain, **options)


def test_a_split_looks_at_each_label_a_few_times_however_many_classes():
    draw = np.random.default_rng(0)
    labels = draw.permutation(np.repeat(np.arange(200), 5)).view(Counted)
    test = split_by_seed(labels, "test", 3)
    assert Counted.seen < 5 * len(labels)
    plain = np.asarray(labels)
    expected = []
    for label in range(200):
        rows = np.flatnonzero(plain == label)
        shuffled = generator(3, "test", label).permutation(rows)
        expected += shuffled[: round(TEST_SHARE * len(rows))].tolist()
    assert test.tolist() == sorted(expected)
    assert split_by_seed(labels, "train", 3).tolist() == sorted(set(range(1000)) - set(expected))


def written_out(root, classes: int, each: int = 2):
    """Folders of pictures of 8 × 8 pixels."""
    Image.new("RGB", (8, 8), (9, 99, 200)).save(root.parent / "one.png")
    content = (root.parent / "one.png").read_bytes()
    for number in range(classes):
        (root / f"class-{number}").mkdir(parents=True)
        for i in range(each):
            (root / f"class-{number}" / f"{i}.png").write_bytes(content)
    return root


@pytest.mark.parametrize("how", ["classes", "files"])
def test_preparing_grows_with_classes_and_files(how, tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "PictureWorkers", lambda most: PictureWorkers(0))
    costs = []
    for count in (4, 130, 260):  # the first fills the caches; a chunk is 64 pictures
        shape = {"classes": count // 2} if how == "classes" else {"classes": 2, "each": count // 2}
        root, before = written_out(tmp_path / f"{count}", **shape), moved()
        settings = {"how": Preparation(resolution=16)}

        def prepare(name=f"folder:{root}", settings=settings):
            assert load(name, tmp_path / "data", "train", **settings).images.shape[1] == 16

        calls = calls_in(prepare), calls_in(prepare)  # made, and found as it was made
        costs.append((*calls, *(now - then for now, then in zip(moved(), before, strict=True))))
    for few, many in zip(*costs[1:], strict=True):
        assert many < TWICE * few, costs


def test_an_epoch_shuffles_as_often_as_any(monkeypatch):
    """Fewer originals than two batches of them: each cycle follows from the one before."""
    drawn = []
    shuffled = Order._shuffled
    monkeypatch.setattr(
        Order, "_shuffled", lambda self, cycle: drawn.append(cycle) or shuffled(self, cycle)
    )
    order = Order(
        seed=0, train_index=np.arange(1501), batch_size=2500, num_extra=3000, first_extra=1501,
        extra_share=0.5,
    )  # fmt: skip
    rows = order.batches(100)  # cycle 1,600 and on: 1,250 cycles behind one without overhang
    assert len(drawn) < 1250 + 40 and rows.shape == (20, 2500)
    assert all(len(set(row)) == len(row) for row in rows.tolist())
    costs = []
    for epoch in (40, 80):
        drawn.clear()
        small = Order(
            seed=0, train_index=np.arange(101), batch_size=128, num_extra=200, first_extra=101,
            extra_share=0.5,
        )  # fmt: skip
        small.batches(epoch)
        costs.append(len(drawn))
    assert max(costs) < 250 + 64 + 5, costs
