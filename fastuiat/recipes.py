"""Settings by name: the defaults that the paper gives each data set and kind of run."""

from __future__ import annotations

from typing import Any

DEFAULTS: dict[str, Any] = {"method": "uiat", "dataset": "cifar10", "arch": "resnet-18"}


def recipe_settings(
    dataset: str, extra_data: str | None, method: str = "uiat"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(run settings, method settings) of the paper's section A.2 for a data set.

    The method settings name only what differs from the method's own defaults, and may hold
    settings that a method does not have.
    """
    run: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    if dataset == "svhn":
        run |= {"epochs": 30}
        settings |= {"lam": 3.0, "attack": {"alpha": "1/255"}}
        settings |= {"momentum_epoch": 23, "oneoff_epoch": 24}
    if extra_data is not None:
        run |= {
            "epochs": 400,
            "batch_size": 512,
            "max_lr": 0.2,
            "activation": "silu",
            "weight_averaging": 0.995,
            "extra_share": 0.6 if dataset == "cifar100" else 0.7,
        }
        settings |= {"momentum_epoch": 350, "oneoff_epoch": 320}
    return run, settings


def _table1() -> dict[str, dict[str, Any]]:
    return {
        f"table1/{dataset}/{method}": {"dataset": dataset, "method": method, "arch": "resnet-18"}
        for dataset in ("cifar10", "cifar100", "svhn")
        for method in ("sat", "uiat", "uiat-oneoff")
    }


def _table4() -> dict[str, dict[str, Any]]:
    return {
        f"table4/{dataset}/{arch}/{method}": {
            "dataset": dataset,
            "method": method,
            "arch": arch,
            "extra_data": "ddpm1m",
        }
        for dataset in ("cifar10", "cifar100")
        for arch in ("prn-18", "wrn-28-10")
        for method in ("uiat", "uiat-oneoff")
    }


RECIPES: dict[str, dict[str, Any]] = _table1() | _table4()
"""One recipe per row of the paper's tables whose method is here."""
