"""Checkpoints: written whole or not at all, read without running anything they hold."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastuiat.config import UserError
from fastuiat.files import write_atomically
from fastuiat.models import build_model

FORMAT = "fastuiat-checkpoint-1"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Tensors and plain values only; UserError where the disk is full or not writable."""
    try:
        write_atomically(path, lambda file: torch.save({"format": FORMAT, **state}, file))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path} could not be written ({error}): the one before it is kept"
        ) from error


def read(path: Path) -> dict[str, Any]:
    """The plain content of a checkpoint file, on the CPU. Code in it is refused, never run."""
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and "GLOBAL" in str(error):
            raise UserError(f"{path} holds more than tensors and is refused unread") from error
        raise UserError(f"{path} is no checkpoint, or damaged") from error
    except Exception as error:
        raise UserError(f"{path} is truncated or no checkpoint") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no state dict")
    return content


def locate(path: str | Path, which: str = "best") -> Path:
    """The checkpoint file of a run folder (`best`, else `last`), or the file itself."""
    path = Path(path)
    if not path.is_dir():
        return path
    for name in dict.fromkeys((which, "last")):
        if (file := path / "checkpoints" / f"{name}.pt").is_file():
            return file
    raise UserError(f"{path} holds no checkpoints/{which}.pt: is it a run folder?")


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def load_weights(net: nn.Module, weights: Any, path: Path) -> None:
    """Fit a state dict; UserError that names at most five keys where it does not."""
    own = net.state_dict()
    if not isinstance(weights, dict):
        raise UserError(f"{path} holds no state dict")
    wrong = [k for k in own if getattr(weights.get(k), "shape", None) != own[k].shape]
    wrong += [k for k in weights if k not in own]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise UserError(f"{path} is of another net: {', '.join(wrong[:5])}{more} do not fit")
    net.load_state_dict(weights)


def load_checkpoint(
    path: str | Path, arch: str | None = None, *, which: str = "best", weights: str = "averaged"
) -> tuple[nn.Module, dict[str, Any]]:
    """(model in eval mode on the CPU, info) from a run folder, a checkpoint, or a bare state dict.

    A run gives `best` unless which="last", and its averaged net, where there is one, unless
    weights="raw". A bare state dict needs `arch`. `info` holds path, sha256, weights, arch,
    activation, num_classes, dataset, epoch and step. UserError on anything that does not fit.
    """
    file = locate(path, which)
    content = read(file)
    info: dict[str, Any] = {
        "path": str(file),
        "sha256": sha256_of(file),
    }
    if content.get("format") == FORMAT:
        net_info = dict(content["net"])
        if arch and arch != net_info["arch"]:
            raise UserError(f"{file} is of a {net_info['arch']}, not of a {arch}")
        chosen = "averaged" if weights == "averaged" and content.get("averaged") else "raw"
        state = content["averaged"] if chosen == "averaged" else content["model"]
        info |= net_info | {k: content[k] for k in ("epoch", "step")} | {"weights": chosen}
    else:
        if arch is None:
            raise UserError(f"{file} is a bare state dict: name its net with --arch")
        state = content
        linear = [v for v in state.values() if hasattr(v, "ndim") and v.ndim == 2]
        classes = linear[-1].shape[0] if linear else 10
        info |= {"arch": arch, "num_classes": classes, "activation": "relu", "weights": "raw"}
    net = build_model(info["arch"], info["num_classes"], info["activation"])
    load_weights(net, state, file)
    return net.eval(), info
