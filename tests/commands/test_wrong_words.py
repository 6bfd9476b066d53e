"""Words that cannot be meant are refused at once, in one line, and leave nothing behind."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from fastuiat import build_model, evaluate
from fastuiat.commands import doctor
from fastuiat.config import UserError, printable
from fastuiat.evaluation import record
from fastuiat.evaluation.arrays import as_images
from fastuiat.files import write_json
from fastuiat.training.config import TrainConfig

LONG = "n" * 300
TRAIN = ["train", "--dataset", "digits", "--arch", "wrn-10-1", "--no-compile", "--max-steps", "1"]
WORDS = [
    ([*TRAIN, "--seed", "99999999999999999999999"], "must be below 2^64"),
    ([*TRAIN, "--seed", str(1 << 64)], "must be below 2^64"),
    ([*TRAIN, "--seed", "-1"], "must not be negative"),
    ([*TRAIN, "--workers", "1000000"], "--workers must be at most"),
    ([*TRAIN, "--arch", "wrn-10-99999999"], "choose a smaller net"),
    ([*TRAIN, "--arch", "wrn-99999994-1"], "choose a smaller net"),
    ([*TRAIN, "--arch", "dm-wrn-10-9999999"], "choose a smaller net"),
    ([*TRAIN, "--arch", "wrn-10-" + 5000 * "1", "--out", "run"], "unknown net"),
    ([*TRAIN, "--out", LONG], "File name too long"),
    ([*TRAIN, "--out", f"{LONG}/run"], "File name too long"),
    ([*TRAIN, "--out", ""], "--out is given an empty word"),
    ([*TRAIN, "--out="], "--out is given an empty word"),
    ([*TRAIN, "--extra-data", ""], "--extra-data is given an empty word"),
    ([*TRAIN, "--recipe", ""], "--recipe is given an empty word"),
    (["train", "--resume", ""], "--resume is given an empty word"),
    (["train", "--resume", LONG], "File name too long"),
    (["recipes", ""], "an empty word"),
    (["recipes", "table1/cifar10/uiat", "--nope", "1"], "no flag --nope"),
    (["recipes", "table1/cifar10/uiat", "--eps", "nan"], "a radius of nan"),
    (["eval", "", "--attacks", "clean"], "an empty word"),
    (["eval", "net.pt", "--batch-size", "0"], "--batch-size must be above 0"),
    (["eval", "net.pt", "--batch-size", "-5"], "--batch-size must be above 0"),
    (["eval", "net.pt", "--seed", "-1"], "must not be negative"),
    (["eval", LONG], "File name too long"),
    (["eval", "net.pt", "--attacks"], "--attacks needs at least one value"),
    (["eval", "net.pt", "--eps-sweep", "0", "8/255", 12 * "9"], "a number from 2 to 1000"),
    (["bench", "step", "--device", "cpu", "--providers"], "--providers needs at least one value"),
    (["bench", "layers", "--widths", "32", "2"], "--widths 32 2: choose from 4, 8, 16, 32"),
    (["bench", "layers", "--widths", "2"], "--widths 2: choose from 4, 8, 16, 32"),
    ([*TRAIN, "--epochs", 5000 * "5"], "--epochs"),
    ([*TRAIN, "--epochs", 30 * "9"], "--epochs must be"),
    ([*TRAIN, "--processes", 5000 * "5"], "--processes needs a number from 1 to 1024"),
    ([*TRAIN, "--processes", "2", "--eps", "nan"], "a radius of nan"),
    (["report", ""], "an empty word"),
    (["report", LONG], "File name too long"),
    (["reproduce", ""], "an empty word"),
    (["reproduce", "figure2", "--seeds", "-1"], "must not be negative"),
    (["reproduce", "figure2", "--seeds", "0", "9" * 30], "must be below 2^64"),
    (["reproduce", "figure2", "--out", LONG], "File name too long"),
    (["reproduce", "figure2", "--out", ""], "--out is given an empty word"),
]


@pytest.mark.parametrize("words, said", WORDS, ids=lambda value: " ".join(value)[-40:])
def test_refused(words, said, refusal, tmp_path):
    assert said in refusal(*words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["text.txt/x.html", "text.txt/a/b/x.html", LONG, "folder"])
def test_a_report_that_can_be_nowhere(out, refusal, tmp_path, monkeypatch):
    """Before anything is drawn."""
    monkeypatch.setattr("fastuiat.report.document.make_report", None)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert "--out" in refusal("report", "run", "--out", out)
    assert sorted(tmp_path.rglob("*")) == before and (tmp_path / "text.txt").read_text() == "mine"


def test_the_library_refuses_the_same(tmp_path):
    for wrong in ({"seed": -1}, {"seed": 1 << 64}, {"workers": 1 << 20}, {"out": ""}):
        with pytest.raises(UserError):
            TrainConfig(**wrong)
    for wrong in ({"extra_data": ""}, {"recipe": ""}, {"data_dir": ""}, {"dataset": ""}):
        with pytest.raises(UserError, match="must be"):
            TrainConfig(**wrong)
    assert TrainConfig(seed=(1 << 64) - 1).seed == (1 << 64) - 1
    net, x, y = build_model("wrn-10-1"), torch.rand(8, 3, 32, 32), torch.zeros(8, dtype=torch.long)
    usual = {"attacks": ["clean"], "eps": 0.0, "seed": 0, "batch_size": 8}
    place = {"n": 8, "device": "cpu", "out": tmp_path, "info": {}}
    for wrong in ({"seed": -1}, {"seed": 1 << 70}, {"batch_size": 0}, {"batch_size": -5}):
        with pytest.raises(UserError):
            evaluate(net, x, y, **(usual | wrong))
        with pytest.raises(UserError):
            record.evaluate(net, as_images(x, y), **(usual | wrong), **place)
    assert not list(tmp_path.iterdir())


def test_a_word_of_thousands_of_letters_is_cut(refusal):
    said = refusal(*TRAIN, "--eps", 5000 * "x")
    assert f"'{50 * 'x'}" in said and "…" in said and len(said) < 1000


def test_a_link_to_itself_is_a_line(refusal, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a.jsonl").touch()
    assert "a link" in refusal("bench", "compare", "a.jsonl", "--csv", "loop/x")


def test_memory_that_is_not_enough_is_a_line(refusal, monkeypatch):
    """As Python says it and as PyTorch does on the CPU, for a tensor of a million gigabytes."""

    def none_left(argv: list[str]) -> None:
        raise MemoryError

    monkeypatch.setattr(doctor, "doctor", none_left)
    assert "not enough memory" in refusal("doctor")
    monkeypatch.setattr(doctor, "doctor", lambda argv: torch.empty(1 << 57))
    assert "not enough memory" in refusal("doctor")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("could not create a primitive"), "not enough memory"),
        (RuntimeError("can't start new thread"), "not enough memory"),
        (ImportError("libblas.so: failed to map segment from shared object"), "not enough memory"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "Cannot allocate memory"),
    ],
)
def test_memory_that_is_not_enough_in_other_words(refusal, monkeypatch, error, said):
    """As `ulimit -v` brought them out of a training."""

    def none_left(argv: list[str]) -> None:
        raise error

    monkeypatch.setattr(doctor, "doctor", none_left)
    assert said in refusal("doctor")


def test_a_folder_in_the_place_of_a_file_is_a_line(refusal, monkeypatch, tmp_path):
    (tmp_path / "state.json" / "mine").mkdir(parents=True)
    monkeypatch.setattr(doctor, "doctor", lambda argv: write_json(tmp_path / "state.json", {}))
    assert "state.json: Is a directory; nothing written before is lost" in refusal("doctor")
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


def test_what_a_terminal_obeys_is_left_out(refusal, tmp_path):
    assert printable("a\x1b[2J\x07b\x9b\x00\nü–z") == "a[2Jb\nü–z"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"dataset": "x", "arch": "\\u001b[31mred"}')
    assert "\x1b" not in refusal("train", "--resume", "run\x1b[31m")
    assert "\x1b" not in refusal("train", *TRAIN[1:], "--dataset", "\x1b]0;title\x07")
