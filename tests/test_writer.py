"""A folder has one writer, whoever asks, and none once that one is gone."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fastuiat import writer
from fastuiat.config import UserError
from fastuiat.files import remove_unfinished
from fastuiat.writer import LOCK, only_writer, refuse_links, refuse_replaced

ADVICE = "choose another --out"


def is_free(folder: Path) -> bool:
    """By the system's own flock(1), not by what is tested."""
    path = folder / LOCK
    return not path.exists() or subprocess.run(["flock", "-n", path, "true"]).returncode == 0


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as error, only_writer(folder, advice=ADVICE):
        pass
    return str(error.value)


def test_the_folder_is_made_and_nothing_stays(tmp_path):
    with only_writer(tmp_path / "a" / "b", advice=ADVICE):
        assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == [LOCK]
        assert not is_free(tmp_path / "a" / "b")
    assert not list((tmp_path / "a" / "b").iterdir())


def test_it_is_let_go_of_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), only_writer(tmp_path, advice=ADVICE):
        raise ZeroDivisionError
    with only_writer(tmp_path, advice=ADVICE):
        pass


def in_thread(action):
    found = []

    def run():
        try:
            found.append(action())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def test_threads_of_one_process_are_apart_and_a_thread_may_ask_again(tmp_path):
    with only_writer(tmp_path, advice=ADVICE):
        with only_writer(tmp_path, advice=ADVICE):
            pass
        assert not is_free(tmp_path)
        said = in_thread(lambda: refused(tmp_path))
        assert f"process {os.getpid()} on {socket.gethostname()}" in said and said.endswith(ADVICE)
        assert (tmp_path / LOCK).exists()
        helper = tmp_path / "helper"  # a folder of its own inside, as a helper net has

        def enter() -> bool:
            with only_writer(helper, advice=ADVICE):
                return (helper / LOCK).exists()

        assert in_thread(enter) is True


def test_a_forked_child_keeps_nothing(tmp_path):
    """It lives on when its parent lets go, as a worker of a pool does."""
    read, write = os.pipe()
    with only_writer(tmp_path, advice=ADVICE):
        child = os.fork()
        if not child:
            os.close(write)
            os.read(read, 1)  # until the parent is through
            os._exit(0)
    os.close(read)
    os.kill(child, 0)
    assert is_free(tmp_path)
    with only_writer(tmp_path, advice=ADVICE):
        pass
    os.close(write)
    os.waitpid(child, 0)


def test_a_forked_child_that_leaves_the_block_takes_nothing_away(tmp_path):
    child = None
    try:
        with only_writer(tmp_path, advice=ADVICE):
            child = os.fork()
            if not child:
                raise KeyboardInterrupt
            assert os.waitpid(child, 0)[1] == 0
    except KeyboardInterrupt:
        os._exit(0 if (tmp_path / LOCK).exists() else 1)


HOLD = """
import sys, time
from pathlib import Path
from fastuiat.writer import only_writer
with only_writer(Path(sys.argv[1]), advice=""):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.mark.slow
def test_the_holder_is_named_and_gone_with_kill_9(tmp_path):
    words = [sys.executable, "-c", HOLD, tmp_path, "--eps", "8/255"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
        said = refused(tmp_path)
        assert said.startswith(f"{tmp_path} is being written by ") and "--eps 8/255" in said
        assert f"(process {process.pid} on {socket.gethostname()}): {ADVICE}" in said
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
        process.send_signal(signal.SIGKILL)
    assert (tmp_path / LOCK).exists()  # of the dead, and free
    with only_writer(tmp_path, advice=ADVICE):
        told = json.loads((tmp_path / LOCK).read_text())
        assert told["process"] == os.getpid()


def test_what_a_holder_calls_itself_is_made_harmless(tmp_path):
    told = {"command": "train \x1b[31m\nred", "process": 1, "host": "h"}
    (tmp_path / LOCK).write_text(json.dumps(told))
    with open(tmp_path / LOCK) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        said = refused(tmp_path)
    assert "train [31mred (process 1 on h)" in said


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"command": "x"}', b"\xff"])
def test_a_holder_that_says_nothing_is_refused_all_the_same(content, tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "SECONDS_TO_SIGN", 0.0)
    (tmp_path / LOCK).write_bytes(content)
    with open(tmp_path / LOCK) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "by another process" in refused(tmp_path)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_where_files_cannot_be_locked_it_goes_on_and_says_so(number, tmp_path, monkeypatch):
    def fail(descriptor, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    notes: list[str] = []
    with only_writer(tmp_path, advice=ADVICE, say=notes.append):
        pass
    assert len(notes) == 1 and "cannot be locked" in notes[0]


def test_one_of_many_wins(tmp_path):
    """Threads that begin at once: whoever is refused is told so, and one is inside at a time."""
    barrier, inside, seen, won = threading.Barrier(8), [], [], []

    def work():
        barrier.wait()
        try:
            with only_writer(tmp_path / "run", advice=ADVICE):
                inside.append(1)
                seen.append(len(inside))
                time.sleep(0.05)
                inside.pop()
                won.append(1)
        except UserError as error:
            assert "is being written by" in str(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert won and set(seen) == {1}


LEFT = (".last.pt-0123abcd", "checkpoints/.last.pt-deadbeef", "eval/.clean_n8.json-00000000")
KEPT = (".gitignore", "notes-deadbeef", ".last.pt-xyz", "checkpoints/best.pt", "mine/.x-00000000")


def test_what_the_killed_left_is_removed_by_who_has_the_lock(tmp_path):
    for name in (*LEFT, *KEPT):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with open(tmp_path / LOCK, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused(tmp_path)
        assert all((tmp_path / name).exists() for name in (*LEFT, *KEPT))
    with only_writer(tmp_path, advice=ADVICE):
        assert not any((tmp_path / name).exists() for name in LEFT)
        assert all((tmp_path / name).exists() for name in KEPT)


def test_unfinished_files_are_those_that_a_killed_write_leaves(tmp_path):
    script = (
        "import os, signal; from pathlib import Path; from fastuiat.files import write_atomically\n"
        "write_atomically(Path('last.pt'), lambda file: os.kill(os.getpid(), signal.SIGKILL))"
    )
    child = os.fork()
    if not child:
        os.chdir(tmp_path)
        exec(script)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    (left,) = (path.name for path in tmp_path.iterdir())
    assert remove_unfinished(tmp_path) == [left] and not list(tmp_path.iterdir())


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    foreign = tmp_path / "foreign"
    foreign.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK).symlink_to(foreign)
    assert "a link" in refused(tmp_path / "run") and foreign.read_text() == "mine"


def test_links_out_of_the_folder_are_refused_and_those_within_are_not(tmp_path):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    for name in writer.WRITTEN:
        (run / name).symlink_to(elsewhere / name)  # whether that exists or not
        said = refused(run)
        assert f"{run / name} is a link to {elsewhere / name}" in said
        (run / name).unlink()
    (run / "checkpoints").mkdir()
    (run / "eval").symlink_to("checkpoints")
    refuse_links(run)
    (tmp_path / "link").symlink_to(run)
    refuse_links(tmp_path / "link")
    with only_writer(tmp_path / "link", advice=ADVICE):
        assert (run / LOCK).exists()
        assert "is being written" in in_thread(lambda: refused(run))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("n" * 300)):
        assert "cannot be written" in refused(folder)


@pytest.mark.parametrize("now", ["nothing", "a folder", "a file", "a link"])
def test_a_folder_that_is_another_one_meanwhile_is_refused(now, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, aside = Path("run"), Path("aside")
    with only_writer(run, advice=ADVICE):
        refuse_replaced(run)
        run.rename(aside)
        make = {
            "nothing": lambda: None,
            "a folder": run.mkdir,
            "a file": run.touch,
            "a link": lambda: (Path("other").mkdir(), run.symlink_to("other")),
        }
        make[now]()
        with pytest.raises(UserError, match="run was removed or renamed meanwhile: put it back"):
            refuse_replaced(run)
        if run.is_symlink() or run.is_file():
            run.unlink()
        elif run.exists():
            run.rmdir()
        aside.rename(run)
        refuse_replaced(run)
    refuse_replaced(run)  # of nobody


def test_the_lock_of_another_that_took_the_place_stays(tmp_path):
    run = tmp_path / "run"
    with only_writer(run, advice=ADVICE):
        run.rename(tmp_path / "aside")
        run.mkdir()
        (run / LOCK).touch()
    assert (run / LOCK).exists()


def test_a_link_that_is_put_into_the_folder_meanwhile_is_refused(tmp_path):
    run, other = tmp_path / "run", tmp_path / "other"
    other.mkdir()
    with only_writer(run, advice=ADVICE):
        (run / "checkpoints").symlink_to(other)
        with pytest.raises(UserError, match="checkpoints is a link to"):
            refuse_replaced(run)
