"""What is said of a published file on the command line, and answered in one line."""

from __future__ import annotations

import json

import pytest
import torch

import fastuiat
from fastuiat.cli import main

WORDS = [
    "eval",
    "net.pt",
    "--arch",
    "wrn-10-1",
    "--dataset",
    "digits",
    "--n",
    "8",
    "--attacks",
    "clean",
]
MEAN = ["--mean", "0.5", "0.4", "0.3"]


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    state = fastuiat.build_model("wrn-10-1").state_dict()
    torch.save({"state_dict": state, "epoch": 3}, "net.pt")
    return state


@pytest.mark.parametrize(
    "words, said",
    [
        ("--mean 125.3 123 113.9 --std 63 62.1 66.7", "write 0.4914 for 125.3 of 255"),
        ("--mean 0.4 0.4 0.4 --std 63 62.1 66.7", "write 0.2471 for 63 of 255"),
        ("--mean 0.4 0.4 0.4 --std inf 1 1", "--std must be three numbers in [0, 1], got inf"),
        ("--mean nan 0.4 0.4 --std 1 1 1", "--mean must be three numbers in [0, 1], got nan"),
        ("--mean -0.5 0.4 0.4 --std 1 1 1", "got -0.5"),
        ("--mean 0.4 0.4 0.4 --std 0 1 1", "--std must be above 0"),
        ("--mean 0.4 0.4 0.4 --std 1e3 1 1", "got 1000"),
        ("--mean 0.49 0.48 --std 0.2 0.2 0.2", "three numbers, one a channel, and got 2"),
        ("--mean 0.5 --std 0.2 0.2 0.2", "and got 1"),
        ("--mean 0.4 0.4 0.4 --std 0.2,0.2,0.2,0.2", "three numbers, one a channel, and got 4"),
        ("--mean --std 0.2 0.2 0.2", "--mean takes three numbers, one a channel, and got 0"),
        ("--mean 0.4 0.4 0.4", "--mean and --std go together"),
        ("--mean=a,b,c --std 0.2 0.2 0.2", "--mean takes three numbers, and got a b c"),
        ("--which last", "--which chooses from a run folder or a file that holds best and last"),
        ("--which best", "--which chooses from a run folder or a file that holds best and last"),
    ],
)  # fmt: skip
def test_refusals(file, refusal, words, said):
    assert said in refusal(*WORDS, *words.split())


def test_constants_with_commas_are_those_with_spaces(file, capsys):
    found = []
    for more in (
        [*MEAN, "--std", "0.2", "0.2", "0.2"],
        ["--mean", "0.5,0.4,0.3", "--std=0.2,0.2,0.2"],
        ["--mean", "0.5,", "0.4", ",0.3", "--std", "0.2,0.2", "0.2"],
    ):
        main([WORDS[0], *WORDS[2:], *more, "net.pt", "--json", "--out", "out"])
        out, err = capsys.readouterr()
        (record,) = json.loads(out)["records"]
        found.append(record["checkpoint"]["normalisation"])
        assert "--mean and --std" in record["checkpoint"]["taken"] and "taken: " in err
    assert found[0] == found[1] == found[2]
    assert found[0] == {"mean": [0.5, 0.4, 0.3], "std": [0.2] * 3, "from": "--mean and --std"}


def test_what_was_taken_is_said_and_on_record(file, capsys):
    main(WORDS)
    said = capsys.readouterr().out
    assert (
        "taken: state_dict, the raw weights of net.pt as a wrn-10-1 with relu (by default)" in said
    )
    assert "left out: epoch" in said and "give --mean and --std" in said
    main([*WORDS, "--json"])
    (record,) = json.loads(capsys.readouterr().out)["records"]
    about = record["checkpoint"]
    assert about["nest"] == "state_dict" and about["left_out"] == ["epoch"]
    assert about["normalisation"] is None and about["taken"] in said
    assert all(note in said for note in about["notes"]) and about["notes"]
    main([*WORDS, "--weights", "averaged"])
    assert "there is no averaged net to choose" in capsys.readouterr().out


def test_the_data_set_decides_a_dm_nets_constants(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net = fastuiat.build_model("dm-wrn-10-1", 10, "silu")
    torch.save({k: v for k, v in net.state_dict().items() if k not in ("mean", "std")}, "net.pt")
    for dataset, mean in (("svhn", 0.5), ("cifar10", 0.4914)):
        words = ["export", "net.pt", "--format", "safetensors", "--arch", "wrn-10-1", "--json"]
        main([*words, "--dataset", dataset, "--out", f"{dataset}.safetensors"])
        document = json.loads(capsys.readouterr().out)
        assert document["normalisation"]["mean"][0] == mean and dataset in document["taken"]
        _, info = fastuiat.load_checkpoint(f"{dataset}.safetensors", dataset="cifar10")
        assert info["normalisation"]["mean"][0] == mean  # the file holds it now
