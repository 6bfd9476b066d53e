"""What belongs to the paper, a data set, a kind of method or generated images, and who says so."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fastuiat import methods
from fastuiat.methods.rs_fgsm import SingleStepMethod

OURS = "ours: the paper says nothing"
SCALED = "ours: T and T' at the paper's share of its 100 epochs"


@dataclass(frozen=True)
class Layer:
    """Settings with one origin. Those of the method may name more than the method has.

    `run` has the optimiser's settings beside the run's own, as the command line has. `origins` are
    those of single settings that differ from `source`.
    """

    source: str
    run: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def sources(self) -> dict[str, str]:
        """The origin of each of its settings."""
        names = [*self.run, *flat(self.settings)]
        return {name: self.origins.get(name, self.source) for name in names}


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Nested settings by their own names, which are the names of their flags."""
    result: dict[str, Any] = {}
    for name, value in settings.items():
        result |= flat(value) if isinstance(value, dict) else {name: value}
    return result


def common_layer(iterated: bool) -> Layer:
    run = {
        "epochs": 100,
        "batch_size": 128,
        "max_lr": 0.1,
        "schedule": "one-cycle",
        "momentum": 0.9,
        "nesterov": True,
        "weight_decay": 5e-4,
    }
    silent = {"cycle_momentum": False, "decay_batchnorm": True, "batchnorm_momentum": None}
    attack = {"eps": "8/255", "alpha": "2/255", "steps": 10} if iterated else {"eps": "8/255"}
    origins = dict.fromkeys(silent, OURS)
    origins["schedule"] = "paper, A.2: cyclic; its legs as in HAT's code"
    return Layer("paper, A.2", run | silent, {"attack": attack}, origins)


PAPERS_EPOCHS = Layer("paper, A.2", settings={"momentum_epoch": 75, "oneoff_epoch": 80})
"""T and T' of the recipes; without one they are the method's defaults, the same of 100 epochs."""


def dataset_layer(dataset: str, iterated: bool) -> Layer:
    """SVHN trains shorter and attacks in smaller steps."""
    if dataset != "svhn":
        return Layer("")
    epochs = {"momentum_epoch": 23, "oneoff_epoch": 24}
    attack = {"attack": {"alpha": "1/255"}} if iterated else {}
    settings = {"lam": 3.0} | epochs | attack
    return Layer("paper, A.2: SVHN", {"epochs": 30}, settings, dict.fromkeys(epochs, SCALED))


SINGLE_STEP = {
    "rs-fgsm": ("Wong et al. 2020", "linear:0.5", 0.2),
    "n-fgsm": ("de Jorge et al. 2022", "linear:0.5", 0.2),
    "gradalign": ("Andriushchenko and Flammarion 2020", "linear:0.4", 0.3),
}
"""Whose code, its schedule and its peak."""


def single_step_layer(method: str) -> Layer:
    """As the code of a single-step method has it, with or without UIAT.

    But for the 30 epochs, which are N-FGSM's for all: RS-FGSM's own code has 15.
    """
    base = method.removesuffix("+uiat")
    source, schedule, max_lr = SINGLE_STEP.get(base, SINGLE_STEP["n-fgsm"])
    run = {
        "epochs": 30,
        "arch": "prn-18-v1",
        "max_lr": max_lr,
        "schedule": schedule,
        "momentum": 0.9,
        "nesterov": False,
    }
    origins = {"epochs": SINGLE_STEP["n-fgsm"][0], "oneoff_epoch": SCALED}
    return Layer(source, run, {"oneoff_epoch": 24}, origins)


REBUFFI = {"batchnorm_momentum": 0.01, "decay_batchnorm": False}
"""Of the trainer of Rebuffi et al. (2021), which HAT's authors use with generated images too."""
REBUFFI_CODE = "trainer of Rebuffi et al. 2021"


def method_layer(method: str) -> Layer:
    """What a method's own authors train it with, where the common settings differ.

    Of HAT one thing is left out, so that all methods of a table have it alike: its code leaves
    PyTorch's cycled momentum on (0.95 to 0.85 and back, `--cycle-momentum`), and here it is held.
    """
    if issubclass(methods.get(method), SingleStepMethod):
        return single_step_layer(method)
    if method == "rebuffi":
        run = {"weight_averaging": 0.995} | REBUFFI
        origins = {"weight_averaging": "paper, A.2: generated images"}
        return Layer(REBUFFI_CODE, run, origins=origins)
    return Layer("")


def extra_layer(dataset: str) -> Layer:
    """Training with a million generated images."""
    run = {
        "epochs": 400,
        "batch_size": 512,
        "max_lr": 0.2,
        "activation": "silu",
        "weight_averaging": 0.995,
        "extra_share": 0.6 if dataset == "cifar100" else 0.7,
    }
    settings = {"momentum_epoch": 350, "oneoff_epoch": 320}
    origins = dict.fromkeys(REBUFFI, REBUFFI_CODE)
    return Layer("paper, A.2: generated images", run | REBUFFI, settings, origins)


def extra_method_layer(method: str) -> Layer:
    """HAT's authors change its attack and loss where they add generated images."""
    if method != "hat":
        return Layer("")
    settings = {"beta": 3.5, "label_smoothing": 0.1, "attack_bn": "batch"}
    return Layer(
        "HAT's paper: generated images", settings=settings | {"attack": {"start": "uniform"}}
    )
