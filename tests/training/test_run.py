"""The library's train: its example, whom it speaks to, and what it leaves as it was."""

from __future__ import annotations

import doctest
import json
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from fastuiat import recipes
from fastuiat.cli import main
from fastuiat.config import UserError
from fastuiat.training import run
from fastuiat.training.config import TrainConfig
from fastuiat.training.folder import config_of


def small(folder: Path, **more: Any) -> TrainConfig:
    settings = {
        "dataset": "digits",
        "arch": "wrn-10-1",
        "method": "natural",
        "loader": "resident",
        "precision": "fp32",
        "compile": False,
        "val_size": 64,
        "max_steps": 2,
        "out": folder,
    }
    return TrainConfig(**settings | more)


@pytest.mark.slow
@pytest.mark.parametrize("documented", [run.train, recipes.config])
def test_the_examples(documented, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner(verbose=False)
    (example,) = finder.find(documented, globs={documented.__name__: documented})
    assert len(example.examples) >= 3
    runner.run(example, out=said.append)
    assert not runner.failures, "".join(said)


def test_progress_is_shown_unless_somebody_takes_it(tmp_path, capsys):
    assert run.train(small(tmp_path / "a")) == tmp_path / "a"
    assert "epoch   1" in capsys.readouterr().out
    notes: list[str] = []
    config = config_of(tmp_path / "a")
    assert run.resume(config, tmp_path / "a", say=notes.append) == tmp_path / "a"
    assert notes == [f"{tmp_path / 'a'} is finished: step 2"]


@pytest.mark.slow
def test_the_folder_of_the_library_is_that_of_the_command(tmp_path, capsys):
    """The same settings, the same weights, and either can be resumed as the other."""
    run.train(small(tmp_path / "library"))
    words = "--dataset digits --arch wrn-10-1 --method natural --loader resident --precision fp32"
    words += f" --no-compile --val-size 64 --max-steps 2 --out {tmp_path / 'command'}"
    main(["train", *words.split(), "--json"])
    said = json.loads(capsys.readouterr().out.split("\n", 1)[1])
    assert said["run"] == str(tmp_path / "command") and said["step"] == 2
    states = [
        torch.load(tmp_path / name / "checkpoints" / "last.pt", weights_only=True)["model"]
        for name in ("library", "command")
    ]
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0].keys() | states[1].keys())
    settings = [config_of(tmp_path / name).to_json() for name in ("library", "command")]
    assert settings[0] | {"out": None} == settings[1] | {"out": None}
    main(["train", "--resume", str(tmp_path / "library"), "--json"])
    assert json.loads(capsys.readouterr().out)["step"] == 2


def test_what_cannot_be_is_an_error_and_leaves_nothing(tmp_path):
    for more in ({"arch": "wrn-11-1"}, {"dataset": "nowhere"}, {"val_size": 1437}):
        with pytest.raises(UserError):
            run.train(small(tmp_path / "run", **more))
        assert not list(tmp_path.iterdir())
    run.train(small(tmp_path / "run"))
    with pytest.raises(UserError, match="already holds a run"):
        run.train(small(tmp_path / "run"))


@pytest.mark.slow
def test_the_process_is_as_it_was(tmp_path):
    """Random numbers, threads, signal handlers."""

    def process() -> tuple[Any, ...]:
        handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
        return torch.get_rng_state().tolist(), torch.get_num_threads(), handlers

    torch.manual_seed(7)
    before = process()
    run.train(small(tmp_path / "run"))
    assert process() == before
    file = tmp_path / "run" / "environment.json"
    more = torch.get_num_threads() + 1
    file.write_text(json.dumps(json.loads(file.read_text()) | {"threads": more}))
    stored = tmp_path / "run" / "config.json"
    stored.write_text(json.dumps(json.loads(stored.read_text()) | {"max_steps": 3}))
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    state = torch.load(last, weights_only=True)
    del state["settings"]  # it would hold what was edited against them
    torch.save(state, last)
    notes: list[str] = []
    run.resume(config_of(tmp_path / "run"), tmp_path / "run", say=notes.append)
    assert f"using {more} threads, as the run did" in notes
    assert process() == before


@pytest.mark.slow
def test_in_a_thread_signals_are_left_to_the_process(tmp_path):
    done: list[Any] = []

    def train() -> None:
        try:
            done.append(run.train(small(tmp_path / "run")))
        except BaseException as error:
            done.append(error)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert done == [tmp_path / "run"]
