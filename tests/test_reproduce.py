"""reproduce: which rows, at what scale, skipped or gone on with, and what the table says."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import math
import pickle
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastuiat import paper, recipes, reproduce
from fastuiat.commands.train import settings_in
from fastuiat.config import UserError
from fastuiat.data import Fingerprint
from fastuiat.evaluation.record import file_name
from fastuiat.files import sha256_of
from fastuiat.reproduce import Options, rows
from fastuiat.reproduce.runs import curve, seconds_per_epoch
from tests.processes import living_in


class FakeRuns:
    """Stands in for the child processes: leaves what they would leave, and counts them."""

    def __init__(self, accuracy=0.5, fails=()):
        self.calls, self.accuracy, self.fails = [], accuracy, fails

    def __call__(self, *words):
        self.calls.append(words)
        if any(text in " ".join(words) for text in self.fails):
            raise UserError("fastuiat train ended with exit code 1")
        if words[0] == "train" and "--resume" not in words:
            config, _ = settings_in(list(words[1:]))
            self.finish(Path(config.out), config.to_json())
        elif words[0] == "train":
            folder = Path(words[2])
            self.finish(folder, json.loads((folder / "config.json").read_text()))
        else:
            self.evaluate(Path(words[1]), words)

    def finish(self, folder, config):
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        lines = [
            {"kind": "epoch", "epoch": e, "step": 2 * e, "clock": {"images_per_second": speed}}
            for e, speed in ((1, 1.0), (2, config["batch_size"] / 2))
        ]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        state = {"validated_epoch": config["epochs"], "x": torch.rand(3)}
        for name in ("last", "best"):
            torch.save(state, folder / "checkpoints" / f"{name}.pt")

    def evaluate(self, folder, words):
        attacks = words[words.index("--attacks") + 1 : words.index("--n")]
        n, eps = int(words[words.index("--n") + 1]), float(words[words.index("--eps") + 1])
        sha = sha256_of(folder / "checkpoints" / "best.pt")
        (folder / "eval").mkdir(exist_ok=True)
        seed = int(folder.name.removeprefix("seed-"))
        for attack in attacks:
            record = {"accuracy": self.accuracy + seed / 100, "checkpoint": {"sha256": sha}}
            path = folder / "eval" / f"{file_name(attack, eps, n)}.json"
            path.write_text(json.dumps(record))

    def of(self, command):
        return [words for words in self.calls if words[0] == command]


@pytest.fixture
def runs(monkeypatch, tmp_path):
    fake = FakeRuns()
    monkeypatch.setattr(reproduce.Children, "run", lambda _, *words: fake(*words))
    monkeypatch.chdir(tmp_path)
    return fake


def small(table="table1", **more):
    settings = {"dataset": "digits", "arch": "wrn-10-1", "epochs": 3, "n": 32} | more
    return Options(table=table, **settings)


def test_paper_values_belong_to_recipes():
    for table, content in paper.tables().items():
        if content.unit == "%":
            names = [n for n in recipes.RECIPES if n.startswith(f"{table}/")]
            assert [f"{table}/{row}" for row in content.rows] == names
    table1 = paper.tables()["table1"].rows
    assert table1["cifar10/uiat"] == (85.01, 54.63, 51.10, 49.11)
    assert table1["svhn/mart"] == (89.88, 58.48, 52.48, 48.44)
    assert paper.tables()["table2"].rows["hat"] == (4.02, 16.88, 18.95)
    assert paper.tables()["table4"].rows["cifar100/wrn-28-10/uiat-oneoff"] == (62.45, 31.43)
    assert paper.tables()["table5_time"].rows["gradalign+uiat"] == (107.8,)


def test_rows():
    def names(**options):
        return [row.name for row in rows.rows_of(Options(**options))]

    assert len(names(table="table1")) == 18
    assert names(table="table1", dataset="svhn")[0] == "svhn/sat"
    assert len(names(table="table1", dataset="svhn")) == 6
    assert names(table="table1", dataset="digits")[-1] == "cifar10/uiat-oneoff"
    four = names(table="table4", dataset="cifar100", arch="wrn-10-1", extra_data="pool.npz")
    assert four == [f"cifar100/prn-18/{m}" for m in ("rebuffi", "hat", "uiat", "uiat-oneoff")]
    made = rows.rows_of(Options(table="table3", epochs=20))
    assert [round(row.eps * 255) for row in made[::4]] == [10, 12, 16]
    assert made[3].paper == (82.76, 41.16)


def test_skips_what_is_finished_and_resumes_what_is_not(runs, tmp_path):
    out = reproduce.reproduce(small(seeds=(0, 1)), lambda text: None)
    assert len(runs.of("train")) == 12 and len(runs.of("eval")) == 12
    for words in runs.of("train"):
        assert "--no-compile" in words and words[words.index("--val-size") + 1] == "143"
    table = json.loads((tmp_path / out / "table1.json").read_text())
    sat = table["rows"][0]
    assert sat["paper"] == {"natural": 83.8, "pgd": 51.4, "cw": 50.17, "autoattack": 47.68}
    assert sat["ours"]["pgd"]["mean"] == pytest.approx(50.5)
    assert sat["ours"]["pgd"]["stdev"] == pytest.approx(math.sqrt(0.5))
    text = (tmp_path / out / "table1.md").read_text()
    assert "cifar10/sat †" in text and "50.50 ± 0.71" in text and "51.40" in text
    for difference in ("digits instead of cifar10", "epochs 3 instead of 100", "32 of 359"):
        assert difference in text
    runs.calls.clear()
    reproduce.reproduce(small(seeds=(0, 1)), lambda text: None)
    assert runs.calls == []
    # One run lost its end, another its best checkpoint's evaluation.
    broken = out / "cifar10-mart" / "seed-1"
    torch.save({"validated_epoch": 2}, broken / "checkpoints" / "last.pt")
    (out / "cifar10-hat" / "seed-0" / "eval" / "pgd-20_eps8over255_n32.json").unlink()
    reproduce.reproduce(small(seeds=(0, 1)), lambda text: None)
    assert runs.of("train") == [("train", "--resume", str(broken))]
    again = {words[1]: words for words in runs.of("eval")}
    assert set(again) == {str(broken), str(out / "cifar10-hat" / "seed-0")}
    hat = again[str(out / "cifar10-hat" / "seed-0")]
    assert hat[hat.index("--attacks") + 1 : hat.index("--n")] == ("pgd",)


def test_a_failed_row_is_a_row(runs, tmp_path):
    runs.fails = ("table1/cifar10/hat",)
    with pytest.raises(UserError, match="1 of 6 rows failed: cifar10/hat"):
        reproduce.reproduce(small(out=tmp_path / "o"), lambda text: None)
    text = (tmp_path / "o" / "table1.md").read_text()
    assert "failed" in text and "exit code 1" in text and "cifar10/uiat-oneoff" in text
    runs.fails = ()
    runs.calls.clear()
    reproduce.reproduce(small(out=tmp_path / "o"), lambda text: None)
    assert len(runs.of("train")) == 1
    assert "failed" not in (tmp_path / "o" / "table1.md").read_text()


def test_a_table_has_one_writer_who_removes_what_the_killed_left(runs, tmp_path):
    options = small(rows=("cifar10/sat",), out=tmp_path / "o")
    left = [
        tmp_path / "o" / ".table1.json-01234567",
        tmp_path / "o/cifar10-sat/seed-0/.made.json-89abcdef",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    with open(tmp_path / "o" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"o is being written by .*choose another --out"):
            reproduce.reproduce(options)
        assert not runs.calls and all(path.exists() for path in left)
    reproduce.reproduce(options)
    assert runs.calls and not any(path.exists() for path in left)


def test_another_scale_in_the_same_folder_is_refused(runs, tmp_path):
    reproduce.reproduce(small("table6", out=tmp_path / "o"), lambda text: None)
    runs.calls.clear()
    with pytest.raises(UserError, match="5 of 5 rows failed"):
        reproduce.reproduce(small("table6", epochs=4, out=tmp_path / "o"), lambda text: None)
    assert runs.calls == []


def test_the_words_of_a_row_say_its_settings():
    """What a run's process parses is what the table reckons with."""
    options = Options(table="table4", extra_data="pool.npz", epochs=20, compile=False)
    for row in rows.rows_of(options):
        changed = rows.fitted_to_data(row, options, 50_000) | {"seed": 3, "out": Path("o")}
        parsed, _ = settings_in(rows.flags_of(row.recipe, changed))
        assert parsed == recipes.config(row.recipe, **changed)
        assert (
            not parsed.compile
            and dataclasses.replace(parsed, seed=0, out=None, compile=True) == row.config
        )


def test_at_the_papers_scale_nothing_is_marked():
    options = Options(table="table1", dataset="svhn")
    row = rows.rows_of(options)[4]
    assert rows.differences(row, options, (73_257, 26_032)) == []
    changed = rows.fitted_to_data(row, options, 73_257)
    assert changed == {"data_dir": Path("data"), "device": "auto", "dataset": "svhn"}


@pytest.mark.parametrize(
    "words",
    [
        ["table9"],
        ["table2"],
        ["figure1"],
        ["table1", "--seeds", "0", "0"],
        ["table1", "--n", "0"],
        ["table1", "--dataset", "nowhere"],
        ["table1", "--dataset", "digits", "--arch", "wrn-9-1"],
        ["table1", "--dataset", "digits", "--extra-data", "pool.npz"],
        ["table4", "--extra-data", "a.npz", "--extra-data", "b.npz"],
        ["table1", "--dataset", "cifar10", "--data-dir", "nothere"],
    ],
)
def test_bad_input_is_one_line(refusal, tmp_path, words):
    refusal("reproduce", *words)
    assert not list(tmp_path.rglob("config.json"))


@pytest.fixture
def two_rows(monkeypatch):
    """The preset with two of its rows, on a data set that is as large as Fashion-MNIST."""
    few = {n: r for n, r in recipes.RECIPES.items() if n.endswith(("eps-8/sat", "eps-16/mart"))}
    monkeypatch.setattr(recipes, "RECIPES", few)

    def load(name, data_dir, split, unchecked):
        sums = dict.fromkeys(("sha256", "images", "labels", "unordered"), split)
        known = Fingerprint(name=name, split=split, n=60_000, num_classes=10, **sums)
        return SimpleNamespace(fingerprint=known)

    monkeypatch.setattr(reproduce.data, "load", load)


def preset(**more):
    return Options(table="fashion-mnist-small", **more)


def test_a_preset_has_a_scale_of_its_own(runs, tmp_path, two_rows):
    """Its seeds, images by column and rows; no paper beside it."""
    said = []
    out = reproduce.reproduce(preset(), said.append)
    trained = {(w[w.index("--recipe") + 1], w[w.index("--seed") + 1]) for w in runs.of("train")}
    names = ("fashion-mnist-small/eps-8/sat", "fashion-mnist-small/eps-16/mart")
    assert trained == {(name, seed) for name in names for seed in "012"}
    evaluations = {(w[1], w[w.index("--n") + 1], w[3 : w.index("--n")]) for w in runs.of("eval")}
    sat = str(out / "eps-8-sat" / "seed-1")
    assert (sat, "200", ("clean", "pgd")) in evaluations
    assert (sat, "24", ("autoattack",)) in evaluations and len(evaluations) == 12
    table = json.loads((tmp_path / out / "fashion-mnist-small.json").read_text())
    mart = table["rows"][1]
    assert mart["n"] == {"natural": 200, "pgd": 200, "autoattack": 24} and not mart["differs"]
    assert mart["time"] == {"mean": 4.0, "stdev": 0.0, "runs": 3}
    text = (tmp_path / out / "fashion-mnist-small.md").read_text()
    assert "paper" not in text and "| s per epoch" in text and "51.00 ± 1.00" in text
    assert "Test images: natural 200, pgd 200, autoattack 24." in text
    assert any("6 of 6 runs" in line for line in said)
    (origin,) = table["made"]
    assert origin["n"] == 6 and origin["jobs"] == 2


def test_one_seed_comes_before_the_next(runs, two_rows):
    reproduce.reproduce(preset(jobs=1), lambda text: None)
    assert [w[w.index("--seed") + 1] for w in runs.of("train")] == list("001122")


def test_what_was_made_keeps_its_origin(runs, tmp_path, two_rows):
    """A later call on another machine, or with other jobs, says nothing of runs that it skips."""
    out = reproduce.reproduce(preset(seeds=(0,)), lambda text: None)
    for file in (tmp_path / out).rglob("made.json"):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"device": "another"}))
    reproduce.reproduce(preset(seeds=(0, 1), jobs=1, out=out), lambda text: None)
    table = json.loads((tmp_path / out / "fashion-mnist-small.json").read_text())
    assert [(o["n"], o["jobs"]) for o in table["made"]] == [(2, 2), (2, 1)]
    assert [o["device"] == "another" for o in table["made"]] == [True, False]


def test_another_scale_than_the_presets_is_marked(two_rows):
    def differing(sizes=(60_000, 10_000), **more):
        options = preset(**more)
        row = rows.rows_of(options)[0]
        return rows.differences(row, options, sizes)

    assert differing() == [] == differing(n=200)
    assert differing(n=10_000) == ["10000 of 10000 test images"]
    small = differing(sizes=(1_438, 359), dataset="digits")
    assert "trained on 1310 images instead of 2048" in small
    row = rows.rows_of(preset(dataset="digits"))[0]
    assert rows.fitted_to_data(row, preset(dataset="digits"), 1_438)["train_size"] == 1310


def test_only_whole_epochs_are_timed(tmp_path):
    """The first warms up; one that was stopped in, even on its last step, tells nothing."""

    def epoch(number, steps, speed):
        clock = {"steps": steps, "images_per_second": speed}
        return {"kind": "epoch", "epoch": number, "step": 10 * number, "clock": clock}

    lines = [epoch(1, 10, 1.0), epoch(2, 10, 100.0), epoch(3, 2, 9.0), epoch(4, 0, 0.0)]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in [*lines, epoch(5, 10, 50.0)]))
    assert seconds_per_epoch(tmp_path, batch_size=20) == pytest.approx((2 + 4) / 2)
    file.write_text(json.dumps(lines[0]) + "\n")
    assert seconds_per_epoch(tmp_path, batch_size=20) is None


@pytest.mark.parametrize("content", [None, "null\n", "{", '{"kind": "epoch"}\n'])
def test_a_log_that_is_lost_or_damaged_is_one_line(content, tmp_path):
    if content is not None:
        (tmp_path / "metrics.jsonl").write_text(content)
    for read in (lambda: seconds_per_epoch(tmp_path, 1), lambda: curve(tmp_path)):
        with pytest.raises(UserError, match=r"metrics\.jsonl(, line 1)? is (lost|damaged): move"):
            read()
    (tmp_path / "metrics.jsonl").write_text("")
    assert seconds_per_epoch(tmp_path, 1) is None and curve(tmp_path) == []


def test_all_methods_are_in_the_preset_under_the_same_budget():
    made = rows.rows_of(preset())
    assert len(made) == 28 and len({row.config.method for row in made}) == 13
    budgets = {
        (c.train_size, c.epochs, c.batch_size, c.optimizer, c.arch, c.val_size)
        for c in (row.config for row in made)
    }
    assert len(budgets) == 1
    assert {round(255 * row.eps) for row in made} == {8, 16}


def end_once_begun(process, folder, signum):
    """While two runs are under way: they end with it however it ends, and it begins no other."""
    while len(living_in(folder)) < 3 or len(list((folder / "o").glob("*/*/config.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signum)
    assert process.wait(300) == (130 if signum == signal.SIGTERM else -signum)
    while signum == signal.SIGKILL and living_in(folder):  # nobody waits for them
        time.sleep(0.02)
    assert not living_in(folder)
    assert "Traceback" not in process.stdout + process.stderr


@pytest.mark.timeout(1200)
def test_real_runs(fastuiat, start, tmp_path):
    """Two rows of real training and evaluation; the second call finds nothing left to do."""
    folder = tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        rows = random.integers(0, 256, (60, 3072), dtype=np.uint8)
        content = {b"data": rows, b"labels": [i % 10 for i in range(60)]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    words = ["figure2", "--arch", "wrn-10-1", "--epochs", "1", "--n", "8", "--jobs", "2"]
    words += ["--unchecked-data"]
    for signum in (signal.SIGKILL, signal.SIGTERM):
        end_once_begun(start("reproduce", *words, "--out", "o"), tmp_path, signum)
    first = fastuiat("reproduce", *words, "--out", "o", timeout=900)
    assert first.returncode == 0, first.stderr
    table = json.loads((tmp_path / "o/figure2.json").read_text())
    assert [row["row"] for row in table["rows"]] == ["sat", "uiat-oneoff"]
    assert all(0 <= row["ours"]["pgd"]["mean"] <= 100 for row in table["rows"])
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.pt")}
    second = fastuiat("reproduce", *words, "--out", "o")
    assert second.returncode == 0 and not re.search(r"epoch +\d", second.stdout)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*.pt")} == before
