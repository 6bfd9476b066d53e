"""What other people store is read as plain values, or called what it is, and never run."""

from __future__ import annotations

import argparse
import collections
import datetime
import gzip
import io
import os
import pathlib
import pickle
import tarfile
import warnings
import zipfile
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fastuiat
from fastuiat.config import UserError
from fastuiat.training.outline import nets_in, outline
from fastuiat.training.reading import Settings, read_with_sha256

ARCH = "wrn-10-1"


class Weird:
    """A class of somebody's own project."""


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch exploded",)


@pytest.fixture(scope="module")
def net():
    return fastuiat.build_model(ARCH)


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """refused(): what load_checkpoint says of net.pt, in one line, with no warning beside it."""
    monkeypatch.chdir(tmp_path)

    def load(name: str = "net.pt") -> str:
        with warnings.catch_warnings(), pytest.raises(UserError) as error:
            warnings.simplefilter("error")
            fastuiat.load_checkpoint(name, ARCH)
        assert "\n" not in str(error.value) and not pathlib.Path("exploded").exists()
        return str(error.value)

    return load


VALUES = {
    "scalar": np.float64(84.1), "float": np.float32(3), "integer": np.int64(3),
    "bool": np.bool_(True), "text": np.str_("x"), "array": np.arange(4),
    "table": np.ones((2, 3), np.float32),
    "counter": collections.Counter("aab"), "default": collections.defaultdict(list, {"a": [1]}),
    "ordered": collections.OrderedDict(a=1), "path": pathlib.Path("/a/b"), "set": {1, 2},
    "size": torch.Size([1, 2]), "dtype": torch.float16, "device": torch.device("cuda:0"),
    "version": torch.__version__, "bytes": b"x", "none": None,
    "time": datetime.datetime(2020, 1, 2), "complex": 1j,
}  # fmt: skip


def test_plain_values_of_other_kinds_are_read(net, tmp_path):
    args = argparse.Namespace(lr=0.1, out=pathlib.Path("runs"), sizes=[1, 2])
    torch.save(VALUES | {"net": net.state_dict(), "args": args}, tmp_path / "net.pt")
    content, _ = read_with_sha256(tmp_path / "net.pt")
    assert isinstance(content["args"], Settings) and content["args"].lr == 0.1
    for name, value in VALUES.items():
        expected = "/a/b" if name == "path" else value
        found = content[name]
        same = (
            np.array_equal(found, expected) if isinstance(value, np.ndarray) else found == expected
        )
        assert same, name
    _, info = fastuiat.load_checkpoint(tmp_path / "net.pt", ARCH)
    assert info["nest"] == "net" and set(info["left_out"]) == {*VALUES, "args"}
    assert not [g for g in torch.serialization.get_safe_globals() if isinstance(g, tuple)]


@pytest.mark.parametrize(
    "content, named",
    [
        (lambda net: {"epoch": 1, "network": net.state_dict(), "cfg": Weird()}, "Weird"),
        (lambda net: {"nets": {"student": net.state_dict()}, "cfg": Weird()}, "Weird"),
        (lambda net: {"model": net}, "WideResNet"),
        (lambda net: net, "WideResNet"),
    ],
)
def test_the_line_that_is_advised_works(net, refused, content, named):
    """It is run here, on a file of this test's own."""
    torch.save(content(net), "net.pt")
    said = refused()
    assert "refused unread" in said and named in said.partition(" and is refused")[0]
    if isinstance(content(net), dict):
        assert all(key in said for key in content(net))
    line = said[said.index("torch.save(") : said.index(" keeps the weights")]
    exec(line, {"torch": torch})
    loaded, _ = fastuiat.load_checkpoint("net-weights.pt", ARCH)
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in loaded.state_dict().items())


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_pickles_of_other_protocols(net, refused, protocol):
    torch.save({"weights": net.state_dict()}, "net.pt", pickle_protocol=protocol)
    try:
        fastuiat.load_checkpoint("net.pt", ARCH)
    except UserError:
        said = refused()
        assert f"protocol {protocol}" in said and "['weights']" in said
    pathlib.Path("net.pt").write_bytes(pickle.dumps({"net": {"a": 1}, "acc": 2}, protocol))
    assert "a Python pickle, not written by torch.save; its keys are net, acc" in refused()


def test_code_is_named_and_no_way_to_run_it_is_given(net, refused):
    torch.save({"net": net.state_dict(), "x": Bomb()}, "net.pt")
    said = refused()
    assert "refused unread; its keys are net, x: it would run posix.system" in said
    assert "weights_only" not in said
    for content in (Bomb(), {"model": Bomb()}):
        pathlib.Path("net.pt").write_bytes(pickle.dumps(content))
        assert "it would run posix.system" in refused()


def test_a_file_of_before_1_6_is_read_without_a_warning(net, tmp_path):
    path = tmp_path / "net.pth.tar"
    torch.save({"net": net.state_dict()}, path, _use_new_zipfile_serialization=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded, info = fastuiat.load_checkpoint(path, ARCH)
    assert info["nest"] == "net" and torch.equal(loaded.fc.weight, net.fc.weight)
    whole = path.read_bytes()
    for cut in (10, 200, 9000, len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="is truncated, damaged or no checkpoint"):
            fastuiat.load_checkpoint(path, ARCH)


def tarred(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def arrays(*names: str) -> bytes:
    buffer = io.BytesIO()
    if names:
        np.savez(buffer, **dict.fromkeys(names, np.zeros(3)))
    else:
        np.save(buffer, np.zeros(3))
    return buffer.getvalue()


OTHERS = {
    "a web page (HTML)": lambda: b"<!DOCTYPE html><html><title>Quota exceeded</title></html>",
    "a Git-LFS pointer, no checkpoint: it stands for a file that `git lfs pull`": lambda: (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n"
    ),
    "a NumPy file of one array": arrays,
    "a NumPy file of several arrays": lambda: arrays("a", "b"),
    "a JSON file": lambda: b'{"acc": 0.5}',
    "a text file": lambda: b"model: wrn\nlr: 0.1\n",
    "a gzip file, no checkpoint: unpack it": lambda: gzip.compress(b"x" * 99),
    "a tar archive, no checkpoint: unpack it": lambda: tarred(a=b"x"),
    "PyTorch file of before version 0.1.10": lambda: tarred(
        sys_info=b"", pickle=b"", storages=b"", tensors=b""
    ),
    "a zip archive, no checkpoint: unpack it": lambda: zipped(a=b"x"),
    "a PDF document": lambda: b"%PDF-1.7\n%\xe2\xe3",
    "a PNG picture": lambda: b"\x89PNG\r\n\x1a\n" + bytes(99),
    "an HDF5 file": lambda: b"\x89HDF\r\n\x1a\n" + bytes(99),
    "a MessagePack file, as Flax writes": lambda: b"\x81\xa6params\x81\xa4conv\xc7\x05\x01\x93",
    "an empty file": lambda: b"",
    "truncated, damaged or no checkpoint": lambda: b"junk\0" * 99,
}  # fmt: skip


@pytest.mark.parametrize("words", OTHERS)
def test_other_files_are_called_what_they_are(refused, words):
    pathlib.Path("net.pt").write_bytes(OTHERS[words]())
    assert words in refused()


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_scripted_program_and_other_contents_of_torch_save(net, refused):
    torch.jit.save(torch.jit.script(torch.nn.Conv2d(3, 4, 3)), "net.pt")
    assert "a TorchScript program, no checkpoint: torch.save(torch.jit.load(" in refused()
    for content, word in ((torch.zeros(3), "Tensor"), ([net.state_dict()], "list")):
        torch.save(content, "net.pt")
        assert f"holds a {word} and no state dict" in refused()
    torch.save({"optimizer": {"state": {}}, "epoch": 3}, "net.pt")
    assert "no state dict: its keys are optimizer, epoch" in refused()


def test_what_is_no_file_is_never_opened(refused):
    os.mkfifo("net.pt")
    assert "a named pipe, no checkpoint" in refused()
    assert "a device, no checkpoint" in refused("/dev/zero")
    os.mkdir("folder")
    assert "is it a run folder?" in refused("folder")
    assert "does not exist" in refused("nothing")
    assert "cannot be read: File name too long" in refused("x" * 300)


def test_safetensors_must_be_exact(net, refused):
    state = {k: v.contiguous() for k, v in net.state_dict().items()}
    save_file(state, "net.safetensors")
    whole = pathlib.Path("net.safetensors").read_bytes()
    length = int.from_bytes(whole[:8], "little")
    huge = (
        whole[:8] + whole[8 : 8 + length].replace(b"[10,64]", b"[99,64]", 1) + whole[8 + length :]
    )
    for content in (whole[:-1], whole + b"x", (10**12).to_bytes(8, "little") + whole[8:], huge):
        pathlib.Path("net.safetensors").write_bytes(content)
        assert "truncated or no safetensors file" in refused("net.safetensors")
    pathlib.Path("net.safetensors").write_bytes(b"<html></html>")
    assert "it is a web page" in refused("net.safetensors")


@pytest.mark.parametrize("protocol", range(6))
def test_an_outline_runs_nothing(net, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = {"a": [1, (2.5, "x")], "bomb": Bomb(), "weird": Weird(), "set": {1}, "b": b"y" * 300}
    found = outline(pickle.dumps(content, protocol))
    assert list(found.content) == list(content) and "posix.system" in found.names
    assert found.content["a"] == [1, (2.5, "x")] and not list(nets_in(found.content))
    assert not (tmp_path / "exploded").exists()
    for broken in (
        b"",
        b"\x80\x02.",
        b"junk",
        pickle.dumps(content, protocol)[:-5],
        b"\x80\x02h\x05.",
    ):
        with pytest.raises(ValueError):
            outline(broken)


def test_plain_values_of_python_and_numpy_are_read(tmp_path):
    net = fastuiat.build_model("wrn-10-1").state_dict()
    beside = {
        "format": np.zeros(3), "empty": np.zeros((0, 2)), "words": np.array(["a", "b"]),
        "range": range(3), "slice": slice(1, 4, 2), "frozen": frozenset({1, 2}),
    }  # fmt: skip
    torch.save({"net": net, **beside}, tmp_path / "net.pt")
    content, _ = read_with_sha256(tmp_path / "net.pt")
    assert (content["range"], content["slice"]) == (range(3), slice(1, 4, 2))
    assert content["frozen"] == {1, 2} and content["empty"].shape == (0, 2)
    assert fastuiat.load_checkpoint(tmp_path / "net.pt", "wrn-10-1")[1]["nest"] == "net"
