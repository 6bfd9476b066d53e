"""Files are written whole or not at all, and their digest is everybody's."""

from __future__ import annotations

import os
import subprocess

import pytest

from fastuiat.files import sha256_of, write_atomically


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1])
def test_sha256_is_the_system_s(tmp_path, size):
    path = tmp_path / "file"
    path.write_bytes(bytes(i % 251 for i in range(size)))
    said = subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout
    assert sha256_of(path) == said.split()[0]


def test_what_fails_leaves_the_file_as_it_was(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half")
        raise RuntimeError("in the midst")

    with pytest.raises(RuntimeError, match="in the midst"):
        write_atomically(path, fail)
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_bytes() == b"old"
    write_atomically(path, lambda file: file.write(b"new"))
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and path.read_bytes() == b"new"


def test_what_is_no_file_is_not_replaced(tmp_path):
    """A superuser's rename would take /dev/null away."""
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="no plain file"):
        write_atomically(pipe, lambda file: file.write(b"new"))
    assert pipe.is_fifo() and [p.name for p in tmp_path.iterdir()] == ["pipe"]
    link.symlink_to("file")
    write_atomically(link, lambda file: file.write(b"new"))
    assert link.read_bytes() == b"new"
