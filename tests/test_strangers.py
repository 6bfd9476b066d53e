"""What strangers send is data: refused in a line, in bounded memory and time, and never run.

SECURITY.md promises it, and names these tests.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import socket
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from fastuiat import build_model
from fastuiat.data.beton_file import _ROWS_BEGIN, SAMPLE
from tests.forked import ROOT, Forked

pytestmark = pytest.mark.slow

MB = 1 << 20
TERABYTE = 1 << 40
EVIL = (
    '\x1b[31m\x1b]0;own\x07\u202e<script>alert(1)</script>"><img src=x onerror=a()>$\\frac{ [red]'
)
EVAL = ("--arch", "wrn-10-1", "--attacks", "clean", "--n", "8")
BATCH = "cifar-10-batches-py/test_batch"


@pytest.fixture(scope="module")
def forked() -> Iterator[Forked]:
    with Forked() as run:
        yield run


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.pt"
    torch.save(build_model("wrn-10-1").state_dict(), path)
    return path


@pytest.fixture
def ended(forked, tmp_path):
    """ended(*WORDS): how a command in tmp_path ended, in time and in memory."""

    def run(*words: Any) -> Any:
        end = forked(words, tmp_path)
        assert end.code is not None, (words, "does not end")
        assert end.peak < 700, (words, end.peak)
        assert "Traceback" not in end.err, end.err
        assert all(c.isprintable() or c == "\n" for c in end.out + end.err), (end.out, end.err)
        return end

    return run


@pytest.fixture
def refused(ended):
    """refused(*WORDS): the only line of a command that is refused."""

    def run(*words: Any) -> str:
        end = ended(*words)
        assert end.code == 2 and end.err.count("\n") == 1, (words, end)
        assert end.err.startswith("fastuiat: "), end.err
        return end.err

    return run


@pytest.fixture
def read_by(refused, net, tmp_path):
    """By kind of file: what is said of one where that kind is expected."""
    out = ("--out", "out")

    def checkpoint(path: Path) -> str:
        return refused("eval", path, "--dataset", "digits", *EVAL, *out)

    def in_set(name: str, place: str) -> Callable[[Path], str]:
        def read(path: Path) -> str:
            there = tmp_path / "data" / place
            there.parent.mkdir(parents=True, exist_ok=True)
            if there.is_symlink() or there.exists():
                there.unlink()
            shutil.move(path, there)
            if name == "fashion-mnist":
                beside = gzip.compress(struct.pack(">HBBI", 0, 8, 1, 2) + b"\0\1")
                (there.parent / "t10k-labels-idx1-ubyte.gz").write_bytes(beside)
            flags = ("--data-dir", "data", "--unchecked-data")
            return refused("eval", net, "--dataset", name, *EVAL, *flags, *out)

        return read

    return {
        "pt": checkpoint,
        "npz": lambda path: refused("eval", net, "--dataset", f"npz:{path}", *EVAL, *out),
        "extra": lambda path: refused(
            "train", "--dataset", "digits", "--arch", "wrn-10-1", "--extra-data", path, *out
        ),
        "batch": in_set("cifar10", BATCH),
        "tar": in_set("cifar10", "cifar-10-python.tar.gz"),
        "idx": in_set("fashion-mnist", "FashionMNIST/raw/t10k-images-idx3-ubyte.gz"),
        "mat": in_set("svhn", "test_32x32.mat"),
        "records": lambda path: refused("bench", "compare", path, "--baseline", "paper"),
        "config": lambda path: refused("train", "--config", path, *out),
    }


def zeros(begin: bytes, megabytes: int, wbits: int = -15) -> bytes:
    """Deflated: `begin`, and then so many zeros, a thousand times smaller, made in no time."""
    packer = zlib.compressobj(9, wbits=wbits)
    packed = packer.compress(begin) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return packed + block * megabytes + packer.flush()


def zipped(*members: tuple[str, bytes, int]) -> bytes:
    """A zip of (name, deflated content, bytes that it claims to be), whose checksums are 0."""
    file, directory = b"", b""
    for name, content, claimed in members:
        extra = struct.pack("<HHQQ", 1, 16, claimed, len(content))
        about = struct.pack("<HHHHIII", 0, 8, 0, 33, 0, 0xFFFFFFFF, 0xFFFFFFFF)
        about += struct.pack("<HH", len(name), len(extra))
        directory += b"PK\1\2\x2d\0\x2d\0" + about + bytes(10) + struct.pack("<I", len(file))
        directory += name.encode() + extra
        file += b"PK\3\4\x2d\0" + about + name.encode() + extra + content
    count = len(members)
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(directory), len(file), 0)
    return file + directory + b"PK\5\6" + end


def huge_directory(path: Path, size: int) -> None:
    """A sparse file whose end says that it is a zip, and that half of it is a table of contents."""
    end = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, size // 2, 100)
    end += struct.pack("<4sIQI", b"PK\6\7", 0, size - 98, 1)
    end += struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 65535, 65535, 2**32 - 1, 2**32 - 1, 0)
    sparse(path, b"PK\3\4", size, end)


def sparse(path: Path, begin: bytes = b"", size: int = TERABYTE, end: bytes = b"") -> Path:
    with open(path, "wb") as file:
        file.write(begin)
        file.truncate(size)
        file.seek(size - len(end))
        file.write(end)
    return path


def npy(shape: tuple[int, ...]) -> bytes:
    """The header of an .npy of bytes."""
    file = io.BytesIO()
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def checkpoint(pickled: bytes) -> bytes:
    """What torch.save writes, around another pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net/data.pkl", pickled)
        archive.writestr("net/version", "3\n")
    return file.getvalue()


def old_checkpoint(*pickles: bytes) -> bytes:
    """The same of the time before 1.6: a number, a version, a machine, and then the content."""
    begin = (0x1950A86A20F9469CFC6C, 1001, {})
    return b"".join([*(pickle.dumps(value, 2) for value in begin), *pickles])


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type = size, kind
    return member.tobuf(tarfile.GNU_FORMAT)


def called(name: str, number: int) -> bytes:
    """Pickled: `name`, called with a number."""
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + pickle.dumps((number,), 2)[2:-1] + b"R"


class Code:
    """Runs a command when it is unpickled by whoever trusts it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch ran",)


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


def picture(path: Path, width: int, height: int, megabytes: int, colour: int = 2) -> None:
    """A PNG of zeros that says what it is."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zeros(b"", megabytes, 15)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


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
    assert ended(*PREPARE).code == 0
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
        assert ended(*PREPARE).code == 0
    beton.unlink()
    beton.with_suffix(".lock").unlink()
    beton.with_suffix(".lock").symlink_to(outside / "new")
    ended(*PREPARE)
    assert [path.name for path in outside.iterdir()] == ["file"]


def test_a_prepared_file_of_others(pictures, ended, refused, tmp_path):
    """A .beton beside its right checksum: what it says of its images cannot be."""
    assert ended(*PREPARE).code == 0
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


@pytest.fixture(scope="module")
def run_folder(forked, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("of_a_stranger")
    words = "train --dataset digits --arch wrn-10-1 --no-compile --max-steps 1 --batch-size 32"
    more = "--val-size 16 --log-every 1 --loader resident --out run"
    assert forked([*words.split(), *more.split()], folder).code == 0
    words = "eval run --attacks clean --n 8"
    assert forked(words.split(), folder).code == 0
    return folder / "run"


def test_hard_links_in_a_run_folder(run_folder, ended, tmp_path):
    """What is written anew is nobody else's file under another name."""
    for name in ("metrics.jsonl", ".lock"):
        shutil.copytree(run_folder, tmp_path / name / "run")
        (tmp_path / "mine").write_text('{"mine": 1}\n')
        place = tmp_path / name / "run" / name
        place.unlink(missing_ok=True)
        os.link(tmp_path / "mine", place)
        ended("train", "--resume", f"{name}/run")
        assert (tmp_path / "mine").read_text() == '{"mine": 1}\n'


def test_a_run_folder_of_others_is_data(run_folder, ended, tmp_path):
    """Pipes, links to themselves and texts without end in place of its files."""
    report, resume, evaluate = ("report", "run"), ("train", "--resume", "run"), ("eval", "run")
    for name, words in (
        ("config.json", report),
        ("config.json", resume),
        ("config.json", (*evaluate, *EVAL[2:])),
        ("environment.json", report),
        ("environment.json", resume),
        ("metrics.jsonl", report),
        ("eval/clean_n8.json", report),
        ("eval/clean_n8.json", (*evaluate, *EVAL[2:])),
    ):
        for what in ("deep", "pipe", "itself"):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            shutil.copytree(run_folder, tmp_path / "run")
            if words is report:
                shutil.rmtree(tmp_path / "run" / "checkpoints")  # it would compute pictures
            file = tmp_path / "run" / name
            file.unlink()
            if what == "pipe":
                os.mkfifo(file)
            elif what == "itself":
                file.symlink_to(file.name)
            else:
                file.write_text("[" * 10**6)
            end = ended(*words)
            assert end.code in (0, 2), (name, what, words, end.err)
            assert end.code == 0 or end.err.count("\n") == 1, end.err


def test_what_a_terminal_or_a_page_obeys(run_folder, ended, tmp_path):
    """Escape sequences, characters that turn the line round, scripts and formulas in every text."""
    shutil.copytree(run_folder, tmp_path / "run")
    run = tmp_path / "run"
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"method": EVIL, "recipe": EVIL}))
    (run / "environment.json").write_text(json.dumps({"threads": 1, EVIL: EVIL, "cpu": {EVIL: 1}}))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps(line | {EVIL: 1.0}) + "\n" for line in lines]
    (run / "metrics.jsonl").write_text("".join(lines))
    record = json.loads((run / "eval" / "clean_n8.json").read_text())
    changed = record | {"attack": EVIL, "device": EVIL, "checkpoint": {"chosen": [EVIL]}}
    (run / "eval" / "clean_n8.json").write_text(json.dumps(changed))
    assert ended("report", "run").code == 0
    page = (run / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page  # it is there, and does nothing
    for obeyed in ("<script", "<img", "\x1b", "\x07", "\u202e"):
        assert obeyed not in page, obeyed
    for words in (("train", "--resume", "run"), ("eval", "run", *EVAL[2:])):
        ended(*words)  # which holds what it says to printable letters
    shutil.move(run, tmp_path / EVIL.replace("/", ""))
    assert ended("report", EVIL.replace("/", "")).code == 0
    state = build_model("wrn-10-1").state_dict() | {EVIL: torch.zeros(3, 3)}
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    safetensors.torch.save_file(state, tmp_path / "net.safetensors", {"arch": EVIL})
    ended("eval", "net.safetensors", "--dataset", "digits", *EVAL)


def test_each_promise_is_held_by_a_test():
    text = (ROOT / "SECURITY.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", text)
    assert len(named) > 10
    for file, test in named:
        tree = ast.parse((ROOT / file).read_text())
        tests = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert test in tests, f"{file} has no {test}"
    own = ast.parse(Path(__file__).read_text())
    tests = {node.name for node in own.body if isinstance(node, ast.FunctionDef)}
    here = {
        test
        for test in tests
        if test.startswith("test_") and test != "test_each_promise_is_held_by_a_test"
    }
    assert here <= {test for file, test in named if file == "tests/test_strangers.py"}
