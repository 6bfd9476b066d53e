"""`train --config FILE`: what a file says, what flags on top of it say, and what it cannot say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fastuiat import recipes
from fastuiat.cli import main
from fastuiat.commands.train import settings_in
from fastuiat.training.config import TrainConfig, plain

FLAGS = "--dataset digits --method trades --beta 4 --eps 4/255 --max-lr 0.05 --no-nesterov --seed 3"
AS_TOML = """
dataset = "digits"
method = "trades"
beta = 4.0
eps = "4/255"
max-lr = 0.05
nesterov = false
seed = 3
"""
NESTED = {
    "dataset": "digits",
    "method": "trades",
    "seed": 3,
    "optimizer": {"max_lr": 0.05, "nesterov": False},
    "settings": {"beta": 4.0, "attack": {"eps": 4 / 255}},
}


@pytest.fixture
def file(tmp_path):
    def write(content: str, name: str = "settings.toml") -> str:
        (tmp_path / name).write_text(content)
        return str(tmp_path / name)

    return write


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.toml", AS_TOML),
        ("a.json", json.dumps(NESTED)),
        ("of-no-kind", json.dumps(NESTED)),
        ("of-no-kind", "\ufeff" + AS_TOML),
        ("b.toml", AS_TOML.split("eps")[0] + "[optimizer]\nmax_lr = 5e-2\nnesterov = false\n"
         "[attack]\neps = \"4/255\"\n[settings]\n"),
    ],
)  # fmt: skip
def test_a_file_says_what_flags_say(file, name, content):
    flags = [w for w in FLAGS.split()]
    if name == "b.toml":
        flags = flags[:-2]
    assert settings_in(["--config", file(content, name)])[0] == settings_in(flags)[0]


def test_flags_lie_on_top_and_say_so(file):
    config, sources = settings_in(
        [f"--config={file(AS_TOML)}", "--eps", "6/255", "--seed=4", "--nesterov"]
    )
    assert (config.settings.attack.eps, config.seed) == (6 / 255, 4)
    assert config.optimizer.nesterov and config.optimizer.max_lr == 0.05
    assert sources["eps"] == "flag" and sources["max_lr"].endswith("settings.toml")


def test_a_file_lies_over_its_recipe_and_a_length_scales_both(file):
    begun = file('recipe = "table1/svhn/uiat"\nlam = 2.0\nepochs = 60\nmomentum_epoch = 30\n')
    config, _ = settings_in(["--config", begun])
    assert (config.recipe, config.dataset, config.epochs) == ("table1/svhn/uiat", "svhn", 60)
    assert (config.settings.lam, config.settings.momentum_epoch) == (2.0, 30)
    assert config.settings.attack.alpha == 1 / 255
    shorter, _ = settings_in(["--config", begun, "--epochs", "6"])
    assert (shorter.epochs, shorter.settings.momentum_epoch) == (6, 3)
    unsaid = file(json.dumps(plain(recipes.config(method="uiat", dataset="digits", epochs=20))))
    shorter, _ = settings_in(["--config", unsaid, "--epochs", "6"])
    assert (shorter.epochs, shorter.settings.momentum_epoch) == (6, None)
    # A file's own length is to the layers beneath it what a flag is.
    for length in ("epochs = 20", ""):
        flags = [] if length else ["--epochs", "20"]
        base = file(f'recipe = "table1/cifar10/uiat"\n{length}\n')
        wanted = settings_in(["--recipe", "table1/cifar10/uiat", "--epochs", "20"])[0]
        assert settings_in(["--config", base, *flags])[0] == wanted


def test_another_method_keeps_what_it_has(file):
    config, _ = settings_in(["--config", file(AS_TOML), "--method", "sat"])
    assert config.method == "sat" and config.settings.attack.eps == 4 / 255
    assert config == settings_in(["--method", "sat", *FLAGS.replace("--beta 4", "").replace(
        "--method trades", "").split()])[0]  # fmt: skip


@pytest.mark.parametrize("method", ["uiat", "hat", "gradalign+uiat", "rebuffi"])
def test_every_run_s_own_settings_come_back(method, file):
    config = recipes.config(method=method, dataset="digits", epochs=7)
    again, _ = settings_in(["--config", file(json.dumps(config.to_json()), "config.json")])
    assert again == config
    other, _ = settings_in(["--config", file(json.dumps(config.to_json())), "--seed", "1"])
    assert plain(other) == plain(config) | {"seed": 1}


def test_the_settings_of_an_old_run_are_read_by_their_old_names(file):
    stored = TrainConfig(dataset="digits", arch="prn-18-v1").to_json()
    optimizer = stored.pop("optimizer")
    stored |= {name: optimizer[name] for name in ("max_lr", "weight_decay")}
    stored["settings"]["inverse_bn"] = stored["settings"].pop("inverse_forward")
    config, _ = settings_in(["--config", file(json.dumps(stored), "config.json")])
    assert config == TrainConfig(dataset="digits", arch="prn-18-v1-bn")


@pytest.mark.parametrize(
    "content, words, said",
    [
        ("max_lrr = 1", "", "no setting 'max_lrr' of a run by uiat; the nearest are max_lr, "),
        ('method = "sat"\nlam = 1.0', "", "no setting 'lam' of a run by sat; the nearest are "),
        ("lam = 1.0", "--method sat", "no setting 'lam' of a run by sat"),
        ("[optimizer]\nlr = 1", "", "no setting 'lr' of a run by uiat; the nearest are max_lr"),
        ("[attack]\nepss = 1", "", "no setting 'epss' of a run by uiat; the nearest are eps, "),
        ("attack = 1", "", "attack must be names with values"),
        ("eps = 0.1\n[attack]\neps = 0.1", "", "has eps twice"),
        ("max-lr = 0.1\nmax_lr = 0.2", "", "has max_lr twice"),
        ('max_lr = "fast"', "", "--max-lr must be a number, got 'fast'"),
        ('eps = "fast"', "", "'fast' is not a radius"),
        ("seed = true", "", "--seed must be a whole number"),
        ('method = "sta"', "", "unknown method 'sta'"),
        ("method = 3", "", "unknown method '3'"),
        ("method = []", "", "--method must be words, got []"),
        ("dataset = {}", "", "--dataset must be words"),
        ("epochs = 0", "--epochs 5", "--epochs must be above 0"),
        ("epochs = 1e3", "--epochs 5", "--epochs must be a whole number"),
        ('epochs = 5\nmomentum_epoch = "2"', "--epochs 9", "--momentum-epoch must be a whole num"),
        ("epochs = 9999999999999", "", "--epochs must be at most 10^12"),
        ("max_lr = 99999999999999999999", "", "--max-lr must be below 2^64, got 99999999999999"),
        ("max_lr = -99999999999999999999", "", "--max-lr must be above -2^64"),
        (f"max_lr = 0x{5000 * 'f'}", "", "--max-lr must be below 2^64, got a number of thousands"),
        ('dataset = "nowhere"', "", "nowhere"),
        ("recipe = 3", "", "recipe must be words"),
        ('recipe = "table1"', "", "unknown recipe 'table1'"),
        ("seed = 1", "--config other.toml", "--config is given twice"),
        ('recipe = "table1/cifar10/sat"', "--recipe table1/cifar10/uiat", "leave --recipe out"),
        ("seed = 1", "--resume run", "leave --config out"),
        ("seed: 1", "", "is no TOML"),
        ("{", "", "is no JSON"),
        ("[1, 2]", "", "is no TOML"),
        ("\0\1", "", "is no TOML"),
    ],
)
def test_what_a_file_cannot_say(content, words, said, file, refusal):
    told = refusal("train", "--config", file(content), *words.split())
    assert said in told


def test_files_that_are_none(refusal, tmp_path):
    (tmp_path / "a.json").write_text("[1]")
    (tmp_path / "net.pt").write_bytes(b"PK\x03\x04\xff\xfe\x00")
    (tmp_path / "large").write_bytes(b"#" * (1 << 21))
    (tmp_path / "empty").mkdir()
    for name, said in {
        "a.json": "must hold names with values",
        "net.pt": "is no text",
        "large": "too large",
        "empty": "empty/config.json cannot be read: No such file",
        "nowhere.toml": "cannot be read: No such file",
    }.items():
        assert said in refusal("train", "--config", name)


@pytest.mark.slow
def test_a_run_s_own_file_is_that_run_again(tmp_path, monkeypatch, small_run, capsys):
    """Its folder is not taken over; the same seed gives the same bits, another one others."""
    monkeypatch.chdir(tmp_path)
    main(["train", *small_run, "--method", "natural", "--max-steps", "1", "--out", "a"])
    main(["train", "--config", "a/config.json", "--seed", "1", "--quiet"])
    main(["train", "--config", "a", "--out", "b"])
    states = [
        torch.load(folder / "checkpoints" / "last.pt", weights_only=True)["model"]
        for folder in (Path("a"), Path("b"), Path("runs/digits-natural-wrn-10-1-s1"))
    ]
    same = [all(torch.equal(states[0][k], other[k]) for k in other) for other in states[1:]]
    assert same == [True, False]
    before = Path("a/config.json").read_bytes()
    with pytest.raises(SystemExit):
        main(["train", "--config", "a/config.json", "--out", "a"])
    assert "already holds a run" in capsys.readouterr().err
    assert Path("a/config.json").read_bytes() == before
