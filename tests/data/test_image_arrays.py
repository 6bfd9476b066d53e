"""`npz:PATH`: arrays of a user's own, and what is refused of them."""

import contextlib

import numpy as np
import pytest

from fastuiat.config import UserError
from fastuiat.data import BetonImages, Preparation, dataset_info, load

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(12) % 3


def train_and_test(name, tmp_path, **how):
    return [load(name, tmp_path / "data", s, how=Preparation(**how)) for s in ("train", "test")]


def test_arrays_beside_and_a_file_beside_are_the_same(tmp_path):
    one, two = tmp_path / "one.npz", tmp_path / "two.npz"
    test = {"image_test": IMAGES[:6], "label_test": LABELS[:6]}
    np.savez(one, image=IMAGES, label=LABELS, classes=["b", "a", "ä"], **test)
    np.savez_compressed(two, image=IMAGES, label=LABELS.astype(np.uint8))
    np.savez(tmp_path / "two_test.npz", image=IMAGES[:6], label=LABELS[:6])
    sets = [train_and_test(f"npz:{path}", tmp_path) for path in (one, two)]
    for train, test in sets:
        np.testing.assert_array_equal(train.images, IMAGES)
        np.testing.assert_array_equal(test.images, IMAGES[:6])
        assert train.labels.tolist() == LABELS.tolist() and test.labels.dtype == np.int64
    assert sets[0][0].classes == ("b", "a", "ä") and sets[1][1].classes == ("0", "1", "2")
    assert sets[0][0].fingerprint.sha256 == sets[1][0].fingerprint.sha256
    assert not (tmp_path / "data").exists()  # they need no preparation


def test_grey_and_other_sizes_are_prepared(tmp_path):
    path = tmp_path / "grey.npz"
    grey = IMAGES[:, :24, :, 0]
    np.savez(path, image=grey, label=LABELS, image_test=grey, label_test=LABELS)
    with pytest.raises(UserError, match="give --resolution"):
        load(f"npz:{path}", tmp_path, "train")
    train, test = train_and_test(f"npz:{path}", tmp_path, resolution=24)
    expected = np.repeat(grey[:, :, 4:28, None], 3, axis=3)
    np.testing.assert_array_equal(train.images, expected)
    np.testing.assert_array_equal(test.images, expected)
    assert isinstance(train.images, BetonImages) and train.labels.tolist() == LABELS.tolist()


def test_published_sets_are_resized(tmp_path):
    small, large = (
        load("digits", tmp_path, "test", how=Preparation(resolution=side)) for side in (None, 16)
    )
    assert large.images.shape == (359, 16, 16, 3) and large.classes == tuple("0123456789")
    # Digits are drawn four times as large, so halving keeps the brightness of each stroke's middle.
    np.testing.assert_allclose(
        np.asarray(large.images).mean(axis=(1, 2, 3)), small.images.mean(axis=(1, 2, 3)), atol=1
    )
    np.testing.assert_array_equal(large.labels, small.labels)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"image": IMAGES}, "lacks 'label': it has 'image' uint8"),
        ({"x": IMAGES, "y": LABELS}, "lacks 'image' and 'label'"),
        ({"image": IMAGES, "label": LABELS}, "has no test images: .*own_test.npz does not exist"),
        ({"image": IMAGES, "label": np.eye(3)[LABELS]}, "scores of classes: .*argmax"),
        ({"image": IMAGES, "label": LABELS / 2}, "labels must be integers"),
        ({"image": IMAGES, "label": LABELS - 1}, "must be 0, 1, …, got -1"),
        ({"image": IMAGES, "label": LABELS + 1}, "has no image of class 0"),
        ({"image": IMAGES, "label": LABELS * 0}, "holds one class"),
        ({"image": IMAGES, "label": LABELS, "classes": ["a", "b"]}, "names 2 .* a label is 2"),
        ({"image": IMAGES, "label": LABELS, "classes": np.arange(3)}, "must be texts"),
        ({"image": IMAGES[:5], "label": LABELS}, "5 images but 12 labels"),
        (
            {"image": IMAGES, "label": LABELS, "classes": ["a", "b", "a"]},
            "own.npz: 'classes' names 2 of them 'a'",
        ),
        ({"image": IMAGES / 255, "label": LABELS}, r"must be uint8.*bytes.*\(255 \* image\)"),
        (
            {"image": IMAGES.transpose(0, 3, 1, 2), "label": LABELS},
            r"must be uint8.*channels first: \.transpose\(0, 2, 3, 1\) them",
        ),
        ({"image": IMAGES[:, :0], "label": LABELS}, "must be uint8"),
        ({"image": IMAGES[:0], "label": LABELS[:0]}, "holds no images"),
    ],
)
def test_what_is_refused(tmp_path, arrays, said):
    path = tmp_path / "own.npz"
    test = {} if said.startswith("has no test") else {"image_test": IMAGES, "label_test": LABELS}
    np.savez(path, **arrays, **test)
    with pytest.raises(UserError, match=said) as raised:
        load(f"npz:{path}", tmp_path, "train", how=Preparation(resolution=32))
    assert "\n" not in str(raised.value) and str(path.stem) in str(raised.value)


@pytest.mark.parametrize(
    ("test", "said"),
    [
        (IMAGES.transpose(0, 3, 1, 2), "'image_test' must be uint8.*channels first"),
        (IMAGES / 255, "'image_test' must be uint8"),
        (IMAGES[:, :20], None),
    ],
)
def test_test_images_are_looked_at_before_a_run_is_trained_on_the_others(tmp_path, test, said):
    np.savez(tmp_path / "own", image=IMAGES, label=LABELS, image_test=test, label_test=LABELS)
    with pytest.raises(UserError, match=said) if said else contextlib.nullcontext():
        load(f"npz:{tmp_path}/own.npz", tmp_path, "train", how=Preparation(resolution=32))


def test_a_test_label_too_high_is_one_of_the_file_that_has_it(tmp_path):
    arrays = {"image": IMAGES, "label": LABELS, "image_test": IMAGES, "label_test": LABELS + 1}
    np.savez(tmp_path / "own", **arrays)
    with pytest.raises(UserError, match=r"own\.npz: a test label is 3, of 3 classes"):
        dataset_info(f"npz:{tmp_path}/own.npz")


def test_what_is_no_file(tmp_path):
    (tmp_path / "own.npz").write_text("text")
    for name, said in (
        ("own.npz", "is a text file"),
        ("no.npz", "does not exist"),
        (".", "a folder"),
    ):
        with pytest.raises(UserError, match=said):
            dataset_info(f"npz:{tmp_path / name}")
