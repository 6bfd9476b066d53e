"""Every recipe against the paper's appendix A.2 and tables, written down a second time."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from fastuiat import methods, recipes
from fastuiat.cli import main
from fastuiat.commands.train import settings_in
from fastuiat.config import UserError
from fastuiat.training.config import TrainConfig

EPS8 = {"eps": 8 / 255, "alpha": 2 / 255, "steps": 10}
UIAT = {"lam": 3.5, "beta": 1.0, "inverse_eps": 4 / 255, "inverse_alpha": 4 / 255}
SGD = {
    "max_lr": 0.1,
    "schedule": "one-cycle",
    "momentum": 0.9,
    "cycle_momentum": False,
    "nesterov": True,
    "weight_decay": 5e-4,
    "decay_batchnorm": True,
    "batchnorm_momentum": None,
}
PLAIN_RUN = {
    "epochs": 100,
    "batch_size": 128,
    "optimizer": SGD,
    "arch": "resnet-18",
    "activation": "relu",
    "weight_averaging": 0.0,
    "extra_data": None,
}
EXTRA_RUN = {
    "epochs": 400,
    "batch_size": 512,
    "optimizer": SGD | {"max_lr": 0.2, "batchnorm_momentum": 0.01, "decay_batchnorm": False},
    "activation": "silu",
    "weight_averaging": 0.995,
    "extra_data": "ddpm1m",
}
SINGLE_RUN = PLAIN_RUN | {
    "epochs": 30,
    "optimizer": SGD | {"max_lr": 0.2, "schedule": "linear:0.5", "nesterov": False},
    "arch": "prn-18-v1",
}
GRADALIGN_RUN = SINGLE_RUN | {
    "optimizer": SINGLE_RUN["optimizer"] | {"max_lr": 0.3, "schedule": "linear:0.4"}
}

# name: (method, run settings, method settings, attack)
EXPECTED = {
    "table1/cifar10/sat": ("sat", PLAIN_RUN, {}, EPS8 | {"start": "uniform"}),
    "table1/cifar100/trades": ("trades", PLAIN_RUN, {"beta": 6.0}, EPS8 | {"start": "normal"}),
    "table1/cifar10/mart": ("mart", PLAIN_RUN, {"beta": 5.0}, EPS8 | {"start": "normal"}),
    "table1/cifar10/hat": (
        "hat",
        PLAIN_RUN,
        {"beta": 2.5, "gamma": 0.5, "h": 2.0, "label_smoothing": 0.0, "attack_bn": "eval"},
        EPS8 | {"start": "normal"},
    ),
    "table1/cifar100/uiat": ("uiat", PLAIN_RUN, UIAT | {"gamma": 0.9, "momentum_epoch": 75}, EPS8),
    "table1/cifar10/uiat-oneoff": ("uiat-oneoff", PLAIN_RUN, UIAT | {"oneoff_epoch": 80}, EPS8),
    "table1/svhn/trades": (
        "trades",
        PLAIN_RUN | {"epochs": 30},
        {"beta": 6.0},
        EPS8 | {"alpha": 1 / 255},
    ),
    "table1/svhn/uiat": (
        "uiat",
        PLAIN_RUN | {"epochs": 30},
        UIAT | {"lam": 3.0, "gamma": 0.9, "momentum_epoch": 23},
        EPS8 | {"alpha": 1 / 255},
    ),
    "table1/svhn/uiat-oneoff": (
        "uiat-oneoff",
        PLAIN_RUN | {"epochs": 30},
        UIAT | {"lam": 3.0, "oneoff_epoch": 24},
        EPS8 | {"alpha": 1 / 255},
    ),
    "table3/eps-16/uiat-oneoff": (
        "uiat-oneoff",
        PLAIN_RUN,
        UIAT | {"oneoff_epoch": 80},
        EPS8 | {"eps": 16 / 255},
    ),
    "table3/eps-10/hat": ("hat", PLAIN_RUN, {"beta": 2.5}, EPS8 | {"eps": 10 / 255}),
    "table4/cifar10/prn-18/rebuffi": (
        "rebuffi",
        EXTRA_RUN | {"arch": "prn-18", "extra_share": 0.7},
        {"beta": 6.0, "label_smoothing": 0.1},
        EPS8 | {"start": "uniform"},
    ),
    "table4/cifar100/wrn-28-10/hat": (
        "hat",
        EXTRA_RUN | {"arch": "wrn-28-10", "extra_share": 0.6},
        {"beta": 3.5, "gamma": 0.5, "h": 2.0, "label_smoothing": 0.1, "attack_bn": "batch"},
        EPS8 | {"start": "uniform"},
    ),
    "table4/cifar100/prn-18/uiat": (
        "uiat",
        EXTRA_RUN | {"arch": "prn-18", "extra_share": 0.6},
        UIAT | {"gamma": 0.9, "momentum_epoch": 350},
        EPS8,
    ),
    "table4/cifar10/wrn-28-10/uiat-oneoff": (
        "uiat-oneoff",
        EXTRA_RUN | {"arch": "wrn-28-10", "extra_share": 0.7},
        UIAT | {"oneoff_epoch": 320},
        EPS8,
    ),
    "table5/rs-fgsm/eps-6": ("rs-fgsm", SINGLE_RUN, {}, {"eps": 6 / 255, "alpha": None}),
    "table5/n-fgsm+uiat/eps-8": (
        "n-fgsm+uiat",
        SINGLE_RUN,
        UIAT | {"beta": 0.0, "oneoff_epoch": 24},
        {"eps": 8 / 255, "alpha": None},
    ),
    "table5/gradalign/eps-10": ("gradalign", GRADALIGN_RUN, {"mu": None}, {"eps": 10 / 255}),
    "table5/gradalign+uiat/eps-6": (
        "gradalign+uiat",
        GRADALIGN_RUN,
        UIAT | {"beta": 0.0, "oneoff_epoch": 24},
        {"eps": 6 / 255},
    ),
    "table6/iat": (
        "iat",
        PLAIN_RUN,
        {"lam": 3.5, "beta": 0.0, "inverse_alpha": 2 / 255, "inverse_steps": 5},
        EPS8,
    ),
    "table6/uag": ("uiat", PLAIN_RUN, UIAT | {"beta": 0.0, "gamma": 0.0}, EPS8),
    "table6/uag+fr": ("uiat", PLAIN_RUN, UIAT | {"gamma": 0.0}, EPS8),
    "table6/uag+iam": ("uiat", PLAIN_RUN, UIAT | {"beta": 0.0, "gamma": 0.9}, EPS8),
    "table6/uag+fr+iam": ("uiat", PLAIN_RUN, UIAT | {"gamma": 0.9}, EPS8),
    "figure3/lam-1.5": ("uiat-oneoff", PLAIN_RUN, UIAT | {"lam": 1.5}, EPS8),
    "figure7/oneoff-epoch-60": ("uiat-oneoff", PLAIN_RUN, UIAT | {"oneoff_epoch": 60}, EPS8),
    "figure7/gamma-0.5": ("uiat", PLAIN_RUN, UIAT | {"gamma": 0.5}, EPS8),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_settings(name):
    method, run, settings, attack = EXPECTED[name]
    config = recipes.config(name)
    assert (config.recipe, config.method) == (name, method)
    assert config.dataset == next((d for d in ("svhn", "cifar100") if d in name), "cifar10")
    for key, value in run.items():
        got = getattr(config, key)
        assert (dataclasses.asdict(got) if key == "optimizer" else got) == value, key
    for key, value in settings.items():
        assert getattr(config.settings, key) == value, key
    for key, value in attack.items():
        assert getattr(config.settings.attack, key) == value, key


def begun(argv: list[str]):
    """The settings of `fastuiat train`, which are those of the library with the same overrides."""
    config, _ = settings_in(argv)
    names = dict(zip([w[2:].replace("-", "_") for w in argv[::2]], argv[1::2], strict=True))
    if "epochs" in names:
        names["epochs"] = int(names["epochs"])
    assert recipes.config(names.pop("recipe", None), **names) == config
    return config


def test_one_recipe_per_row():
    count = {"table1": 18, "table3": 12, "table4": 16, "table5": 18, "table6": 5}
    for table, rows in count.items():
        assert sum(name.startswith(table + "/") for name in recipes.RECIPES) == rows
    for name in recipes.RECIPES:
        recipes.config(name)  # every one can be built


def test_flags_choose_layers_and_lengths():
    single = begun(["--method", "gradalign"])
    assert (single.epochs, single.optimizer.max_lr, single.arch) == (30, 0.3, "prn-18-v1")
    plain = begun(["--method", "rebuffi"])
    assert plain.weight_averaging == 0.995 and plain.extra_data is None
    assert plain.optimizer.batchnorm_momentum == 0.01 and not plain.optimizer.decay_batchnorm
    for method in ("sat", "uiat", "hat"):
        extra = begun(["--method", method, "--extra-data", "pool.npz"]).optimizer
        assert extra.batchnorm_momentum == 0.01 and not extra.decay_batchnorm
    svhn = begun(["--recipe", "table1/cifar10/uiat", "--dataset", "svhn"])
    assert svhn.settings.lam == 3.0 and svhn.epochs == 30
    # T and T' of another length are not kept: the method derives its own.
    short = begun(["--recipe", "table4/cifar10/prn-18/uiat-oneoff", "--epochs", "100"])
    assert short.settings.oneoff_epoch is None
    # But a sweep over T' stays one.
    swept = begun(["--recipe", "figure7/oneoff-epoch-60", "--epochs", "10"])
    assert swept.settings.oneoff_epoch == 6
    # SVHN's step size is for iterated attacks.
    assert begun(["--dataset", "svhn", "--method", "rs-fgsm"]).settings.attack.alpha is None
    other = begun(["--recipe", "table6/uag", "--method", "natural"])
    assert other.method == "natural"
    with pytest.raises(UserError, match="table5/n-fgsm/eps-8"):
        recipes.get("table5/n-fgsm/eps-12")


def origins(capsys, *words: str) -> dict[str, tuple[str, str]]:
    """(value, source) of each setting, as `fastuiat recipes` says."""
    main(["recipes", *words, "--json"])
    said = json.loads(capsys.readouterr().out)
    return {name: (entry["value"], entry["source"]) for name, entry in said.items()}


def test_who_says_so(capsys):
    """What no paper prints is called ours, and what a paper's code has is called that paper's."""
    svhn = origins(capsys, "table1/svhn/uiat")
    assert svhn["momentum-epoch"][0] == "23" and svhn["momentum-epoch"][1].startswith("ours")
    assert svhn["epochs"] == ("30", "paper, A.2: SVHN")
    assert svhn["lam"] == ("3.0", "paper, A.2: SVHN")
    assert origins(capsys, "table1/svhn/uiat-oneoff")["oneoff-epoch"][1].startswith("ours")
    assert origins(capsys, "table1/cifar10/uiat")["momentum-epoch"] == ("75", "paper, A.2")
    figure = origins(capsys, "figure2/uiat-oneoff")
    assert figure["oneoff-epoch"][0] == "160" and figure["oneoff-epoch"][1].startswith("ours")
    assert figure["epochs"] == ("200", "paper, Figure 2")
    swept = origins(capsys, "figure7/beta-2")
    assert swept["beta"][1].startswith("ours") and swept["arch"][1] == "paper, Figure 7"
    papers = {
        "rs-fgsm": "Wong et al. 2020",
        "n-fgsm": "de Jorge et al. 2022",
        "gradalign": "Andriushchenko and Flammarion 2020",
    }
    for base, paper in papers.items():
        for method in (base, f"{base}+uiat"):
            row = origins(capsys, f"table5/{method}/eps-8")
            for name in ("arch", "schedule", "max-lr", "nesterov"):
                assert row[name][1] == paper, (method, name)
            assert row["epochs"][1] == papers["n-fgsm"]
        assert row["oneoff-epoch"][0] == "24" and row["oneoff-epoch"][1].startswith("ours")
    extra = origins(capsys, "table4/cifar10/prn-18/rebuffi")
    assert extra["batchnorm-momentum"][1] == extra["decay-batchnorm"][1]
    assert "Rebuffi" in extra["decay-batchnorm"][1]
    assert extra["weight-averaging"][1] == "paper, A.2: generated images"
    for name in ("cycle-momentum", "decay-batchnorm", "batchnorm-momentum"):
        assert svhn[name][1].startswith("ours")
    # A T' that the user's length unsets is nobody's but the method's.
    short = origins(capsys, "table1/svhn/uiat-oneoff", "--epochs", "10", "--no-nesterov")
    assert short["epochs"] == ("10", "flag") and short["nesterov"] == ("False", "flag")
    assert short["oneoff-epoch"] == ("None", "default of uiat-oneoff")


def test_command_line(refusal, tmp_path, capsys):
    main(["recipes"])
    assert capsys.readouterr().out.split() == list(recipes.RECIPES)
    main(["recipes", "table5/n-fgsm+uiat/eps-10"])
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "10/255" in lines["eps"] and "Table 5" in lines["eps"]
    assert "24" in lines["oneoff-epoch"] and "default of n-fgsm+uiat" in lines["lam"]
    for words in (
        ["--recipe", "table1/cifar10/uiat-oneoff", "--oneoff-epoch", "101"],
        ["--recipe", "table1/cifar10/uiat", "--epochs", "20", "--momentum-epoch", "75"],
        ["--recipe", "table7/x"],
        ["--recipe", "table1/cifar10/sat", "--lam", "3"],
        ["--recipe", "table4/cifar10/prn-18/uiat", "--extra-share", "1.5"],
    ):
        refusal("train", *words)
        assert not list(tmp_path.iterdir())


def test_no_flags_and_no_arguments_are_the_same_run():
    assert settings_in([])[0] == TrainConfig() == recipes.config()
    config = TrainConfig()
    assert (config.dataset, config.method, config.epochs) == ("cifar10", "uiat", 100)
    # T is the paper's 75 without being named, and moves with the length.
    assert recipes.config("table1/cifar10/uiat").settings.momentum_epoch == 75
    for epochs, T in ((100, 75), (20, 15)):
        run = dataclasses.replace(config, epochs=epochs)
        method = methods.get("uiat")(
            run.settings, num_classes=2, num_samples=1, image_shape=(3, 8, 8), epochs=epochs, seed=0
        )
        assert method.target.start_epoch == T


def test_overrides():
    config = recipes.config(
        "table1/cifar10/uiat",
        epochs=20,
        seed=1,
        out="runs/x",
        lam=3.0,
        attack={"steps": 5, "eps": "4/255"},
        optimizer={"max_lr": 0.05},
    )
    assert (config.recipe, config.epochs, config.seed) == ("table1/cifar10/uiat", 20, 1)
    assert config.out == Path("runs/x") and config.optimizer.max_lr == 0.05
    assert config.optimizer.weight_decay == 5e-4
    settings = config.settings
    assert (settings.lam, settings.beta, settings.attack.steps) == (3.0, 1.0, 5)
    assert (settings.attack.eps, settings.attack.alpha) == (4 / 255, 2 / 255)
    words = "--epochs 20 --seed 1 --out runs/x --lam 3 --steps 5 --eps 4/255 --max-lr 0.05"
    assert settings_in(["--recipe", config.recipe, *words.split()])[0] == config
    # Single-step settings of another method come with it.
    assert recipes.config(method="n-fgsm").arch == "prn-18-v1"
    assert recipes.config("table4/cifar10/prn-18/uiat", extra_data=None).epochs == 100


@pytest.mark.parametrize(
    "overrides, said",
    [
        ({"max_lr": 0.1}, "no setting 'max_lr' of a run by uiat: choose from dataset, .*, lam, "),
        ({"attack": {"step": 5}}, "no setting 'step' in AttackConfig: .* eps, alpha, steps, start"),
        ({"optimizer": {"lr": 1}}, "no setting 'lr': choose from max_lr, schedule"),
        ({"method": "sat", "lam": 1.0}, "no setting 'lam' of a run by sat: .*, attack$"),
        ({"recipe": "table1/cifar10/sat"}, "no setting 'recipe'"),
        ({"settings": {}}, "no setting 'settings'"),
        ({"method": "foo"}, "unknown method 'foo'"),
        ({"extra_share": 0.6}, "--extra-share does nothing without --extra-data"),
        ({"loader": "fast"}, "--loader fast: choose from auto, ffcv, resident"),
        ({"inverse_forward": "half"}, "--inverse-forward half: choose from eval, train, attached"),
        ({"attack": {"start": "x"}}, "--start x: choose from uniform, normal, zero"),
        ({"method": "rs-fgsm", "attack": {"start": "x"}}, "--start x: choose from uniform, zero"),
        ({"gamma": 0.0, "momentum_epoch": 9}, "--momentum-epoch does nothing with --gamma 0"),
    ],
)
def test_overrides_that_cannot_be(overrides, said):
    with pytest.raises(UserError, match=said):
        recipes.config(None, **overrides)


def test_no_method_has_a_setting_with_the_name_of_a_runs():
    for name in methods.names():
        assert not set(recipes.settings_of(methods.get(name).Config)) & set(recipes.RUN_SETTINGS)


def test_settings_of_another_method_are_refused():
    config = recipes.config("table1/cifar10/uiat")
    with pytest.raises(UserError, match=r"settings are UIAT\.Config, --method trades takes"):
        dataclasses.replace(config, method="trades")
    plain = dataclasses.replace(config, method="trades", settings=None)
    assert plain.settings == methods.get("trades").Config()
    with pytest.raises(UserError, match="no setting 'lam'"):
        TrainConfig(method="sat", settings={"lam": 2})
    with pytest.raises(UserError, match="--max-lr must be above 0"):
        TrainConfig(optimizer={"max_lr": 0})
