"""Several users and processes share a data folder, and some of them are killed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastuiat.data import beton, ffcv_loader

pytestmark = pytest.mark.skipif(not ffcv_loader.available(), reason="ffcv is not installed")

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(40)


def test_a_file_may_be_read_by_whom_the_umask_says(tmp_path):
    for mask, mode in ((0o022, 0o644), (0o002, 0o664), (0o077, 0o600)):
        before = os.umask(mask)
        try:
            path = beton.prepare(IMAGES, LABELS, tmp_path / str(mask), "made")
        finally:
            os.umask(before)
        for file in (path, path.with_suffix(".json"), path.with_suffix(".lock")):
            assert file.stat().st_mode & 0o777 == mode, file


def test_a_ready_file_is_read_without_a_lock(tmp_path):
    """By a second user, who may write nothing there, while another file is written."""
    path = beton.prepare(IMAGES, LABELS, tmp_path, "made")
    lock = path.with_suffix(".lock")
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert beton.prepare(IMAGES, LABELS, tmp_path, "made") == path
    lock.unlink()
    tmp_path.chmod(0o555)
    try:
        assert beton.prepare(IMAGES, LABELS, tmp_path, "made") == path
    finally:
        tmp_path.chmod(0o755)
    assert not lock.exists()


WRITES_AND_HANGS = """
import sys, time
import numpy as np
from fastuiat.data import beton

def hang(out, *_):
    out.write(bytes(5000))
    out.file.flush()
    print("writing", flush=True)
    time.sleep(600)

beton._write_content = hang
beton.prepare(np.full((3, 32, 32, 3), int(sys.argv[2]), np.uint8), np.arange(3), sys.argv[1], "own")
"""


def writing(folder: Path, value: int) -> subprocess.Popen[str]:
    """A process that has begun a .beton of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITES_AND_HANGS, folder, str(value)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "writing\n"
    return process


@pytest.mark.slow
def test_what_killed_ones_left_is_removed_and_what_living_ones_write_stays(tmp_path):
    killed, living = writing(tmp_path, 1), writing(tmp_path, 2)
    try:
        (left, other) = sorted(tmp_path.glob(".own-*"), key=lambda path: path.stat().st_mtime_ns)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        (tmp_path / ".own-0123.beton-01234567").touch()  # of no fingerprint of ours
        beton.prepare(IMAGES, LABELS, tmp_path, "made")
        assert not left.exists() and other.exists()
        assert (tmp_path / ".own-0123.beton-01234567").exists()
    finally:
        living.kill()
        living.wait()
    same = np.full((3, 32, 32, 3), 2, np.uint8)
    path = beton.prepare(same, np.arange(3), tmp_path, "own")  # the very file that it wrote
    assert path.exists() and not other.exists()
    assert not list(tmp_path.glob(".made-*"))
