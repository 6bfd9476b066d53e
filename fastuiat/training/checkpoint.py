"""Checkpoints: written whole or not at all, read without running anything they hold."""

from __future__ import annotations

import errno
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from fastuiat.config import UserError
from fastuiat.files import sha256_of, write_atomically
from fastuiat.models import build_model
from fastuiat.models.interchange import load_published, load_weights

FORMAT = "fastuiat-checkpoint-1"
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
    """The plain content of a checkpoint file, on the CPU. Code in it is refused, never run."""
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" in str(error) and "GLOBAL" in str(error):
            raise UserError(
                f"{path} holds more than tensors and is refused unread: where you trust it, "
                "torch.save(torch.load(OLD, weights_only=False)['state_dict'], NEW) keeps the "
                "weights alone (.state_dict() if it is a whole module)"
            ) from error
        raise UserError(f"{path} is no checkpoint, or damaged") from error
    except Exception as error:
        raise UserError(f"{path} is truncated or no checkpoint") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no state dict")
    return content


def is_safetensors(path: Path) -> bool:
    """Whether a file is named so, or begins as one: the length of a header, 8 bytes, then JSON."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        begin = file.read(9)
    return path.suffix == ".safetensors" or (begin[8:] == b"{" and begin[6:8] == b"\0\0")


def read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """(tensors, metadata) of a safetensors file; UserError where it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:
        raise UserError(f"{path} is truncated or no safetensors file") from error


def locate(path: str | Path, which: str = "best") -> Path:
    """The checkpoint file of a run folder (`best`, else `last`), or the file itself."""
    path = Path(path)
    if not path.is_dir():
        return path
    for name in dict.fromkeys((which, "last")):
        if (file := path / "checkpoints" / f"{name}.pt").is_file():
            return file
    raise UserError(f"{path} holds no checkpoints/{which}.pt: is it a run folder?")


def net_of(content: dict[str, Any]) -> dict[str, Any]:
    """What a run's checkpoint says of its net, by the names of now.

    What is prn-18-v1-bn was called prn-18-v1 once.
    """
    net = dict(content["net"])
    if net.get("arch") == "prn-18-v1" and "bn.weight" in content["model"]:
        net["arch"] = "prn-18-v1-bn"
    return net


def load_checkpoint(
    path: str | Path,
    arch: str | None = None,
    *,
    which: str = "best",
    weights: str = "averaged",
    activation: str | None = None,
    normalise: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """(model in eval mode on the CPU, info) from a run folder, a checkpoint, or a bare state dict.

    A run gives `best` unless which="last", and its averaged net, where there is one, unless
    weights="raw". A bare state dict (.pt or .safetensors, in any layout of models/interchange.py)
    needs `arch`, and may need `activation` and `normalise` = (mean, std) of the pixels. `info`
    holds path, sha256, weights, arch, activation, num_classes, dataset, epoch and step as far as
    they are known. UserError on anything that does not fit.

    >>> import torch, fastuiat
    >>> torch.save(fastuiat.build_model("wrn-10-1").state_dict(), "net.pt")
    >>> net, info = fastuiat.load_checkpoint("net.pt", arch="wrn-10-1")
    >>> info["arch"], info["num_classes"], net.training
    ('wrn-10-1', 10, False)
    """
    file = locate(path, which)
    content, described = read_safetensors(file) if is_safetensors(file) else (read(file), {})
    info: dict[str, Any] = {"path": str(file), "sha256": sha256_of(file)}
    if content.get("format") == FORMAT:
        net_info = net_of(content)
        if arch and arch != net_info["arch"]:
            raise UserError(f"{file} is of a {net_info['arch']}, not of a {arch}")
        if activation and activation != net_info["activation"]:
            raise UserError(f"{file} is of a net with {net_info['activation']}, not {activation}")
        if normalise:
            raise UserError(f"{file} was trained without normalisation: leave --mean and --std out")
        chosen = "averaged" if weights == "averaged" and content.get("averaged") else "raw"
        state = content["averaged"] if chosen == "averaged" else content["model"]
        info |= net_info | {k: content[k] for k in ("epoch", "step")} | {"weights": chosen}
        net: nn.Module = build_model(info["arch"], info["num_classes"], info["activation"])
        load_weights(net, state, file, info["arch"])
    else:
        net, found = load_published(
            content,
            file,
            arch or described.get("arch"),
            activation=activation or described.get("activation"),
            normalise=normalise,
            which=which,
        )
        dataset = {"dataset": described["dataset"]} if "dataset" in described else {}
        info |= found | dataset | {"weights": "raw"}
    return net.eval(), info
