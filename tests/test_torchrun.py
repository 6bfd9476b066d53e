"""What torchrun's environment says, who speaks, and who is started again."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import threading

import pytest

from fastuiat import cli, torchrun
from fastuiat.commands import prepare
from fastuiat.commands.output import Output, OutputOptions
from fastuiat.torchrun import Place, is_first_rank, place, wait_for_the_first

STARTED = {
    "MASTER_ADDR": "localhost", "MASTER_PORT": "29500", "RANK": "5", "WORLD_SIZE": "8",
    "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
}  # fmt: skip


def started(monkeypatch, **changes: str) -> None:
    for name, value in (STARTED | changes).items():
        monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    for name in (*STARTED, "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE"):
        monkeypatch.delenv(name, raising=False)
    logger = logging.getLogger("fastuiat")
    level = logger.level
    yield
    logger.setLevel(level)


def test_the_place_of_a_process(monkeypatch):
    assert place() == Place(0, 1, 0, 1) and is_first_rank()
    started(monkeypatch)
    assert place() == Place(5, 8, 1, 4) and not is_first_rank()
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):  # other launchers, a process a machine
        monkeypatch.delenv(name)
    assert place() == Place(5, 8, 0, 1)


@pytest.mark.parametrize("changes", [{"WORLD_SIZE": "1"}, {"WORLD_SIZE": ""}, {"MASTER_ADDR": ""}])
def test_alone(monkeypatch, changes):
    started(monkeypatch, **changes)
    assert place() == Place()


def test_one_rank_speaks(monkeypatch, capsys):
    started(monkeypatch)
    for json in (False, True):
        output = Output(OutputOptions(json=json))
        output.say("a note")
        output.result({"a": 1}, "a line")
    assert capsys.readouterr() == ("", "")
    started(monkeypatch, RANK="0")
    output = Output(OutputOptions())
    output.say("a note")
    output.result({}, "a line")
    assert capsys.readouterr().out == "a note\na line\n"


def test_other_ranks_wait_to_be_ended(monkeypatch):
    wait_for_the_first(2)  # alone: at once
    started(monkeypatch, RANK="0")
    wait_for_the_first(2)
    started(monkeypatch, RANK="1")
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    with pytest.raises(SystemExit) as stop:
        wait_for_the_first(2)
    assert stop.value.code == 2
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    monkeypatch.setattr(torchrun, "PATIENCE", 0.01)
    wait_for_the_first(2)  # nobody ends it: it speaks itself
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_who_is_started_again_leaves_as_it_has_left(monkeypatch, tmp_path):
    def begun(launch: str, attempt: int, rank: int = 0) -> None:
        folder = tmp_path / launch / f"attempt_{attempt}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(folder / str(rank) / "error.json"))

    begun("big_x2k", 0)
    torchrun.leave_for_good(2)  # nobody starts anything again
    assert torchrun.left_for_good() is None
    started(monkeypatch, TORCHELASTIC_RUN_ID="big")
    torchrun.leave_for_good(143)
    assert torchrun.left_for_good() is None  # of those that start with it, none
    for attempt in (0, 1):  # as machines come and go the number may stay
        begun("big_x2k", attempt)
        assert torchrun.left_for_good() == 143
    monkeypatch.setenv("WORLD_SIZE", "4")  # machines have left the launch
    assert torchrun.left_for_good() is None
    started(monkeypatch)
    begun("big_3zq", 0)
    assert torchrun.left_for_good() is None  # a later launch
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "")  # torchrun keeps no logs
    torchrun.leave_for_good(2)
    assert torchrun.left_for_good() is None


@pytest.mark.parametrize("command", ["bench", "reproduce"])
def test_commands_that_are_one_process(monkeypatch, capsys, command):
    for rank in ("0", "5"):
        started(monkeypatch, RANK=rank)
        monkeypatch.setattr(sys, "stdout", sys.stdout)  # other ranks' speak nowhere
        ended = None if rank == "0" else sys.exit  # by torchrun, as soon as rank 0 has left
        monkeypatch.setattr(cli, "wait_for_the_first", ended or (lambda code: None))
        with pytest.raises(SystemExit) as stop:
            cli.main([command])
        assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()  # of rank 0
    assert line.startswith(f"fastuiat: {command} cannot be 8 ranks of torchrun: ")


def test_commands_that_the_first_rank_does_alone(monkeypatch, capsys):
    started(monkeypatch, RANK="0")
    cli.main(["recipes"])
    said = capsys.readouterr().out
    assert "table1/cifar10/uiat" in said
    started(monkeypatch, RANK="5")
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "prepare", lambda argv: pytest.fail("two ranks prepare"))
        cli.main(["data", "prepare", "digits"])
    assert capsys.readouterr() == ("", "")
