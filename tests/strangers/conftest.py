"""Commands that are given files of strangers, held to a line, to memory and to time."""

from __future__ import annotations

import gzip
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastuiat import build_model
from tests.strangers.crafted import BATCH, EVAL


@pytest.fixture(scope="module")
def net(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("net") / "net.pt"
    torch.save(build_model("wrn-10-1").state_dict(), path)
    return path


@pytest.fixture
def ended(forks, tmp_path):
    """ended(*WORDS): how a command in tmp_path ended, in time and in memory."""

    def run(*words: Any) -> Any:
        end = forks.run(*words, folder=tmp_path, seconds=60, memory=2048)
        assert end.returncode >= 0, (words, "does not end", end.returncode)
        assert end.peak < 700, (words, end.peak)
        assert "Traceback" not in end.stderr, end.stderr
        said = end.stdout + end.stderr
        assert all(c.isprintable() or c == "\n" for c in said), said
        return end

    return run


@pytest.fixture
def refused(ended):
    """refused(*WORDS): the only line of a command that is refused."""

    def run(*words: Any) -> str:
        end = ended(*words)
        assert end.returncode == 2 and end.stderr.count("\n") == 1, (words, end, end.stderr)
        assert end.stderr.startswith("fastuiat: "), end.stderr
        return end.stderr

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
