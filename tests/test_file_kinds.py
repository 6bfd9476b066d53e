"""Files are called what they are, each made by its own format's writer."""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from scipy.io import savemat
from torch import nn

from fastuiat import file_kinds
from fastuiat.file_kinds import kind_of, reason_of

NET = {"weight": torch.zeros(3)}


def saved(write, *args, **kwargs):
    buffer = io.BytesIO()
    write(buffer, *args, **kwargs)
    return buffer.getvalue()


def picture(form):
    return saved(lambda file: Image.new("RGB", (4, 4)).save(file, form))


def tarred(mode):
    def write(file):
        with tarfile.open(fileobj=file, mode=mode) as tar:
            tar.addfile(tarfile.TarInfo("a/b"), io.BytesIO())

    return saved(write)


def zipped(*names):
    def write(file):
        with zipfile.ZipFile(file, "w") as archive:
            for name in names:
                archive.writestr(name, "x")

    return saved(write)


def program(file):
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.zeros(1, 2),)), file)


CASES = {
    "web page": lambda: b"\n<!DOCTYPE html><html><title>Quota exceeded</title></html>",
    "web page ": lambda: b"<!-- x -->\n<HTML lang='en'>",
    "XML": lambda: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "Git-LFS pointer": lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "one array": lambda: saved(np.save, np.zeros(3)),
    "several arrays": lambda: saved(np.savez, image=np.zeros(3)),
    "several arrays ": lambda: saved(np.savez_compressed, image=np.zeros(3)),
    "PyTorch file": lambda: saved(lambda file: torch.save(NET, file)),
    "before 1.6": lambda: saved(
        lambda file: torch.save(NET, file, _use_new_zipfile_serialization=False)
    ),
    "TorchScript": lambda: saved(lambda file: torch.jit.save(torch.jit.script(nn.ReLU()), file)),
    "torch.export": lambda: saved(program),
    "safetensors": lambda: safetensors.torch.save(NET),
    "pickle": lambda: pickle.dumps({"data": 1}, 2),
    "pickle ": lambda: pickle.dumps({"data": 1}, 4),
    "MATLAB file": lambda: saved(savemat, {"X": np.zeros(3)}),
    "MATLAB 7.3": lambda: b"MATLAB 7.3 MAT-file, Platform".ljust(512) + b"\x89HDF\r\n\x1a\n",
    "HDF5": lambda: b"\x89HDF\r\n\x1a\n" + bytes(99),
    "PNG": lambda: picture("PNG"),
    "JPEG": lambda: picture("JPEG"),
    "WebP": lambda: picture("WEBP"),
    "PDF": lambda: b"%PDF-1.7\n%\xe2\xe3",
    "Parquet": lambda: b"PAR1" + bytes(9) + b"PAR1",
    "tar archive": lambda: tarred("w"),
    "tar archive, gzipped": lambda: tarred("w:gz"),
    "gzip": lambda: gzip.compress(bytes(100_000)),
    "bzip2": lambda: bz2.compress(b"x"),
    "xz": lambda: lzma.compress(b"x"),
    "zip archive": lambda: zipped("a.txt", "b.npy"),
    "cut off": lambda: saved(np.savez, image=np.zeros(3))[:-30],
    "JSON": lambda: json.dumps({"a": 1}).encode(),
    "JSON ": lambda: json.dumps([1, 2]).encode(),
    "text file": lambda: ("ä" * 9000).encode(),
    "UTF-16": lambda: "text".encode("utf-16"),
    "MessagePack": lambda: b"\x81\xa6params\x81\xa4conv\xc7\x05\x01\x93",
    "index of a TensorFlow": lambda: bytes(40) + (0xDB4775248B80FB57).to_bytes(8, "little"),
    "Keras model": lambda: zipped("metadata.json", "config.json", "model.weights.h5"),
    "empty": lambda: b"",
}


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("words", CASES)
def test_a_file_is_called_what_it_is(tmp_path, words):
    path = tmp_path / "file"
    path.write_bytes(CASES[words]())
    found = kind_of(path)
    assert found is not None and words.strip() in found, found


def test_an_onnx_model(tmp_path):
    onnx = pytest.importorskip("onnx")
    graph = onnx.helper.make_graph([], "g", [], [])
    onnx.save(onnx.helper.make_model(graph, producer_name="pytorch"), tmp_path / "net.onnx")
    assert kind_of(tmp_path / "net.onnx") == "an ONNX model"


def test_what_is_no_file_is_not_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    listening = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    listening.bind("socket")
    code = (  # as a process, which can be ended if it waits
        "import runpy, sys; kind_of = runpy.run_path(sys.argv[1])['kind_of']; "
        "print(*map(kind_of, sys.argv[2:]))"
    )
    paths = [tmp_path / "pipe", tmp_path / "socket", "/dev/zero", tmp_path]
    command = [sys.executable, "-c", code, file_kinds.__file__, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "a named pipe a socket a device a folder", done.stderr
    listening.close()


def test_what_is_not_known_or_not_there(tmp_path):
    path = tmp_path / "noise"
    path.write_bytes(np.random.default_rng(0).bytes(9000))
    assert kind_of(path) is None
    assert kind_of(tmp_path / "absent") is None
    path.write_bytes(bytes(100))
    assert kind_of(str(path)) is None


def test_a_reason_is_one_printable_line():
    assert reason_of(ValueError("a\x1b[31mb\ntrust the file")) == "a?[31mb"
    assert reason_of(EOFError()) == "EOFError"
    assert len(reason_of(ValueError("x" * 9000))) == 200
