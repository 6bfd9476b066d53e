"""Checkpoints: written whole or not at all, read without running anything they hold."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastuiat.config import UserError, legible
from fastuiat.data import DATASETS, dataset_info, names_path
from fastuiat.files import write_atomically
from fastuiat.models import build_model
from fastuiat.models.deepmind import NormalisedInside
from fastuiat.models.entries import Constants
from fastuiat.models.heads import on_meta
from fastuiat.models.interchange import (
    load_published,
    load_weights,
    oddities,
    refuse_misfit,
)
from fastuiat.models.libraries import OWN, is_of_library
from fastuiat.models.normalised import Normalised, like
from fastuiat.models.normalised import constants as checked
from fastuiat.training.checkpoint_file import locate
from fastuiat.training.reading import is_safetensors, read_safetensors, read_with_sha256

__all__ = [
    "FORMAT", "load_checkpoint", "net_of", "open_checkpoint", "read", "save_checkpoint",
]  # fmt: skip

logger = logging.getLogger(__name__)

FORMAT = "fastuiat-checkpoint-1"
MOST_CLASSES = 10**6
"""No data set has more, and a net of more is a typing error or a trap."""
MOST_PIXELS = 1 << 14
"""A side of an image."""
DESCRIBED_BY_US = {"arch", "num_classes", "activation"}
"""What `export` writes into a file's metadata, always."""
MOST_SHOWN = 12
"""Names of what was left out, in a line for people."""
FULL = {
    errno.ENOSPC: "disk full",
    errno.EDQUOT: "disk quota used up",
    errno.EFBIG: "larger than files may be here",
}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Tensors and plain values only; UserError where the disk is full or not writable."""
    try:
        write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path} could not be written: {why_unwritten(path, error)}") from error


def why_unwritten(path: Path, error: BaseException) -> str:
    """What kept a checkpoint from the disk, in words, and which one there is."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):  # PyTorch wraps what `write` raises
        cause = cause.__cause__ or cause.__context__
    if isinstance(cause, FileNotFoundError) and not path.parent.is_dir():
        return f"{path.parent} was removed or renamed meanwhile: put it back and --resume the run"
    why = str(error).splitlines()[0]
    if isinstance(cause, OSError):
        why = FULL.get(cause.errno or 0) or cause.strerror or why
    elif "inline_container" in why:  # the writer of PyTorch's archives
        why = "disk full, or it failed"
    if path.exists():
        return f"{why}; the one before it is kept"
    last = path.with_name("last.pt")
    return f"{why}; {f'{last} is kept' if last.exists() else 'there is none before it'}"


def read(path: Path) -> dict[str, Any]:
    """The plain content of a checkpoint file, on the CPU. Code in it is refused, never run.

    UserError on anything that is no such file, is damaged, or is a run's and lacks what those have.
    """
    content, _ = read_with_sha256(path)
    if is_own(content):
        refuse_broken(content, path)
    return content


def is_own(content: dict[str, Any]) -> bool:
    """Whether a run wrote it; in others' files `format` may be an array."""
    return isinstance(told := content.get("format"), str) and told == FORMAT


def net_of(content: dict[str, Any]) -> dict[str, Any]:
    """What a run's checkpoint says of its net, by the names of now.

    What is prn-18-v1-bn was called prn-18-v1 once.
    """
    net = dict(content["net"])
    if net.get("arch") == "prn-18-v1" and "bn.weight" in content["model"]:
        net["arch"] = "prn-18-v1-bn"
    return net


def refuse_broken(content: dict[str, Any], path: Path) -> None:
    """UserError where a run's checkpoint lacks what each has, or says what cannot be."""

    def is_count(value: Any, least: int = 0, most: int = 10**12) -> bool:
        return type(value) is int and least <= value <= most

    def is_state(value: Any) -> bool:
        return isinstance(value, Mapping) and all(
            isinstance(k, str) and isinstance(v, torch.Tensor) and not v.is_complex()
            for k, v in value.items()
        )

    net = content.get("net")
    told = net if isinstance(net, Mapping) else {}
    checks = {
        "model": is_state(content.get("model")) and bool(content.get("model")),
        "averaged": content.get("averaged") is None or is_state(content["averaged"]),
        "net": all(isinstance(told.get(name), str) for name in ("arch", "activation", "dataset"))
        and is_count(told.get("num_classes"), 1, MOST_CLASSES)
        and is_count(told.get("resolution", 32), 1, MOST_PIXELS)
        and isinstance(told.get("classes", []), list)
        and all(isinstance(name, str) for name in told.get("classes", [])),
        **{name: is_count(content.get(name)) for name in ("epoch", "step")},
        "validated_epoch": is_count(content.get("validated_epoch", 0)),
    }
    for name, is_right in checks.items():
        if not is_right:
            what = f"an impossible '{name}'" if name in content else f"no '{name}'"
            raise UserError(f"{path} is no whole checkpoint: it holds {what}")


def run_of(file: Path) -> Path | None:
    """The run folder that a checkpoint file lies in, if it lies in one."""
    run = file.resolve().parents[1] if len(file.resolve().parts) > 2 else file
    inside = file.resolve().parent.name == "checkpoints"
    return run if inside and (run / "config.json").is_file() else None


def which_of_run(file: Path, which: str) -> dict[str, Any]:
    """Which of a run's two checkpoints a file is, and whether that is not the default.

    A run has its best from the first validation on; before, its last is what is taken.
    """
    if run_of(file) is None or file.stem not in ("best", "last"):
        return {"which": None, "chosen": [], "notes": []}
    has_best = file.with_name("best.pt").is_file()
    chosen = ["last"] if file.stem == "last" and has_best else []
    notes = []
    if not file.with_name(f"{which}.pt").is_file():
        notes.append(f"the run has no {which}.pt: its {file.name} was taken")
    return {"which": file.stem, "chosen": chosen, "notes": notes}


def load_own(
    content: dict[str, Any],
    file: Path,
    arch: str | None,
    *,
    which: str,
    weights: str,
    activation: str | None,
    normalise: Any,
) -> tuple[nn.Module, dict[str, Any]]:
    """(net, info) of a run's checkpoint; UserError where it is another than what is said of it."""
    refuse_broken(content, file)
    net_info = net_of(content)
    sizeless = net_info["arch"].partition("@")[0]  # of a net that is made for one size of images
    if arch and arch not in (net_info["arch"], sizeless):
        raise UserError(f"{file} is of a {legible(net_info['arch'])}, not of a {arch}")
    if activation and activation != net_info["activation"]:
        raise UserError(f"{file} is of a net with {net_info['activation']}, not {activation}")
    if normalise:
        raise UserError(f"{file} was trained without normalisation: leave --mean and --std out")
    has_two = bool(content.get("averaged"))
    is_averaged = weights == "averaged" and has_two
    state = content["averaged"] if is_averaged else content["model"]
    settings = net_info["arch"], net_info["num_classes"], net_info["activation"]

    def made() -> nn.Module:
        return like(build_model(*settings), state)

    refuse_misfit(on_meta(made), state, file, settings[0])
    net = made()
    load_weights(net, state, file, settings[0])
    found = which_of_run(file, which)
    found["chosen"] += ["raw"] if has_two and not is_averaged else []
    found["notes"] += oddities(net)
    constants = None
    if isinstance(net, NormalisedInside | Normalised):
        constants = Constants(net.mean, net.std, "the checkpoint").described()
    return net, {
        **net_info,
        "nest": "averaged" if is_averaged else "model",
        "weights": "averaged" if is_averaged else "raw",
        **found,
        **{name: content[name] for name in ("epoch", "step", "data") if name in content},
        "normalisation": constants,
        "left_out": [],
    }


def in_one_line(info: dict[str, Any], is_said: bool) -> str:
    """What was taken of a file, as which net, behind which normalisation, and what was left."""
    constants = info["normalisation"]
    normalised = "no normalisation"
    if constants:
        mean, std = (" ".join(f"{v:.4g}" for v in constants[k]) for k in ("mean", "std"))
        normalised = f"normalised by mean {mean}, std {std} (from {constants['from']})"
    nest = "" if info["nest"] is None or "step" in info else f"{legible(info['nest'])}, "
    activation = f"{info['activation']}{'' if is_said else ' (by default)'} and "
    if info["activation"] == OWN:
        activation = ""
    left = ", ".join(info["left_out"][:MOST_SHOWN])
    if (more := len(info["left_out"]) - MOST_SHOWN) > 0:
        left += f" and {more} more"
    return (
        f"taken: {nest}the {info['weights']} weights of {info['path']} as a {info['arch']} with "
        f"{activation}{info['num_classes']} "
        f"classes, {normalised}" + (f"; left out: {left}" if left else "")
    )


def refuse_odd_names(path: Any, arch: Any, activation: Any) -> None:
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes):
        raise UserError(f"a checkpoint's path is a text or a Path, got {type(path).__name__}")
    for name, value in (("arch", arch), ("activation", activation)):
        if not isinstance(value, str | None):
            raise UserError(f"{name} is a name, got {legible(value)}")


def pair_of(normalise: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """(mean, std) of any two sequences of three numbers; UserError on anything else."""
    if normalise is None:
        return None
    try:
        mean, std = (tuple(map(float, values)) for values in normalise)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError("normalise is (mean, std), each three numbers in [0, 1]") from error
    checked(mean, std)
    return mean, std


def spelt(dataset: str | None) -> str | None:
    """The name of a data set as it is known; UserError on an unknown one."""
    if dataset is None:
        return None
    if names_path(str(dataset)):
        return str(dataset)
    told = str(dataset).lower()
    name = next((name for name in DATASETS if name.lower() == told), legible(dataset))
    dataset_info(name)
    return name


def hints_of(described: dict[str, str]) -> list[str]:
    """What a file's metadata say of its net, where others wrote them: not to be relied on."""
    told = [f"{k} {legible(described[k])}" for k in ("arch", "activation") if k in described]
    return [f"its metadata, which were not relied on, say {', '.join(told)}"] if told else []


def content_of(file: Path) -> tuple[dict[str, Any], str, dict[str, str], list[str]]:
    """(content, SHA-256, what an export of ours says of its net, hints of others' metadata)."""
    if not is_safetensors(file):
        return *read_with_sha256(file), {}, []
    content, described, sha256 = read_safetensors(file)
    if DESCRIBED_BY_US <= described.keys() <= DESCRIBED_BY_US | {"dataset", "data"}:
        return content, sha256, described, []
    return content, sha256, {}, hints_of(described)


def open_checkpoint(
    path: str | Path,
    arch: str | None = None,
    *,
    which: str = "best",
    weights: str = "averaged",
    activation: str | None = None,
    normalise: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    dataset: str | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """`load_checkpoint` for whoever says `info["taken"]` and `info["notes"]` in its own way."""
    if which not in ("best", "last") or weights not in ("averaged", "raw"):
        raise UserError("which is 'best' or 'last', weights are 'averaged' or 'raw'")
    refuse_odd_names(path, arch, activation)
    normalise, dataset = pair_of(normalise), spelt(dataset)
    file = locate(path, which)
    content, sha256, described, hints = content_of(file)
    info: dict[str, Any] = {"path": str(file), "sha256": sha256}
    if is_own(content):
        net, found = load_own(
            content, file, arch,
            which=which, weights=weights, activation=activation, normalise=normalise,
        )  # fmt: skip
        is_said = True
    else:
        if activation not in (None, OWN) and is_of_library(arch or ""):
            raise UserError(f"{arch} has its own activation: leave --activation out")
        activation = activation or described.get("activation")
        if not (arch or described.get("arch")) and hints:
            raise UserError(f"{file} is a bare state dict: name its net with --arch; {hints[0]}")
        net, found = load_published(
            content, file, arch or described.get("arch"),
            activation=activation, normalise=normalise, which=which, weights=weights,
            dataset=dataset or described.get("dataset"), is_ours="arch" in described,
        )  # fmt: skip
        is_said = activation is not None
        found["notes"] += hints
        info |= {"dataset": described["dataset"]} if "dataset" in described else {}
    info |= found
    return net.eval(), info | {"taken": in_one_line(info, is_said)}


def load_checkpoint(
    path: str | Path,
    arch: str | None = None,
    *,
    which: str = "best",
    weights: str = "averaged",
    activation: str | None = None,
    normalise: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    dataset: str | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """(model in eval mode on the CPU, info) from a run folder, a checkpoint, or a bare state dict.

    A run gives `best` unless which="last", and its averaged net, where there is one, unless
    weights="raw"; so does a file of several nets. A bare state dict (.pt or .safetensors, in any
    layout of models/layouts.py) needs `arch`, and may need `activation`, `normalise` = (mean, std)
    of the pixels, and the `dataset` that decides a dm- net's constants.

    `info` holds path, sha256, arch, activation, num_classes; `nest` (the dotted name of what was
    taken inside the file, or None), `weights` (averaged, raw), `which` (best, last, or None of a
    file that has one net), `chosen` (those of `last` and `raw` that are not what is taken by
    default), `normalisation` ({mean, std, from} or None), `left_out` (what else the file held),
    `notes` (a line for each guess) and `taken` (all of it in one line); dataset, epoch, step and
    `data` (the fingerprints of what it was trained on) as far as they are known. UserError on
    anything that does not fit, and on a damaged file. What was taken is on the log as information,
    each note as a warning.

    >>> import torch, fastuiat
    >>> torch.save(fastuiat.build_model("wrn-10-1").state_dict(), "net.pt")
    >>> net, info = fastuiat.load_checkpoint("net.pt", arch="wrn-10-1")
    >>> info["arch"], info["num_classes"], net.training
    ('wrn-10-1', 10, False)
    """
    net, info = open_checkpoint(
        path, arch,
        which=which, weights=weights, activation=activation, normalise=normalise, dataset=dataset,
    )  # fmt: skip
    logger.info("%s", info["taken"])
    for note in info["notes"]:
        logger.warning("%s: %s", info["path"], note)
    return net, info
