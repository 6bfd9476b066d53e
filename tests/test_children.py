"""Commands as processes of their own: real ones, of a stand-in that is quick to start."""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from fastuiat import children
from fastuiat.children import Children
from fastuiat.config import UserError

STAND_IN = """#!/bin/sh
# Called as `python -m fastuiat WORD FILE [--quiet]`.
case "$3" in
  says) echo "$OMP_NUM_THREADS $5" > "$4";;
  fails) exit 3;;
  stopped) until ls "${4%/*}"/waits-* > /dev/null 2>&1; do sleep 0.02; done; kill -TERM $$;;
  waits) trap 'echo saved > "$4"; exit 143' TERM; touch "$4"; while :; do sleep 0.02; done;;
esac
"""


@pytest.fixture(autouse=True)
def stand_in(tmp_path, monkeypatch):
    path = tmp_path / "python"
    path.write_text(STAND_IN)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, "executable", str(path))
    monkeypatch.setattr(children, "cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def said(tmp_path, jobs):
    Children(jobs).run("says", str(tmp_path / "said"))
    return (tmp_path / "said").read_text().split()


def test_several_share_the_cores_and_are_quiet(tmp_path, monkeypatch):
    assert said(tmp_path, 1) == []
    assert said(tmp_path, 2) == ["3", "--quiet"]
    assert said(tmp_path, 8) == ["1", "--quiet"]
    monkeypatch.setenv("OMP_NUM_THREADS", "4")  # no more than it was given
    assert said(tmp_path, 2) == ["2", "--quiet"]


def test_one_that_fails_leaves_the_others(tmp_path):
    many = Children(2)

    def work(word):
        many.run(word, str(tmp_path / word))
        return word

    outcomes = dict(many.each(["fails", "says", "fails ", "says "], work))
    assert isinstance(outcomes["fails"], UserError) and "exit code 3" in str(outcomes["fails"])
    assert outcomes["says"] == "says" and (tmp_path / "says").exists()


def waiting(many, tmp_path, words):
    """Run the words; one that waits is under way before the rest begins."""

    def work(word):
        file = tmp_path / f"{word}-{threading.get_ident()}"
        many.run(word, str(file))

    return list(many.each(words, work))


def once_begun(tmp_path, count, action):
    """Call `action` as soon as so many are waiting; a thread to be joined."""

    def watch():
        while len(list(tmp_path.glob("waits-*"))) < count:
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def states(tmp_path):
    return [file.read_text() for file in tmp_path.glob("waits-*")]


@pytest.fixture
def heeds_ctrl_c():
    """A shell starts what it puts into the background with Ctrl-C ignored, these tests too."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_and_begins_no_other(tmp_path, signum, heeds_ctrl_c):
    many = Children(2)
    thread = once_begun(tmp_path, 2, lambda: os.kill(os.getpid(), signum))
    with pytest.raises(KeyboardInterrupt):
        waiting(many, tmp_path, ["waits", "waits", "says", "says"])
    thread.join()
    assert states(tmp_path) == ["saved\n"] * 2 and not list(tmp_path.glob("says-*"))
    assert not many.alive


@pytest.mark.timeout(60)
def test_one_that_was_stopped_stops_the_others(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        waiting(Children(2), tmp_path, ["waits", "stopped", "says"])
    assert states(tmp_path) == ["saved\n"] and not list(tmp_path.glob("says-*"))


@pytest.mark.timeout(60)
def test_an_error_of_ours_stops_the_others(tmp_path):
    many = Children(2)

    def work(word):
        if word == "bug":
            while not list(tmp_path.glob("waits-*")):
                time.sleep(0.01)
            raise ZeroDivisionError
        many.run(word, str(tmp_path / "waits-1"))

    with pytest.raises(ZeroDivisionError):
        list(many.each(["waits", "bug"], work))
    assert states(tmp_path) == ["saved\n"]


@pytest.mark.parametrize("linux", [True, False])
def test_a_child_ends_with_its_parent_by_kill_9(linux):
    """A parent with a child of its own, forked: the child writes its number, and waits."""
    read, write = os.pipe()
    parent = os.fork()
    if not parent:
        os.environ[children.PARENT] = str(os.getpid())
        if not os.fork():
            if not linux:
                children.sys = types.SimpleNamespace(platform="darwin")
            children.end_with_parent()
            assert children.PARENT not in os.environ
            os.write(write, str(os.getpid()).encode())
            time.sleep(60)
        time.sleep(60)
        os._exit(0)
    os.close(write)
    child = int(os.read(read, 20))
    assert Path(f"/proc/{child}").exists()
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert os.read(read, 1) == b""  # the last end of the pipe is closed: the child is gone


def test_a_child_that_begins_when_its_parent_has_ended_ends_too():
    child = os.fork()
    if not child:
        os.environ[children.PARENT] = "999999999"
        children.end_with_parent()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_who_was_not_started_so_is_left_alone():
    before = threading.active_count()
    children.end_with_parent()
    assert threading.active_count() == before


@pytest.mark.timeout(30)
def test_a_second_signal_finds_no_lock():
    """It runs the handler inside the handler."""
    many = Children(1)
    with many._lock:
        many.stop()
    assert many.stopping
