"""Folders of pictures: what is read of them, in which order, and what is refused."""

import os
import pickle
import shutil
import signal
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from fastuiat import data
from fastuiat.config import UserError
from fastuiat.data import Preparation, ffcv_loader, load, make_loader, pictures
from fastuiat.data.order import Order

RNG = np.random.default_rng(0)
needs_ffcv = pytest.mark.skipif(not ffcv_loader.available(), reason="ffcv is not installed")


def picture(width=40, height=30):
    """Noise that is smooth enough for JPEG."""
    small = RNG.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def save(path, image, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **more)


@pytest.fixture(scope="module")
def flowers(tmp_path_factory):
    """Two splits of three classes, 24 and 9 PNGs, numbered through."""
    root = tmp_path_factory.mktemp("own") / "flowers"
    for split, count in (("train", 24), ("test", 9)):
        for i in range(count):
            save(root / split / ("tulip", "aster", "rose")[i % 3] / f"{i}.png", picture())
    return root


def torchvision_square(path, resolution):
    image = Image.open(path).convert("RGB")
    return np.asarray(transforms.CenterCrop(resolution)(transforms.Resize(resolution)(image)))


@pytest.mark.parametrize("resolution", [16, 32, 64])
def test_pictures_are_those_of_torchvision_in_the_order_of_their_names(
    flowers, tmp_path, resolution
):
    part = load(f"folder:{flowers}", tmp_path, "train", how=Preparation(resolution=resolution))
    assert part.classes == ("aster", "rose", "tulip") and part.num_classes == 3
    assert part.images.classes == part.classes  # the file itself has them
    assert part.labels.tolist() == [2, 0, 1] * 8
    paths = [flowers / "train" / part.classes[k] / f"{i}.png" for i, k in enumerate(part.labels)]
    expected = np.stack([torchvision_square(path, resolution) for path in paths])
    np.testing.assert_array_equal(part.images, expected)
    np.testing.assert_array_equal(part.images[[5, 2]], expected[[5, 2]])
    np.testing.assert_array_equal(part.images[3:7], expected[3:7])
    np.testing.assert_array_equal(part.images[-1], expected[-1])


def test_one_level_is_split_by_the_seed(flowers, tmp_path):
    root = flowers / "train"
    splits = {}
    for seed in (0, 1):
        how = Preparation(seed=seed)
        train, test = (load(f"folder:{root}", tmp_path, s, how=how) for s in ("train", "test"))
        assert np.bincount(test.labels).tolist() == [2, 2, 2] and len(train.labels) == 18
        rows = [image.tobytes() for part in (train, test) for image in np.asarray(part.images)]
        assert len(set(rows)) == 24
        splits[seed] = set(rows[18:])
    assert splits[0] != splits[1]


def loaders(part, order, tmp_path, **more):
    for kind in ("resident", "ffcv"):
        yield make_loader(
            kind, part.images, part.labels, order, device="cpu", cache_dir=tmp_path,
            name=part.name, **more,
        )  # fmt: skip


@needs_ffcv
@pytest.mark.slow
@pytest.mark.parametrize(
    ("resolution", "store", "augment"),
    [(32, "raw", "crop"), (72, "jpeg", "resized-crop"), (64, "jpeg", "none")],
)
def test_both_loaders_give_the_same_bits(flowers, tmp_path, resolution, store, augment):
    how = Preparation(resolution=resolution, store=store)
    part = load(f"folder:{flowers}", tmp_path, "train", how=how)
    assert part.images.is_jpeg == (store == "jpeg")
    order = Order(seed=1, train_index=np.arange(24), batch_size=8)
    left, right = loaders(part, order, tmp_path, flip=True, augment=augment)
    for a, b in zip(left.epoch(2, 1), right.epoch(2, 1), strict=True):
        assert a.x.shape == (8, 3, resolution, resolution)
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and torch.equal(a.index, b.index)
    right.close()
    # Nothing but what was prepared.
    assert len(list(tmp_path.glob("*.beton"))) == 1


def test_jpegs_are_kept_above_64_pixels_and_look_alike(flowers, tmp_path):
    name = f"folder:{flowers}"
    small, large = (
        load(name, tmp_path, "test", how=Preparation(resolution=side)).images for side in (64, 72)
    )
    assert not small.is_jpeg and large.is_jpeg
    raw = load(name, tmp_path, "test", how=Preparation(resolution=72, store="raw")).images
    apart = np.abs(np.asarray(raw).astype(int) - np.asarray(large))
    assert 0 < apart.max() < 40 and apart.mean() < 2
    again = load(name, tmp_path, "test", how=Preparation(resolution=72)).images
    assert not again.is_jpeg  # as it was prepared


def odd_pictures(folder):
    """Every kind of picture that is read; the colour of the one in the middle."""
    red = Image.new("RGB", (20, 30), (200, 10, 20))
    save(folder / "0.jpg", red)
    save(folder / "1.webp", red, lossless=True)
    save(folder / "2.bmp", red)
    save(folder / "3.jpeg", red.convert("CMYK"))
    save(folder / "4.png", red.convert("RGBA"))
    palette = red.quantize(4)
    save(folder / "5.png", palette, transparency=bytes([0, 100, 255, 255]))
    save(folder / "6.png", Image.new("L", (20, 30), 120))
    save(folder / "7.png", Image.fromarray(np.full((30, 20), 120 << 8, np.uint16)))
    save(folder / "8.PNG", Image.new("RGB", (1, 1), (200, 10, 20)))
    save(folder / "9.png", Image.new("LA", (20, 30), (120, 3)))
    save(folder / "10.png", Image.new("1", (20, 30), 1))
    save(folder / "sub" / "11.png", Image.new("RGB", (3000, 2), (200, 10, 20)))
    red_, grey = (200, 10, 20), (120, 120, 120)
    return [red_] * 6 + [grey] * 2 + [red_, grey, (255, 255, 255), red_]


def test_every_kind_of_picture(tmp_path):
    expected = odd_pictures(tmp_path / "own" / "train" / "b")
    for place in ("train/a", "test/a", "test/b"):
        save(tmp_path / "own" / place / "x.png", picture())
    (tmp_path / "own" / "train" / "b" / ".hidden.png").write_text("none")
    (tmp_path / "own" / "train" / "b" / "notes.txt").write_text("none")
    part = load(f"folder:{tmp_path / 'own'}", tmp_path, "train")
    found = part.images[np.flatnonzero(part.labels == 1)]
    assert len(found) == len(expected)
    for image, colour in zip(found, expected, strict=True):
        assert np.abs(image[16, 16].astype(int) - colour).max() <= 3


def test_an_upright_picture_is_turned(tmp_path):
    image = Image.new("RGB", (32, 32))
    image.paste((255, 255, 255), (0, 0, 32, 16))  # bright above
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by half
    for place in ("train/a", "train/b", "test/a", "test/b"):
        save(tmp_path / "own" / place / "0.png", image, exif=exif)
    first = load(f"folder:{tmp_path / 'own'}", tmp_path, "train").images[0]
    assert first[0, 0, 0] == 0 and first[31, 0, 0] == 255


def broken_flowers(flowers, tmp_path):
    root = tmp_path / "broken"
    shutil.copytree(flowers, root)
    jpeg = tmp_path / "whole.jpg"
    save(jpeg, picture(300, 300))
    (root / "train" / "rose" / "30.jpg").write_bytes(jpeg.read_bytes()[:-3000])
    (root / "train" / "aster" / "2b.png").write_text("<html>not found</html>")
    return root


def test_a_broken_picture_is_named_and_may_be_skipped(flowers, tmp_path):
    root = broken_flowers(flowers, tmp_path)
    with pytest.raises(UserError, match=r"aster/2b\.png cannot be read.*--skip-broken") as raised:
        load(f"folder:{root}", tmp_path, "train")
    assert "\n" not in str(raised.value)
    said = []
    how = Preparation(skip_broken=True, say=said.append)
    part = load(f"folder:{root}", tmp_path, "train", how=how)
    assert part.skipped == 2 and len(part.labels) == len(part.images) == 24
    assert [name in line for name, line in zip(("2b.png", "30.jpg"), said, strict=False)] == [
        True
    ] * 2
    assert said[2:] == ["broken train: 2 pictures that cannot be read are left out"]
    whole = load(f"folder:{flowers}", tmp_path, "train")
    np.testing.assert_array_equal(part.images, whole.images)
    np.testing.assert_array_equal(part.labels, whole.labels)
    again = load(f"folder:{root}", tmp_path, "train")  # a run finds what was prepared
    assert again.skipped == 2 and again.fingerprint == part.fingerprint


def test_pictures_of_kinds_that_are_not_read_are_counted_aloud(tmp_path):
    for name in ("a/0.png", "a/1.png", "b/0.png", "b/1.png", "Test/2.png", "Test/3.png"):
        save(tmp_path / "own" / name, picture())
    for name in ("a/x.GIF", "b/y.gif", "b/z.tif", "b/notes.txt"):
        (tmp_path / "own" / name).write_bytes(b"")
    said = []
    for split in ("train", "test"):
        part = load(f"folder:{tmp_path / 'own'}", tmp_path, split, how=Preparation(say=said.append))
    assert said == ["own train: only JPEG, PNG, WebP and BMP are read, 2 .gif, 1 .tif are left out"]
    assert part.classes == ("Test", "a", "b")  # a class's name, where it holds no folders


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ([], "holds no folder: at least two classes"),
        (["a/0"], "one folder alone, a: at least two classes"),
        (["train/a/0", "train/b/0"], "has train/ and no test/"),
        (["train/a/0", "train/b/0", "val/a/0"], r"no test/ \(there is val\)"),
        (["test/a/0", "test/b/0"], "has test/ and no train/"),
        (["train/a/0", "train/b/0", "test/a/0", "test/c/0"], "not the same classes: b, c in one"),
        (["train/a/0", "train/b/", "test/a/0", "test/b/0"], "train/b holds no picture"),
        (["a/0", "b/0", "b/1"], "a has one picture alone"),
        (["Train/a/0", "Train/b/0", "Test/a/0", "Test/b/0"], "has Test, Train with folders inside"),
        (["training/a/0", "training/b/0", "rest/a/0"], "has training with .*: name them train and"),
        (["a/train/0", "a/test/1", "b/train/0", "b/test/1"], "own/a has test, train in it"),
    ],
)
def test_other_layouts_are_refused(tmp_path, made, said):
    (tmp_path / "own").mkdir()
    for name in made:
        if name.endswith("/"):
            (tmp_path / "own" / name).mkdir(parents=True)
        else:
            save(tmp_path / "own" / f"{name}.png", picture())
    with pytest.raises(UserError, match=said) as raised:
        load(f"folder:{tmp_path / 'own'}", tmp_path / "data", "train")
    assert "\n" not in str(raised.value) and not (tmp_path / "data").exists()


@pytest.mark.parametrize("resolution", [8, 33, 232, 0, -32])
def test_impossible_resolutions(flowers, tmp_path, resolution):
    with pytest.raises(UserError, match="multiple of 8 from 16 to 224"):
        load(f"folder:{flowers}", tmp_path, "train", how=Preparation(resolution=resolution))


def test_what_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("text")
    for spec, said in (
        (f"folder:{tmp_path / 'nowhere'}", "cannot be read .No such file"),
        (f"folder:{tmp_path / 'file'}", "it is a text file"),
        ("folder:", "names no path"),
        ("foldr:x", "choose from .*folder:PATH, npz:PATH"),
    ):
        with pytest.raises(UserError, match=said):
            load(spec, tmp_path, "train")


def test_changed_files_are_another_set_and_a_damaged_one_is_refused(flowers, tmp_path):
    root = tmp_path / "own"
    shutil.copytree(flowers, root)
    before = load(f"folder:{root}", tmp_path, "train")
    save(root / "train" / "rose" / "1.png", picture())
    after = load(f"folder:{root}", tmp_path, "train")
    assert data.difference(before.fingerprint, after.fingerprint)
    assert after.images.path != before.images.path
    with open(after.images.path, "r+b") as file:
        file.seek(-(9 << 20), os.SEEK_END)
        file.write(b"x")
    with pytest.raises(UserError, match="was changed: delete it"):
        load(f"folder:{root}", tmp_path, "train")


def test_a_killed_preparation_goes_on(tmp_path):
    root, place = tmp_path / "own", tmp_path / "data"
    for i in range(192):
        save(root / "train" / "ab"[i % 2] / f"{i}.png", picture())
    for name in ("a/0.png", "b/1.png"):
        save(root / "test" / name, picture())

    def kill_at(name, done, total):
        if done == 128:
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        load(f"folder:{root}", place, "train", how=Preparation(progress=kill_at))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert not list(place.glob("*.beton"))
    (journal,) = place.glob(".*-journal")
    with open(journal, "ab") as file:
        file.write(b'{"sizes": [3072, 30')  # as a kill leaves it
    (place / ".own-train-32px-0123456789ab.raw").touch()  # of the folder as it was before
    seen, said = [], []
    how = Preparation(progress=lambda *shown: seen.append(shown), say=said.append)
    load(f"folder:{root}", place, "train", how=how)
    assert said == ["own train: 128 pictures were prepared before"]
    assert seen == [("own train", 192, 192)]
    whole = load(f"folder:{root}", tmp_path / "anew", "train")
    found = load(f"folder:{root}", place, "train")
    assert found.fingerprint == whole.fingerprint
    assert found.images.path.read_bytes() == whole.images.path.read_bytes()
    stem = found.images.path.stem
    for name in (f".{stem}.raw-journal", f".{stem}.json-01234567"):  # killed with the file in place
        (place / name).touch()
    load(f"folder:{root}", place, "train")
    assert not [path for path in place.iterdir() if path.name.startswith(".")]


@needs_ffcv
def test_ffcv_itself_reads_what_is_prepared(flowers, tmp_path):
    from ffcv.reader import Reader

    images = load(f"folder:{flowers}", tmp_path, "test", how=Preparation(resolution=40)).images
    reader = Reader(str(images.path))
    assert reader.num_samples == 9 and reader.field_names == ["image", "label", "index"]
    assert reader.metadata["f1"].tolist() == images.labels.tolist()
    content = images.path.read_bytes()
    place = int(reader.metadata["f0"]["data_ptr"][4])
    assert content[place : place + 4800] == images[4].tobytes()
    assert reader.alloc_table["size"].tolist() == [4800] * 9


def test_a_set_written_as_pictures_gives_its_batches(tmp_path):
    digits = {split: load("digits", tmp_path, split) for split in ("train", "test")}
    for split, part in digits.items():
        for i in range(0, len(part.labels), 12):
            save(
                tmp_path / "own" / split / str(part.labels[i]) / f"img-{i}.png",
                Image.fromarray(part.images[i]),
            )
    rows = np.arange(0, len(digits["train"].labels), 12)
    own = load(f"folder:{tmp_path / 'own'}", tmp_path, "train")
    order = Order(seed=2, train_index=np.arange(len(rows)), batch_size=32)
    expected = make_loader(
        "resident", digits["train"].images[rows], digits["train"].labels[rows], order,
        device="cpu", flip=False, cache_dir=tmp_path, name="digits",
    )  # fmt: skip
    found = make_loader(
        "resident", own.images, own.labels, order, device="cpu", flip=False,
        cache_dir=tmp_path, name=own.name,
    )  # fmt: skip
    for a, b in zip(expected.epoch(1), found.epoch(1), strict=True):
        assert torch.equal(a.x, b.x) and torch.equal(a.y, b.y)


@pytest.mark.parametrize("left", [b"", pickle.dumps(("a", "b"))[:-3]])
def test_a_worker_ends_in_silence_with_who_asks_it(left):
    """Killed between two questions, or in one."""
    done = subprocess.run(pictures.PROGRAM, input=left, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
