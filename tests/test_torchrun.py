"""What torchrun's environment says, and who speaks last."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from fastuiat import torchrun
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
    folder = tmp_path / "big_x2k"
    folder.mkdir()
    torchrun.leave_for_good(2)  # of no launch
    assert torchrun.left_for_good() is None
    started(monkeypatch, TORCHELASTIC_RUN_ID="big")
    torchrun.leave_for_good(2)  # torchrun keeps no logs
    assert torchrun.left_for_good() is None
    for attempt, rank in enumerate(["1", "0"]):
        monkeypatch.setenv(
            "TORCHELASTIC_ERROR_FILE", str(folder / f"attempt_{attempt}" / rank / "error.json")
        )
        if attempt == 0:
            torchrun.leave_for_good(143)
        assert torchrun.left_for_good() == 143
    assert len(list(folder.iterdir())) == 1
    monkeypatch.setenv("WORLD_SIZE", "4")  # machines have left the launch
    assert torchrun.left_for_good() is None
    started(
        monkeypatch, TORCHELASTIC_RUN_ID="big",
        TORCHELASTIC_ERROR_FILE=str(tmp_path / "big_3zq" / "attempt_0" / "1" / "error.json"),
    )  # fmt: skip
    assert torchrun.left_for_good() is None  # a later launch
