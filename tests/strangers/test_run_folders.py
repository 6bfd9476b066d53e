"""Run folders of strangers: anything may stand in place of their files, and in every text."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fastuiat import build_model
from tests.strangers.crafted import EVAL

pytestmark = pytest.mark.slow

EVIL = (
    '\x1b[31m\x1b]0;own\x07\u202e<script>alert(1)</script>"><img src=x onerror=a()>$\\frac{ [red]'
)


@pytest.fixture(scope="module")
def run_folder(forks, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("of_a_stranger")
    words = "train --dataset digits --arch wrn-10-1 --no-compile --max-steps 1 --batch-size 32"
    more = "--val-size 16 --log-every 1 --loader resident --out run"
    for command in (f"{words} {more}", "eval run --attacks clean --n 8"):
        done = forks.run(*command.split(), folder=folder)
        assert done.returncode == 0, done.stderr
    return folder / "run"


def test_hard_links_in_a_run_folder(run_folder, ended, tmp_path):
    """What is written anew is nobody else's file under another name."""
    for name in ("metrics.jsonl", ".lock"):
        shutil.copytree(run_folder, tmp_path / name / "run")
        (tmp_path / "mine").write_text('{"mine": 1}\n')
        place = tmp_path / name / "run" / name
        place.unlink(missing_ok=True)
        os.link(tmp_path / "mine", place)
        ended("train", "--resume", f"{name}/run")
        assert (tmp_path / "mine").read_text() == '{"mine": 1}\n'


def test_a_run_folder_of_others_is_data(run_folder, ended, tmp_path):
    """Pipes, links to themselves and texts without end in place of its files."""
    report, resume, evaluate = ("report", "run"), ("train", "--resume", "run"), ("eval", "run")
    for name, words in (
        ("config.json", report),
        ("config.json", resume),
        ("config.json", (*evaluate, *EVAL[2:])),
        ("environment.json", report),
        ("environment.json", resume),
        ("metrics.jsonl", report),
        ("eval/clean_n8.json", report),
        ("eval/clean_n8.json", (*evaluate, *EVAL[2:])),
    ):
        for what in ("deep", "pipe", "itself"):
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            shutil.copytree(run_folder, tmp_path / "run")
            if words is report:
                shutil.rmtree(tmp_path / "run" / "checkpoints")  # it would compute pictures
            file = tmp_path / "run" / name
            file.unlink()
            if what == "pipe":
                os.mkfifo(file)
            elif what == "itself":
                file.symlink_to(file.name)
            else:
                file.write_text("[" * 10**6)
            end = ended(*words)
            assert end.returncode in (0, 2), (name, what, words, end.stderr)
            assert end.returncode == 0 or end.stderr.count("\n") == 1, end.stderr


def test_what_a_terminal_or_a_page_obeys(run_folder, ended, tmp_path):
    """Escape sequences, characters that turn the line round, scripts and formulas in every text."""
    shutil.copytree(run_folder, tmp_path / "run")
    run = tmp_path / "run"
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"method": EVIL, "recipe": EVIL}))
    (run / "environment.json").write_text(json.dumps({"threads": 1, EVIL: EVIL, "cpu": {EVIL: 1}}))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps(line | {EVIL: 1.0}) + "\n" for line in lines]
    (run / "metrics.jsonl").write_text("".join(lines))
    record = json.loads((run / "eval" / "clean_n8.json").read_text())
    changed = record | {"attack": EVIL, "device": EVIL, "checkpoint": {"chosen": [EVIL]}}
    (run / "eval" / "clean_n8.json").write_text(json.dumps(changed))
    assert ended("report", "run").returncode == 0
    page = (run / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page  # it is there, and does nothing
    for obeyed in ("<script", "<img", "\x1b", "\x07", "\u202e"):
        assert obeyed not in page, obeyed
    for words in (("train", "--resume", "run"), ("eval", "run", *EVAL[2:])):
        ended(*words)  # which holds what it says to printable letters
    shutil.move(run, tmp_path / EVIL.replace("/", ""))
    assert ended("report", EVIL.replace("/", "")).returncode == 0
    state = build_model("wrn-10-1").state_dict() | {EVIL: torch.zeros(3, 3)}
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    safetensors.torch.save_file(state, tmp_path / "net.safetensors", {"arch": EVIL})
    ended("eval", "net.safetensors", "--dataset", "digits", *EVAL)
