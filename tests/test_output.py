"""What commands say: to people, to a pipe, with --quiet, and to scripts with --json."""

from __future__ import annotations

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastuiat import __version__, data, progress, reproduce
from fastuiat.children import Children
from fastuiat.cli import main
from fastuiat.commands.output import columns

TRAIN = ["train", "--dataset", "digits", "--arch", "wrn-10-1", "--loader", "resident"]
TRAIN += ["--no-compile", "--method", "natural", "--batch-size", "512", "--val-size", "16"]
TRAIN += ["--epochs", "2", "--log-every", "1"]
ANSI = "\x1b"
BARS = re.compile("[━╸╺─│┃┏┌]")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, str]:
    """A finished run, and what training it said on stdout."""
    folder, said = tmp_path_factory.mktemp("output") / "run", io.StringIO()
    with contextlib.redirect_stdout(said):
        main([*TRAIN, "--out", str(folder)])
    return folder, said.getvalue()


@pytest.fixture
def run_folder(trained) -> Path:
    return trained[0]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.slow
def test_training_says_how_it_goes_or_where_it_went(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = trained[1].splitlines()
    assert lines[0].startswith("epoch   1") and re.search(r" · 0:\d\d:\d\d left$", lines[0])
    assert lines[1].startswith("epoch   2") and "left" not in lines[1]
    assert lines[2:] == [f"run folder: {trained[0]}"]
    main(["train", "--resume", str(trained[0])])
    assert "is finished: step" in capsys.readouterr().out
    main(["train", "--resume", str(trained[0]), "--quiet"])
    assert capsys.readouterr() == (f"run folder: {trained[0]}\n", "")
    main([*TRAIN, "--json", "--out", "json"])
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert document["run"] == "json" and document["last_epoch"]["epoch"] == 2
    assert document["step"] > 2 and err.count("epoch ") == 2
    stored = json.loads(Path("json/config.json").read_text())
    assert "json" not in stored and "quiet" not in stored


def test_a_pipe_is_given_plain_lines(fastuiat, run_folder):
    """A real process: bars, colours and frames are for terminals."""
    done = fastuiat("eval", run_folder, "--attacks", "clean", "pgd", "--n", "8")
    assert done.returncode == 0 and done.stderr == ""
    assert ANSI not in done.stdout and not BARS.search(done.stdout)
    lines = done.stdout.splitlines()
    assert lines.pop(0).startswith("taken: the raw weights of ")
    assert [line.split() for line in lines[:2]] == [
        ["clean", "8", "of", "8"], ["pgd-20", "8/255", "8", "of", "8"],
    ]  # fmt: skip
    heading, clean, pgd = lines[3:6]
    assert heading.split() == ["attack", "eps", "n", "accuracy", "s"]
    assert len({line.index(cell) + len(cell) for line, cell in ((heading, "accuracy"),
                (clean, "%"), (pgd, "%"))}) == 1  # fmt: skip
    assert all(line == line.rstrip() for line in lines)


def test_evaluation_quiet_and_json(run_folder, capsys):
    words = ["eval", str(run_folder), "--attacks", "clean", "--n", "8"]
    main([*words, "--quiet"])
    out, err = capsys.readouterr()
    assert err == "" and "8 of 8" not in out and "records:" in out
    main([*words, "--json"])
    out, err = capsys.readouterr()
    document = json.loads(out)
    stored = json.loads((run_folder / "eval" / "clean_n8.json").read_text())
    assert document["records"] == [{k: v for k, v in stored.items() if k != "per_sample"}]
    assert "8 of 8" in err
    main([*words, "--json", "--quiet"])
    out, err = capsys.readouterr()
    assert json.loads(out)["folder"] == str(run_folder / "eval") and err == ""


def test_a_terminal_has_bars_and_frames(run_folder, monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    main(["eval", str(run_folder), "--attacks", "clean", "--n", "8"])
    assert ANSI in screen.getvalue() and BARS.search(screen.getvalue())


@pytest.mark.parametrize(
    "words", ["doctor", "recipes", "recipes table1/cifar10/sat --dataset svhn"]
)
def test_what_is_only_looked_up(words, capsys):
    main(words.split())
    plain = capsys.readouterr().out
    main([*words.split(), "--quiet"])
    assert capsys.readouterr().out == plain
    main([*words.split(), "--json"])
    document = json.loads(capsys.readouterr().out)
    names = [line.split()[0] for line in plain.splitlines()]
    assert names == list(document)
    if "svhn" in words:
        assert document["dataset"] == {"value": "svhn", "source": "flag"}
        starts = {re.match(r"\S+ +\S+ +", line).end() for line in plain.splitlines()}
        assert len(starts) == 1  # the third column is aligned


@pytest.mark.skipif(not data.ffcv_available(), reason="ffcv is not installed")
def test_data_prepare(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["data", "prepare", "digits", "--json"])
    document = json.loads(capsys.readouterr().out)
    assert Path(document["path"]).stat().st_size == document["bytes"]
    main(["data", "prepare", "digits"])
    assert capsys.readouterr().out.endswith("bytes, checked\n")


def test_errors_stay_one_line_on_stderr(capsys):
    for flag in ("--quiet", "--json"):
        with pytest.raises(SystemExit) as stop:
            main(["eval", "nothing", flag])
        out, err = capsys.readouterr()
        assert stop.value.code == 2 and out == "" and err == "fastuiat: nothing does not exist\n"


def test_reproduce(tmp_path, capsys, monkeypatch):
    """The rows are made up; where their processes would speak is looked at."""
    places = []

    class Heard(Children):
        def __init__(self, jobs, *, stdout=None):
            super().__init__(jobs, stdout=stdout)
            places.append(stdout)

    monkeypatch.setattr(reproduce, "Children", Heard)
    monkeypatch.setattr(reproduce, "train_row", lambda *_: None)
    monkeypatch.setattr(
        reproduce, "evaluate_row", lambda row, folder, points, *_: dict.fromkeys(points, 50.0)
    )
    monkeypatch.setattr(reproduce, "seconds_per_epoch", lambda *_: None)
    monkeypatch.setattr(reproduce, "curve", lambda *_: [])
    monkeypatch.setattr(reproduce, "made", lambda *_: {"device": "a CPU", "time": "2026-02-03"})
    monkeypatch.chdir(tmp_path)
    words = ["reproduce", "table1", "--dataset", "digits", "--arch", "wrn-10-1", "--n", "8"]
    main(words)
    out, err = capsys.readouterr()
    assert out.startswith("table1 ") and "saved: " in out and err == ""
    table = out[out.index("table1: ") : out.index("saved: ")]
    main([*words, "--quiet"])
    assert capsys.readouterr() == (table, "")
    main([*words, "--json"])
    out, err = capsys.readouterr()
    assert len(json.loads(out)["rows"]) == 6 and "seed 0" in err
    assert json.loads(out) == json.loads(next(tmp_path.rglob("table1.json")).read_text())
    assert places == [None, subprocess.DEVNULL, 2]


def test_a_run_of_reproduce_speaks_where_it_is_told(capfd):
    Children(1, stdout=2).run("recipes")
    out, err = capfd.readouterr()
    assert out == "" and "table1/cifar10/sat" in err


def test_time_left(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    pace = progress.Pace(40, 100)
    assert pace.left() == ""
    now[0], pace.done = 130.0, 50  # ten of sixty in half a minute
    assert pace.left() == " · 0:02:30 left"
    pace.done = 100
    assert pace.left() == ""


def test_a_long_attack_says_a_line_a_minute(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    from fastuiat.commands.output import Output, OutputOptions

    with progress.show_evaluation(Output(OutputOptions()).console) as show:
        for done in range(1, 11):
            now[0] += 25.0
            show("autoattack square", 100 * done, 1000)
    lines = capsys.readouterr().out.splitlines()
    assert [re.split(r"  +", line)[1] for line in lines] == [
        "300 of 1000 · 0:02:55 left",
        "600 of 1000 · 0:01:40 left",
        "900 of 1000 · 0:00:25 left",
        "1000 of 1000",
    ]


def test_columns():
    assert columns([["a", "bcd", "e"], ["ab", "c", ""]]) == "a   bcd  e\nab  c"


def test_the_version_and_the_help_of_data(capsys):
    main(["--version"])
    main(["data", "--help"])
    usage = "usage: fastuiat data prepare NAME (fastuiat data prepare --help)"
    assert capsys.readouterr().out == f"fastuiat {__version__}\n{usage}\n"
