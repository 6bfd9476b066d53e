"""What strangers send is data: no code of it runs, and no size that it claims is believed."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import shutil
import socket
import struct
import tarfile

import numpy as np
import pytest

from tests.strangers.crafted import (
    BATCH,
    EVAL,
    MB,
    TERABYTE,
    Code,
    called,
    checkpoint,
    header,
    huge_directory,
    npy,
    old_checkpoint,
    sparse,
    zeros,
    zipped,
)  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_no_code_runs(protocol, read_by, tmp_path):
    """In no place where a pickle can be; the same line, run by Python's own, does run."""
    code, images = pickle.dumps(Code(), protocol), np.zeros((2, 32, 32, 3), np.uint8)
    inside = pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [Code()]}, protocol)
    file = tmp_path / "file"
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        member = tarfile.TarInfo(BATCH)
        member.size = len(code)
        tar.addfile(member, io.BytesIO(code))
    objects = io.BytesIO()
    np.savez(objects, image=images, label=np.array([Code(), Code()], object))
    for kind, content in (
        ("pt", code),
        ("pt", checkpoint(code)),
        ("pt", old_checkpoint(code)),
        ("batch", code),
        ("batch", inside),
        ("npz", objects.getvalue()),
    ):
        file.write_bytes(content)
        read_by[kind](file)
    shutil.rmtree(tmp_path / "data")
    file.write_bytes(archive.getvalue())
    read_by["tar"](file)
    assert not list(tmp_path.rglob("ran"))


def test_zeros_in_a_small_file(read_by, tmp_path):
    """Gigabytes of them, in every kind of file that is packed."""
    file, gigabytes = tmp_path / "file", 4096
    count = gigabytes * MB // 3072
    size = len(npy((count, 32, 32, 3))) + count * 3072
    images = zeros(npy((count, 32, 32, 3)), gigabytes)
    labels = io.BytesIO()
    np.save(labels, np.zeros(count, np.uint8))
    packed = zeros(labels.getvalue()[:128], count // MB + 1)
    for kind, content in (
        ("npz", zipped(("image.npy", images, size), ("label.npy", packed, count + 128))),
        ("extra", zipped(("image.npy", images, size), ("label.npy", packed, count + 128))),
        ("pt", zipped(("net/data.pkl", zeros(b"\x80\x02", gigabytes), gigabytes * MB + 2))),
        ("pt", zipped(("net/data.pkl", zeros(b"\x80\x02", gigabytes), 1000))),
        ("tar", zeros(header("x", gigabytes * MB), gigabytes, 31)),
        ("tar", zeros(header("x", gigabytes * MB, tarfile.XHDTYPE), gigabytes, 31)),
        ("tar", zeros(header("x", gigabytes * MB, tarfile.GNUTYPE_LONGNAME), gigabytes, 31)),
        ("idx", zeros(struct.pack(">HBBIII", 0, 8, 3, 10**6, 28, 28), gigabytes, 31)),
    ):
        file.write_bytes(content)
        read_by[kind](file)
    begin = b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"
    part = zeros(struct.pack("<II", 14, 300 * MB), 300, 15)
    file.write_bytes(begin + 4 * (struct.pack("<II", 15, len(part)) + part))
    read_by["mat"](file)


def test_sizes_that_lie(read_by, tmp_path):
    """Of 10¹² images, 10⁹ classes, headers of 2⁶³ bytes: nothing makes room for them."""
    file = tmp_path / "file"
    labels = np.array([*range(19), 10**9])
    images = np.zeros((20, 32, 32, 3), np.uint8)
    many = io.BytesIO()
    np.savez(many, image=images, label=labels, image_test=images, label_test=labels)
    label = ("label.npy", zeros(npy((20,)), 0), 148)
    claims = json.dumps({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})
    for kind, content in (
        ("pt", struct.pack("<Q", 1 << 63) + b"{}"),
        ("pt", struct.pack("<Q", len(claims)) + claims.encode()),
        ("npz", many.getvalue()),
        ("npz", zipped(("image.npy", zeros(npy((10**12, 32, 32, 3)), 1), 2**50), label)),
        ("tar", gzip.compress(header(BATCH, 1 << 60))),
        ("idx", gzip.compress(struct.pack(">HBB", 0, 8, 255) + b"\xff" * 1020)),
        ("mat", b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + struct.pack("<II", 14, 2**32 - 1)),
    ):  # fmt: skip
        file.write_bytes(content)
        read_by[kind](file)


def test_sparse_files(read_by, tmp_path):
    """A terabyte that takes no room on the disk is not gone through, nor read at once."""
    file = tmp_path / "file"
    for kind, begin in (
        ("pt", b""),
        ("pt", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."),
        ("pt", struct.pack("<Q", 1 << 39) + b"{"),
        ("npz", b"PK\3\4"),
        ("batch", b""),
        ("mat", b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM"),
        ("records", b"{"),
        ("config", b"{"),
    ):
        read_by[kind](sparse(file, begin))
    for size in (20 << 30, TERABYTE):
        for kind in ("pt", "npz", "extra"):
            huge_directory(file, size)
            read_by[kind](file)


def test_pickles_without_end(read_by, tmp_path):
    """Few bytes that make much, or that are nested as deep as a million."""
    file = tmp_path / "file"
    key, set_item = b"\x80\x02}U\x01a", b"s."
    values = [
        b"(" + b"]" * (10 * MB) + b"l",
        called("torch.Tensor", 10**9),
        called("builtins.bytearray", 10**9),
        b")" + b"\x85" * 10**6,
        *(
            f"cbuiltins\n{kind}\n".encode() + called("builtins.range", 10**9) + b"\x85R"
            for kind in ("list", "frozenset")
        ),
    ]
    for value in values:
        pickled = key + value + set_item
        file.write_bytes(checkpoint(pickled))
        read_by["pt"](file)
    for content in (
        old_checkpoint(key + values[0] + set_item),
        b"\x80\x04}\x8c\x01a" + values[0] + set_item,
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b".",
        b"\x80\x04\x8d" + struct.pack("<Q", 1 << 62) + b".",
    ):
        file.write_bytes(content)
        read_by["pt"](file)
    file.write_bytes(key + values[0] + set_item)
    read_by["batch"](file)


def test_texts_nested_a_million_deep(read_by, tmp_path):
    file = tmp_path / "file.json"
    for text in ("[" * 10**6, '{"a":' * 10**6):
        for kind in ("records", "config"):
            file.write_text(text)
            read_by[kind](file)
    file.write_bytes(struct.pack("<Q", 10**6 + 5) + b'{"a":' + b"[" * 10**6)
    read_by["pt"](file)


@pytest.mark.parametrize("what", ["pipe", "device", "itself", "socket"])
def test_what_is_no_file(what, read_by, tmp_path, monkeypatch):
    """Nothing waits for a pipe's other end, nor reads a device for ever."""
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    for kind in read_by if what == "pipe" else ("pt", "extra", "records", "config"):
        file = tmp_path / "file"
        file.unlink(missing_ok=True)
        if what == "pipe":
            os.mkfifo(file)
        elif what == "socket":
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind("file")
        else:
            file.symlink_to("/dev/zero" if what == "device" else "file")
        read_by[kind](file)


def test_an_archive_leads_nowhere_else(net, refused, tmp_path):
    """Links, pipes, devices and other folders' names in a tar are no data."""
    (tmp_path / "data").mkdir()
    for kind, target in (
        (tarfile.SYMTYPE, "/etc/passwd"),
        (tarfile.SYMTYPE, "test_batch"),
        (tarfile.LNKTYPE, BATCH),
        (tarfile.FIFOTYPE, ""),
        (tarfile.CHRTYPE, ""),
    ):
        with tarfile.open(tmp_path / "data" / "cifar-10-python.tar.gz", "w:gz") as tar:
            member = tarfile.TarInfo(BATCH)
            member.type, member.linkname = kind, target
            tar.addfile(member)
            member = tarfile.TarInfo("../../outside")
            member.size = 4
            tar.addfile(member, io.BytesIO(b"evil"))
        said = refused("eval", net, "--dataset", "cifar10", *EVAL, "--data-dir", "data")
        assert "is no file of CIFAR's size, or not there" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
