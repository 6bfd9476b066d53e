"""The paper's settings: one recipe per row of its tables, laid over what origins.py has.

Settings are laid over each other: the paper's common ones, the data set's, the method's, those of
training with generated images, the recipe's own, and last the user's flags.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from fastuiat import methods
from fastuiat.config import (
    OptimizerConfig,
    UserError,
    positive,
    radius_text,
    refuse_other_types,
)
from fastuiat.methods.rs_fgsm import SingleStepMethod
from fastuiat.origins import (
    PAPERS_EPOCHS,
    SCALED,
    Layer,
    common_layer,
    dataset_layer,
    extra_layer,
    extra_method_layer,
    flat,
    method_layer,
)
from fastuiat.presets import cifar10_20, cifar10_small, fashion_mnist_small
from fastuiat.training.config import TrainConfig, refuse_idle

DEFAULTS: dict[str, Any] = {
    name: getattr(TrainConfig(), name) for name in ("method", "dataset", "arch")
}
FLAG = "flag"
"""Origin of what the user says."""


def settings_of(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls)]


RUN_SETTINGS = [name for name in settings_of(TrainConfig) if name not in ("recipe", "settings")]
"""Settings that a run has whatever its method; those of the method lie beside them."""


def radius(levels: int) -> dict[str, Any]:
    return {"attack": {"eps": f"{levels}/255"}}


def table1() -> dict[str, Layer]:
    return {
        f"table1/{dataset}/{method}": Layer(
            "paper, Table 1", {"dataset": dataset, "method": method, "arch": "resnet-18"}
        )
        for dataset in ("cifar10", "cifar100", "svhn")
        for method in ("sat", "trades", "mart", "hat", "uiat", "uiat-oneoff")
    }


def table3() -> dict[str, Layer]:
    return {
        f"table3/eps-{eps}/{method}": Layer(
            "paper, Table 3",
            {"dataset": "cifar10", "method": method, "arch": "resnet-18"},
            radius(eps),
        )
        for eps in (10, 12, 16)
        for method in ("trades", "hat", "uiat", "uiat-oneoff")
    }


def table4() -> dict[str, Layer]:
    return {
        f"table4/{dataset}/{arch}/{method}": Layer(
            "paper, Table 4",
            {"dataset": dataset, "method": method, "arch": arch, "extra_data": "ddpm1m"},
        )
        for dataset in ("cifar10", "cifar100")
        for arch in ("prn-18", "wrn-28-10")
        for method in ("rebuffi", "hat", "uiat", "uiat-oneoff")
    }


def table5() -> dict[str, Layer]:
    return {
        f"table5/{method}{suffix}/eps-{eps}": Layer(
            "paper, Table 5", {"dataset": "cifar10", "method": method + suffix}, radius(eps)
        )
        for method in ("n-fgsm", "rs-fgsm", "gradalign")
        for suffix in ("", "+uiat")
        for eps in (6, 8, 10)
    }


def table6() -> dict[str, Layer]:
    """Universal generation (UAG), feature regularisation (FR), inverse momentum (IAM)."""
    rows = {
        "iat": ("iat", {"beta": 0.0}),
        "uag": ("uiat", {"beta": 0.0, "gamma": 0.0}),
        "uag+fr": ("uiat", {"gamma": 0.0}),
        "uag+iam": ("uiat", {"beta": 0.0}),
        "uag+fr+iam": ("uiat", {}),
    }
    return {
        f"table6/{name}": Layer(
            "paper, Table 6",
            {"dataset": "cifar10", "method": method, "arch": "resnet-18"},
            settings,
        )
        for name, (method, settings) in rows.items()
    }


def sweep(figure: str, method: str, setting: str, values: tuple[float, ...]) -> dict[str, Layer]:
    """One setting of a method over values of ours: the paper's are in its picture only."""
    return {
        f"{figure}/{setting.replace('_', '-')}-{value:g}": Layer(
            f"paper, Figure {figure.removeprefix('figure')}",
            {"dataset": "cifar10", "method": method, "arch": "resnet-18"},
            {setting: value},
            {setting: "ours: the paper's values are in its picture only"},
        )
        for value in values
    }


def figure2() -> dict[str, Layer]:
    """Learning curves of a run twice as long: its metrics hold test accuracy epoch by epoch."""
    run = {"dataset": "cifar10", "arch": "resnet-18", "epochs": 200, "test_every": 1}
    origins = {"oneoff_epoch": SCALED}
    return {
        f"figure2/{method}": Layer(
            "paper, Figure 2", run | {"method": method}, {"oneoff_epoch": 160}, origins
        )
        for method in ("sat", "uiat-oneoff")
    }


def figure3() -> dict[str, Layer]:
    return sweep("figure3", "uiat-oneoff", "lam", (1.5, 2.5, 3.5, 4.5, 5.5))


def figure7() -> dict[str, Layer]:
    return (
        sweep("figure7", "uiat", "beta", (0.0, 0.5, 1.0, 1.5, 2.0))
        | sweep("figure7", "uiat", "gamma", (0.0, 0.3, 0.5, 0.7, 0.9))
        | sweep("figure7", "uiat", "momentum_epoch", (25, 50, 75, 90))
        | sweep("figure7", "uiat-oneoff", "oneoff_epoch", (20, 40, 60, 80, 90))
    )


RECIPES: dict[str, Layer] = (
    table1() | table3() | table4() | table5() | table6() | figure2() | figure3() | figure7()
    | fashion_mnist_small() | cifar10_small() | cifar10_20()
)  # fmt: skip
"""By name: `table1/cifar10/uiat`, `table5/n-fgsm+uiat/eps-8`, …"""


def get(name: str) -> Layer:
    """UserError that names what is like it on an unknown recipe."""
    if name not in RECIPES:
        head = name.split("/", maxsplit=1)[0]
        alike = [known for known in RECIPES if known.startswith(head + "/")]
        tables = dict.fromkeys(known.split("/", maxsplit=1)[0] for known in RECIPES)
        known = ", ".join(alike) or "see `fastuiat recipes` for those of " + ", ".join(tables)
        raise UserError(f"unknown recipe '{name}': {known}")
    return RECIPES[name]


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid over `base`, nested settings one by one."""
    result = dict(base)
    for name, value in over.items():
        old = result.get(name)
        if isinstance(value, dict) and isinstance(old, dict):
            value = merged(old, value)
        result[name] = value
    return result


def fitting(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """The values that a settings class has a field for: one layer suits many methods."""
    result = {}
    for f in dataclasses.fields(cls):
        if f.name in values:
            value, factory = values[f.name], f.default_factory
            if isinstance(value, dict) and factory is not dataclasses.MISSING:
                value = fitting(type(factory()), value)
            result[f.name] = value
    return result


def places_of(cls: Any, path: tuple[str, ...] = ()) -> dict[str, tuple[str, ...]]:
    """Where each setting stands in a settings class that may nest others, by its own name."""
    found: dict[str, tuple[str, ...]] = {}
    for f in dataclasses.fields(cls):
        nested = None if f.default_factory is dataclasses.MISSING else f.default_factory()
        if dataclasses.is_dataclass(nested):
            found |= places_of(nested, (*path, f.name))
        else:
            found[f.name] = path
    return found


def at_length(layer: Layer, begun: int, epochs: int, keep: bool) -> Layer:
    """A layer in a run of another length: its T and T' scaled along where kept, else unset."""
    settings = {}
    for name, value in layer.settings.items():
        if not name.endswith("_epoch"):
            settings[name] = value
        elif keep and type(value) is int:
            settings[name] = max(1, round(value * epochs / begun))
        elif keep:  # None: by the method's own rule, whatever the length
            settings[name] = value
    return dataclasses.replace(layer, settings=settings)


CHOOSING = ("dataset", "method", "extra_data")
"""Settings of a run that choose layers."""


def layers_of(
    recipe: str | None, chosen: dict[str, Any], epochs: int | None, file: Layer | None = None
) -> list[Layer]:
    """All that is laid over each other, lowest first: `chosen` are the user's CHOOSING ones.

    T and T' of a layer belong to its own length: `epochs` is the user's. Those of `file`, the
    settings out of a file, are scaled along as a recipe's are.
    """
    own = get(recipe) if recipe else Layer("")
    base = DEFAULTS | {"extra_data": None} | own.run | chosen
    method, extra_data = base["method"], base["extra_data"]
    iterated = not issubclass(methods.get(method), SingleStepMethod)
    layers = [Layer("default", DEFAULTS), common_layer(iterated)]
    layers += [PAPERS_EPOCHS] if recipe else []
    layers += [method_layer(method), dataset_layer(base["dataset"], iterated)]
    if extra_data is not None:
        layers += [extra_layer(base["dataset"]), extra_method_layer(method)]
    layers.append(own)
    begun = next(layer.run["epochs"] for layer in reversed(layers) if "epochs" in layer.run)
    length = begun if file is None else file.run.get("epochs", begun)
    wanted = length if epochs is None else epochs
    if wanted != begun:
        layers = [at_length(layer, begun, wanted, keep=layer is own) for layer in layers]
    if file is not None:
        layers.append(file if wanted == length else at_length(file, length, wanted, keep=True))
    return layers


def resolve(
    recipe: str | None, overrides: dict[str, Any], file: Layer | None = None
) -> tuple[TrainConfig, dict[str, str]]:
    """`config(recipe, **overrides)`, and the origin of each setting by the name of its flag.

    `file` are settings out of a file, which lie between the two. Those of a method that
    `overrides` replace by another are left out where that one has none of the name.
    """
    named = (file.run if file else {}) | overrides
    chosen = {name: named[name] for name in CHOOSING if name in named}
    for told in (file.run if file else {}, overrides):
        refuse_other_types(TrainConfig, {k: told[k] for k in (*CHOOSING, "epochs") if k in told})
        positive(epochs=told.get("epochs", 1))
    run: dict[str, Any] = {"recipe": recipe}
    settings: dict[str, Any] = {}
    sources = {"recipe": FLAG} if recipe else {}
    for layer in layers_of(recipe, chosen, overrides.get("epochs"), file):
        run, settings = run | layer.run, merged(settings, layer.settings)
        sources |= layer.sources()
    names = [f.name for f in dataclasses.fields(OptimizerConfig) if f.name in run]
    run["optimizer"] = {name: run.pop(name) for name in names}
    run = merged(run, {name: value for name, value in overrides.items() if name in RUN_SETTINGS})
    cls = methods.get(run["method"]).Config
    own = {name: value for name, value in overrides.items() if name not in RUN_SETTINGS}
    if unknown := [name for name in own if name not in settings_of(cls)]:
        raise UserError(
            f"no setting '{unknown[0]}' of a run by {run['method']}: choose from "
            + ", ".join([*RUN_SETTINGS, *settings_of(cls)])
        )
    settings = merged(fitting(cls, settings), own)
    sources |= dict.fromkeys(flat(overrides), FLAG)
    return TrainConfig(**run, settings=settings), sources


def config(name: str | None = None, **overrides: Any) -> TrainConfig:
    """The settings of a recipe, or without a name those that fit data set, method and extra data.

    `overrides` are settings of the run and of its method, nested ones as dicts of what differs.
    Those of the data set, method and extra data choose layers, as the flags of `fastuiat train` do,
    and `epochs` scales T and T' along. UserError on an unknown recipe or setting, and on a setting
    that does nothing beside the others.

    >>> from fastuiat import recipes
    >>> short = recipes.config(
    ...     "table1/cifar10/uiat", epochs=20, attack={"steps": 5}, optimizer={"max_lr": 0.05}
    ... )
    >>> short.epochs, short.optimizer.max_lr, short.settings.attack.steps, short.settings.lam
    (20, 0.05, 5, 3.5)
    """
    made, _ = resolve(name, overrides)
    refuse_idle(made, flat(overrides))
    return made


def described(config: TrainConfig, sources: dict[str, str]) -> list[tuple[str, str, str]]:
    """(flag, value, origin) of every setting of a run."""
    rows = []
    method = f"default of {config.method}"
    for name, value, is_radius, in_method in named_values(config):
        text = radius_text(value) if is_radius and value is not None else str(value)
        source = sources.get(name, method if in_method else "default")
        rows.append((name.replace("_", "-"), text, source))
    return rows


def named_values(settings: Any, in_method: bool = False) -> list[tuple[str, Any, bool, bool]]:
    """(name, value, whether a radius, whether the method's) of each field, nested ones last."""
    plain, nested = [], []
    for f in dataclasses.fields(settings):
        value = getattr(settings, f.name)
        if dataclasses.is_dataclass(value):
            nested += named_values(value, in_method or f.name == "settings")
        else:
            plain.append((f.name, value, str(f.type).startswith("Radius"), in_method))
    return plain + nested
