"""What is said when a checkpoint cannot be written, and which one there is then."""

from __future__ import annotations

import builtins
import errno

import pytest
import torch

from fastuiat import files
from fastuiat.config import UserError
from fastuiat.training.checkpoint import save_checkpoint


@pytest.fixture
def full(monkeypatch):
    """New files lie on a disk that is full, as the kernel has one: its ENOSPC reaches PyTorch."""

    def open_full(path, mode):
        builtins.open(path, mode).close()
        return builtins.open("/dev/full", "wb")

    monkeypatch.setattr(files, "open", open_full, raising=False)


def refused(path, values=100):
    with pytest.raises(UserError) as error:
        save_checkpoint(path, {"a": torch.zeros(values), "b": torch.zeros(values)})
    said = str(error.value)
    assert "\n" not in said and "enforce fail" not in said
    return said


@pytest.mark.parametrize("values", [1, 10_000, 3_000_000])
def test_a_full_disk_is_called_so(full, values, tmp_path):
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    for path in (last, best):
        said = refused(path, values)
        assert said == f"{path} could not be written: disk full; there is none before it"
    assert not list(tmp_path.iterdir())
    last.write_bytes(b"old")
    assert refused(last, values).endswith("disk full; the one before it is kept")
    assert refused(best, values).endswith(f"disk full; {last} is kept")
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"] and last.read_bytes() == b"old"


def test_so_it_is_where_pytorch_alone_speaks(tmp_path, monkeypatch):
    def fail(content, file):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 768 vs 662")

    monkeypatch.setattr(torch, "save", fail)
    assert "disk full, or it failed; there is none before it" in refused(tmp_path / "last.pt")


@pytest.mark.parametrize(
    "number, said", [(errno.EDQUOT, "quota"), (errno.EROFS, "Read-only"), (errno.EIO, "error")]
)
def test_other_reasons_are_named(number, said, tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(number, "Read-only file system" if number == errno.EROFS else "I/O error")

    monkeypatch.setattr(files.os, "fsync", fail)
    assert said in refused(tmp_path / "last.pt")


def test_a_folder_that_is_gone_is_called_so(tmp_path):
    assert "was removed or renamed" in refused(tmp_path / "checkpoints" / "last.pt")
