"""Folders of pictures, and what was prepared of them, that strangers made."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct

import pytest
from PIL import Image

from fastuiat.data.beton_file import _ROWS_BEGIN, SAMPLE
from tests.strangers.crafted import picture

pytestmark = pytest.mark.slow


@pytest.fixture
def pictures(tmp_path):
    """A folder of pictures in two classes, `a` and `b`."""
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (40, 40), (i, i, i)).save(tmp_path / "set" / name / f"{i}.png")
    return tmp_path / "set"


PREPARE = ("data", "prepare", "folder:set", "--data-dir", "data")


def test_pictures_made_to_fill_memory(pictures, refused):
    """10⁵ × 10⁵ pixels, a thousand scans of one JPEG, ends that are missing."""
    odd = pictures / "a" / "odd.png"
    for size in ((10**5, 10**5), (2**31 - 1, 2**31 - 1), (2**28, 1)):
        picture(odd, *size, 8)
        assert "odd.png cannot be read" in refused(*PREPARE)
    odd.write_bytes(odd.read_bytes()[:60])
    assert "odd.png cannot be read" in refused(*PREPARE)
    odd.unlink()
    buffer = io.BytesIO()
    Image.new("RGB", (4000, 4000)).save(buffer, "JPEG", progressive=True)
    whole = buffer.getvalue()
    scan = whole[whole.rindex(b"\xff\xda") : -2]
    (pictures / "a" / "odd.jpg").write_bytes(whole[:-2] + 3000 * scan + whole[-2:])
    assert "scans" in refused(*PREPARE)


def test_links_and_pipes_among_pictures(pictures, refused):
    odd = pictures / "a" / "odd"
    for target, said in (("/", "a link to a folder"), (".", "a link to a folder")):
        odd.symlink_to(target)
        assert said in refused(*PREPARE)
        odd.unlink()
    odd = odd.with_suffix(".png")
    os.mkfifo(odd)
    assert "a named pipe" in refused(*PREPARE)
    odd.unlink()
    for target, said in (("/dev/zero", "a device"), ("odd.png", "cannot be read")):
        odd.symlink_to(target)
        assert said in refused(*PREPARE)
        odd.unlink()


def test_nothing_is_written_through_links(pictures, ended, tmp_path):
    """A folder of data that came with links, soft and hard, where files are to be made."""
    assert ended(*PREPARE).returncode == 0
    (beton,) = (tmp_path / "data").glob("set-train-*.beton")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    for make in (os.symlink, os.link):
        beton.unlink()
        places = [beton.with_name(f".{beton.stem}.raw{end}") for end in ("", "-journal")]
        for place in places:
            make(outside / "file", place)
        ended(*PREPARE)
        assert (outside / "file").read_text() == "mine"
        for place in places:
            place.unlink(missing_ok=True)
        assert ended(*PREPARE).returncode == 0
    beton.unlink()
    beton.with_suffix(".lock").unlink()
    beton.with_suffix(".lock").symlink_to(outside / "new")
    ended(*PREPARE)
    assert [path.name for path in outside.iterdir()] == ["file"]


def test_a_prepared_file_of_others(pictures, ended, refused, tmp_path):
    """A .beton beside its right checksum: what it says of its images cannot be."""
    assert ended(*PREPARE).returncode == 0
    (path,) = (tmp_path / "data").glob("set-train-*.beton")
    beside = path.with_suffix(".json")
    whole, told = path.read_bytes(), json.loads(beside.read_text())
    row, label = _ROWS_BEGIN, _ROWS_BEGIN + SAMPLE.fields["label"][1]
    for place, form, value in (
        (8, "<Q", 10**12),  # images
        (16, "<Q", 1 << 62),  # the end of them
        (row, "<B", 7),  # mode
        (row + 1, "<H", 65535),  # width
        (row + 5, "<Q", 1 << 63),  # place
        (label, "<q", 10**12),
        (label, "<q", -1),
    ):
        changed = bytearray(whole)
        struct.pack_into(form, changed, place, value)
        path.write_bytes(changed)
        beside.write_text(json.dumps(told | {"sum": hashlib.sha256(changed).hexdigest()}))
        assert "truncated or was" in refused(*PREPARE)
    path.unlink()
    os.mkfifo(path)
    assert path.name in refused(*PREPARE)
