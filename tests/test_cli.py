"""Bad input is one clear line, exit code 2, and nothing on the disk changes."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import fastuiat
from fastuiat import data
from fastuiat.cli import main
from fastuiat.commands.train import settings_in

SMALL = ["--dataset", "digits", "--arch", "wrn-10-1", "--loader", "resident", "--no-compile"]
SHORT = ["--steps", "1", "--batch-size", "32", "--val-size", "32", "--max-steps", "2"]


STABLE_FLAGS = re.findall(
    r"\S+",
    """recipe dataset data-dir arch activation method epochs batch-size max-lr seed out device
    precision compile loader workers extra-data extra-share resume weight-averaging weight-decay
    val-size test-every log-every max-steps checkpoint-minutes schedule momentum cycle-momentum
    nesterov no-nesterov decay-batchnorm no-decay-batchnorm batchnorm-momentum""",
)


def listing(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"folder"
        for path in folder.rglob("*")
    }


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run a command that must fail: returns its one line; nothing in tmp_path may change."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        before = listing(tmp_path)
        with pytest.raises(SystemExit) as stop:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert stop.value.code == 2, err
        assert err.count("\n") == 1 and err.startswith("fastuiat: "), err
        assert "Traceback" not in err + out and "─" not in err
        assert listing(tmp_path) == before
        return err

    return run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A finished small run; tests copy it."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    main(["train", *SMALL, *SHORT, "--out", str(folder)])
    return folder


@pytest.mark.parametrize(
    "words, said",
    [
        ("bogus", "choose from train, eval"),
        ("train --dataset imagenet", "cifar10, cifar100, digits, fashion-mnist, svhn"),
        ("train --arch resnet-19", "choose from .*resnet-18, dm-wrn-D-W, wrn-D-W"),
        ("train --arch wrn-11-2", "no legal depth"),
        ("train --arch wrn-28-0", "no legal depth"),
        ("train --method foo", "natural, .*sat.*uiat"),
        ("train --recipe foo", "fastuiat recipes"),
        ("train --recipe table1/foo", "table1/cifar10/uiat"),
        ("train --resume", "--resume needs a value"),
        ("train --resume nothing", "no run folder"),
        ("train --dataset", "--dataset needs a value"),
        ("train --activation gelu", "'gelu'.*relu.*silu"),
        ("train --loader fast", "auto.*ffcv.*resident"),
        ("train --eps 8", "--eps: a radius of 8 .* write 8/255"),
        ("train --eps 0", "--eps must be above 0"),
        ("train --eps -1/255", "--eps must be above 0"),
        ("train --eps abc", "'abc' is not a radius"),
        ("train --eps 8/0", "'8/0' is not a radius"),
        ("train --eps nan", "radius"),
        ("train --alpha 300/255", "outside the pixel range"),
        ("train --steps 0", "--steps must be at least 1"),
        ("train --steps 1.5", "--steps"),
        ("train --epochs 0", "--epochs must be above 0"),
        ("train --batch-size 0", "--batch-size must be above 0"),
        ("train --batch-size many", "--batch-size.*'many'"),
        ("train --max-lr inf", "--max-lr must be above 0 and finite"),
        ("train --max-lr nan", "--max-lr must be above 0 and finite"),
        ("train --weight-averaging 1", r"--weight-averaging must be in \[0, 1\)"),
        ("train --weight-decay -1", "--weight-decay must not be negative"),
        ("train --schedule cosine", "unknown schedule 'cosine': choose from one-cycle, linear:"),
        ("train --schedule one-cycle:0.3", "unknown schedule 'one-cycle:0.3': choose from"),
        ("train --schedule linear", r"--schedule linear: the peak's place must be in \(0, 1\)"),
        ("train --schedule linear:0", r"--schedule linear:0: .* in \(0, 1\), as linear:0.5"),
        ("train --schedule linear:1.5", r"--schedule linear:1.5: .* in \(0, 1\)"),
        ("train --schedule linear:x", r"--schedule linear:x: .* in \(0, 1\)"),
        ("train --schedule linear:nan", r"--schedule linear:nan: .* in \(0, 1\)"),
        ("train --momentum 1", r"--momentum must be in \[0, 1\), got 1"),
        ("train --momentum 0", "--nesterov needs a --momentum above 0: add --no-nesterov"),
        ("train --cycle-momentum --schedule linear:0.5", "goes with --schedule one-cycle"),
        ("train --cycle-momentum --momentum 0.96", "--momentum between 0.05 and 0.95"),
        ("train --batchnorm-momentum 0", r"--batchnorm-momentum must be in \(0, 1\], got 0"),
        ("train --extra-share 0", r"--extra-share must be in \(0, 1\]"),
        ("train --extra-share 1.1", r"--extra-share must be in \(0, 1\]"),
        ("train --gamma 2", r"--gamma must be in \[0, 1\]"),
        ("train --lam nan", "--lam and --beta"),
        ("train --seed -1", "--seed must not be negative"),
        ("train --workers 0", "--workers must be above 0"),
        ("train --momentum-epoch 101", "--momentum-epoch 101 is outside"),
        ("train --method uiat-oneoff --epochs 3 --oneoff-epoch 4", "--oneoff-epoch 4 is outside"),
        ("train --inverse-forward half", "--inverse-forward.*eval.*train.*attached"),
        ("train --inverse-bn eval", "--inverse-bn is --inverse-forward now: eval, train or attach"),
        (
            "train --method sat --inverse-forward eval",
            "no flag --inverse-forward with --method sat",
        ),
        ("train --bogus 3", "no flag --bogus with --method uiat"),
        ("train --method sat --lam 3", "no flag --lam with --method sat.*--eps"),
        ("train --method natural --eps 8/255", "no flag --eps with --method natural"),
        ("train --val-size 2000", "leaves nothing of 1438"),
        ("train --batch-size 5000", "larger than the 414 training images"),
        ("train --device gpu", "auto.*cpu.*cuda"),
        ("train --precision fp16 --device cpu", "fp16 .* use bf16 or fp32"),
        ("train --extra-share 0.7", "--extra-share does nothing without --extra-data"),
        ("train --extra_share=0.5", "--extra-share does nothing without --extra-data"),
        ("train --extra-data a.npz --extra_data=b.npz", "--extra-data is given twice"),
        ("data prepare digits --extra-data a --extra-data b", "--extra-data is given twice"),
        ("train --workers 4", "--workers does nothing with --loader resident"),
        ("train --test-every 101", "--test-every does nothing above the run's 100 epochs"),
        ("train --no-decay-batchnorm --weight-decay 0", "--decay-batchnorm does nothing with"),
        ("train --gamma 0 --momentum-epoch 5", "--momentum-epoch does nothing with --gamma 0"),
        ("train --method hat --gamma 0 --h 3", "--h does nothing with --gamma 0"),
        ("train --extra_data no.npz", "no.npz does not exist"),
        ("train --extra-data no.npz", "no.npz does not exist"),
        ("train --extra-data ddpm1m", "no ddpm1m images of digits"),
        ("eval", "PATH"),
        ("eval nothing", "nothing does not exist"),
        ("eval nothing --attacks foo", "'foo'.*autoattack"),
        ("eval nothing --eps 8", "write 8/255"),
        ("eval nothing --n 0", "--n must be at least 1"),
        ("data", "usage: fastuiat data prepare"),
        ("data prepare imagenet", "cifar10, cifar100"),
        ("recipes nothing", "unknown recipe"),
    ],
)
def test_flags(refused, words, said):
    argv = words.split()
    if argv[0] == "train" and "--dataset" not in argv:
        argv += ["--dataset", "digits", "--loader", "resident"]
    assert re.search(said, refused(*argv))


def test_cuda_where_there_is_none(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "use --device cpu" in refused("train", *SMALL, "--device", "cuda")


def test_missing_data_names_url_and_place(refused, monkeypatch):
    def no_network(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    said = refused("train", "--data-dir", "here")
    assert "cifar-10-python.tar.gz" in said and "http" in said and "here" in said
    shutil.rmtree("here", ignore_errors=True)
    said = refused("train", "--dataset", "svhn")
    assert "http" in said and "train_32x32.mat" in said


def test_unwritable_places(refused, tmp_path):
    (tmp_path / "file").write_text("")
    for out in ("file/run", "/proc/run", "file"):
        assert "cannot be written" in refused("train", *SMALL, "--out", out)


def test_a_folder_that_holds_a_run_is_kept(refused, tmp_path, run_folder):
    shutil.copytree(run_folder, tmp_path / "run")
    assert "already holds a run" in refused("train", *SMALL, "--out", "run")


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


def test_damaged_and_foreign_checkpoints(refused, tmp_path, run_folder):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    last = run / "checkpoints" / "last.pt"
    whole = last.read_bytes()
    (run / "checkpoints" / "best.pt").unlink(missing_ok=True)
    for content in (whole[: len(whole) // 2], whole[:10], b"", b"junk" * 99):
        last.write_bytes(content)
        for words in (["train", "--resume", "run"], ["eval", "run"]):
            assert "last.pt" in refused(*words)
    for blob in (pickle.dumps(Bomb()), pickle.dumps({"model": Bomb()})):
        last.write_bytes(blob)
        assert "last.pt" in refused("eval", "run") and "last.pt" in refused(
            "train", "--resume", "run"
        )
    torch.save({"model": Bomb()}, last)
    assert "refused unread" in refused("eval", "run")
    assert "refused unread" in refused("train", "--resume", "run")
    assert not (tmp_path / "exploded").exists()
    torch.save(fastuiat.build_model("wrn-10-2").state_dict(), last)
    assert "--arch" in refused("eval", "run")
    assert "another net" in refused("eval", "run", "--arch", "wrn-10-1", "--dataset", "digits")
    assert "not of this run" in refused("train", "--resume", "run")
    last.write_bytes(whole)
    assert "not of a resnet-18" in refused("eval", "run", "--arch", "resnet-18")


def test_resume_keeps_the_settings(refused, tmp_path, run_folder):
    shutil.copytree(run_folder, tmp_path / "run")
    for words in (
        "--max-lr 0.3",
        "--schedule linear:0.5",
        "--steps 2",
        "--method sat",
        "--seed 1",
        "--lam 1",
    ):
        assert words.split()[0] in refused("train", "--resume", "run", *words.split())
    (tmp_path / "run" / "config.json").write_text("{")
    assert "config.json" in refused("train", "--resume", "run")


def test_a_pool_that_does_not_fit(refused, tmp_path):
    images = np.zeros((20, 32, 32, 3), np.uint8)
    np.savez(tmp_path / "small.npz", image=images, label=np.zeros(20, np.int64))
    np.savez(tmp_path / "classes.npz", image=images, label=np.full(20, 10))
    np.savez(tmp_path / "keys.npz", image=images)
    said = refused("train", *SMALL, "--extra-data", "small.npz")
    assert "pool holds 20" in said
    assert "0…9" in refused("train", *SMALL, "--extra-data", "classes.npz")
    assert "lacks 'label'" in refused("train", *SMALL, "--extra-data", "keys.npz")


def test_results_of_another_checkpoint_stay(refused, tmp_path, run_folder):
    for name in ("a", "b"):
        shutil.copytree(run_folder, tmp_path / name)
    main(["eval", "a", "--attacks", "clean", "--n", "8", "--out", "shared"])
    record = json.loads((tmp_path / "shared/eval/clean_n8.json").read_text())
    assert record["n"] == 8 and len(record["per_sample"]) == 8 and record["checkpoint"]["sha256"]
    best = tmp_path / "b" / "checkpoints" / "best.pt"
    content = torch.load(best, weights_only=True)
    content["model"]["fc.bias"] += 1
    torch.save(content, best)
    assert "choose another --out" in refused(
        "eval", "b", "--attacks", "clean", "--n", "8", "--out", "shared"
    )


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, start):
    """The file-size limit of a real process stands for the full disk."""
    run = tmp_path / "run"
    words = [*SMALL, *SHORT, "--method", "natural", "--max-steps", "100", "--epochs", "9"]
    words.remove("--steps"), words.remove("1")

    done = start("train", *words, "--out", run, largest=100_000)
    assert done.wait() == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "could not be written" in done.stderr
    assert [p.name for p in (run / "checkpoints").iterdir()] == []


@pytest.mark.slow
def test_training_that_diverges_stops_at_the_step(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["train", *SMALL, *SHORT, "--max-lr", "1e38", "--max-steps", "30", "--out", "run"])
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert re.search(r"non-finite at step \d+: lower --max-lr; none was saved yet", said)
    assert not list((tmp_path / "run" / "checkpoints").glob("*.pt"))


def test_the_command_of_the_papers_table_4():
    """`fastuiat train --arch wrn-28-10 --extra-data ddpm1m`, as typed."""
    argv = ["--arch", "wrn-28-10", "--extra-data", "ddpm1m"]
    config, _ = settings_in(argv)
    assert (config.dataset, config.method) == ("cifar10", "uiat")
    assert (config.epochs, config.batch_size, config.optimizer.max_lr) == (400, 512, 0.2)
    assert (config.activation, config.weight_averaging) == ("silu", 0.995)
    assert (config.extra_share, config.settings.momentum_epoch) == (0.7, 350)
    assert config.settings.attack.eps == 8 / 255
    assert settings_in([*argv, "--dataset", "cifar100"])[0].extra_share == 0.6


def test_help_lists_the_settings_of_the_method_only(capsys):
    shown = {}
    for method in ("natural", "uiat"):
        with pytest.raises(SystemExit) as stop:
            main(["train", "--method", method, "--help"])
        assert stop.value.code == 0
        shown[method] = capsys.readouterr().out
    for flag in ("--lam", "--beta", "--gamma", "--eps", "--alpha", "--steps"):
        assert flag in shown["uiat"] and flag not in shown["natural"].replace("--max-steps", "")
    for flag in STABLE_FLAGS:
        assert f"--{flag}" in shown["natural"], flag


@pytest.mark.skipif(not data.ffcv_available(), reason="ffcv is not installed")
def test_a_damaged_beton_is_named(refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["data", "prepare", "digits"])
    (path,) = (tmp_path / "data").glob("*.beton")
    path.write_bytes(path.read_bytes()[:-1])
    words = [w if w != "resident" else "ffcv" for w in SMALL]
    assert "truncated or was changed: delete" in refused("train", *words)
    assert "truncated or was changed: delete" in refused("data", "prepare", "digits")
