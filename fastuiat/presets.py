"""Recipes of ours: methods beside each other on real images, at scales that little hardware trains.

What is measured of them, and on how many images, is in reproduce/rows.py.
"""

from __future__ import annotations

from typing import Any

from fastuiat.origins import Layer
from fastuiat.targets import InverseConfig


def fashion_mnist_small() -> dict[str, Layer]:
    """All methods on real images, small enough for 84 runs in 90 minutes of two CPU cores.

    benchmarks/fashion-mnist-small says why each setting is what it is. Rows that end in `bn-eval`
    take p from the forward that moves z.
    """
    run = {
        "dataset": "fashion-mnist",
        "arch": "wrn-10-1",
        "train_size": 2048,
        "val_size": 128,
        "epochs": 5,
        "batch_size": 32,
        "max_lr": 0.05,
        "schedule": "one-cycle",
        "nesterov": True,
    }
    # T and T' at the paper's 0.75 and 0.8 of the epochs.
    settings = {"momentum_epoch": 4, "oneoff_epoch": 4, "inverse_forward": "train"}
    single = [m + suffix for m in ("n-fgsm", "rs-fgsm", "gradalign") for suffix in ("", "+uiat")]
    iterated = ["sat", "trades", "mart", "hat", "iat", "uiat", "uiat-oneoff"]
    rows = [(eps, m, m, settings) for eps in (8, 16) for m in [*iterated, *single]]
    for method in ("uiat", "uiat-oneoff"):
        rows.append((8, f"{method}-bn-eval", method, settings | {"inverse_forward": "eval"}))
    return {
        f"fashion-mnist-small/eps-{eps}/{name}": Layer(
            "ours: fashion-mnist-small",
            run | {"method": method},
            own | {"attack": {"eps": f"{eps}/255"}},
        )
        for eps, name, method, own in rows
    }


READINGS = ("eval", "train", "attached")
"""Of the forward that gives p (`--inverse-forward`)."""


def cifar10_small() -> dict[str, Layer]:
    """CIFAR-10 at a scale that two CPU cores train in hours: what UIAT is worth, in each reading.

    The paper's settings, but for net, images, epochs and, in the rows `pgd-5`, the training attack:
    5 steps of 3/255. T and T' lie at the paper's 0.75 and 0.8 of the epochs. Rows without a reading
    in their name take the default one.
    """
    run = {
        "dataset": "cifar10",
        "arch": "wrn-10-2",
        "train_size": 12_800,
        "val_size": 1000,
        "epochs": 14,
        "batch_size": 128,
        "max_lr": 0.1,
        "schedule": "one-cycle",
        "nesterov": True,
    }
    short = {"attack": {"steps": 5, "alpha": "3/255"}}
    iterated = ["uiat-oneoff", "trades", "mart", "hat", "iat"]
    rows: list[tuple[str, str, dict[str, Any]]] = [("pgd-5/sat", "sat", short)]
    rows += [(f"pgd-5/uiat-{r}", "uiat", short | {"inverse_forward": r}) for r in READINGS]
    rows += [(f"pgd-5/{method}", method, short) for method in iterated]
    rows += [(f"pgd-5/{method}", method, {}) for method in ("n-fgsm", "n-fgsm+uiat")]
    rows += [(f"pgd-10/{method}", method, {}) for method in ("sat", "uiat")]
    return {
        f"cifar10-small/{name}": Layer(
            "ours: cifar10-small",
            run | {"method": method},
            {"momentum_epoch": 11, "oneoff_epoch": 11} | own,
        )
        for name, method, own in rows
    }


def cifar10_20() -> dict[str, Layer]:
    """All of CIFAR-10 in 20 epochs of the paper's net, for a GPU.

    `uiat` takes the default reading, the rows behind it the others.
    """
    run = {"dataset": "cifar10", "arch": "resnet-18", "epochs": 20, "batch_size": 128}
    rows: list[tuple[str, str, dict[str, Any]]] = [
        (method, method, {}) for method in ("sat", "uiat", "uiat-oneoff", "trades")
    ]
    others = [r for r in READINGS if r != InverseConfig().inverse_forward]
    rows += [(f"uiat-{r}", "uiat", {"inverse_forward": r}) for r in others]
    return {
        f"cifar10-20/{name}": Layer(
            "ours: cifar10-20",
            run | {"method": method},
            {"momentum_epoch": 15, "oneoff_epoch": 16} | own,
        )
        for name, method, own in rows
    }
