"""A trained net for use elsewhere, read back and compared before anyone relies on it."""

from __future__ import annotations

import io
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fastuiat import sealed_tensors
from fastuiat.config import UserError
from fastuiat.evaluation.record import same_weights
from fastuiat.evaluation.robustbench import ZooClass, model_info, zoo_class
from fastuiat.files import json_in, write_atomically, write_bytes
from fastuiat.models.deepmind import NormalisedInside
from fastuiat.training.checkpoint import open_checkpoint
from fastuiat.training.folder import stored_config

SUFFIXES = {
    "robustbench": ".pt",
    "safetensors": ".safetensors",
    "onnx": ".onnx",
    "torch-export": ".pt2",
}
TOLERANCE = 1e-5
"""Of a logit, relative where it is above 1."""
MEASURED = ("clean_acc", "reported", "autoattack_acc")
INSTALL = "pip install 'fastuiat[export]'"

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Exported:
    """What was written. `difference` is the largest between logits before and after, None where
    nothing is installed that could read the file back."""

    path: Path
    difference: float | None
    constructor: str | None = None
    model_info: Path | None = None
    open_fields: tuple[str, ...] = ()
    """Of model_info, still to be filled by hand."""


def example(count: int, info: dict[str, Any]) -> Tensor:
    """(count, 3, R, R) in [0, 1), R being the side of the images that the net was trained on."""
    side = info.get("resolution", 32)
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def description(info: dict[str, Any]) -> dict[str, str]:
    """What a file says of its net."""
    names = ("arch", "num_classes", "activation", "dataset")
    known = {name: str(info[name]) for name in names if info.get(name) is not None}
    return known | ({"data": json.dumps(info["data"])} if info.get("data") else {})


def safetensors_bytes(net: nn.Module, info: dict[str, Any]) -> bytes:
    state = {k: v.contiguous() for k, v in net.state_dict().items()}
    return sealed_tensors.sealed(safetensors.torch.save(state, description(info)))


def onnx_bytes(net: nn.Module, info: dict[str, Any]) -> bytes:
    """Input x (batch, 3, R, R), output logits (batch, K), any batch."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"--format onnx needs onnx and onnxscript: {INSTALL}") from error
    program = torch.onnx.export(
        net,
        (example(2, info),),
        dynamo=True,
        dynamic_shapes={"x": {0: torch.export.Dim("batch")}},
        input_names=["x"],
        output_names=["logits"],
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    for key, value in description(info).items():
        proto.metadata_props.add(key=key, value=value)
    return proto.SerializeToString()


def torch_export_bytes(net: nn.Module, info: dict[str, Any]) -> bytes:
    """A torch.export program of x (batch, 3, R, R), any batch."""
    program = torch.export.export(
        net, (example(2, info),), dynamic_shapes={"x": {0: torch.export.Dim("batch")}}
    )
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # of weights "not on CPU", which these are
        warnings.filterwarnings("ignore", "No complete tensor found")
        torch.export.save(program, buffer, extra_files={"info.json": json.dumps(description(info))})
    return buffer.getvalue()


def robustbench_bytes(entry: ZooClass) -> bytes:
    buffer = io.BytesIO()
    torch.save(entry.state, buffer)
    return buffer.getvalue()


def reader(form: str, path: Path, net: nn.Module, info: dict[str, Any]) -> Function | None:
    """The file as a function of images, read as its users would; None where nothing can."""
    if form == "onnx":
        try:
            import onnxruntime
        except ImportError:
            return None
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda x: torch.from_numpy(session.run(["logits"], {"x": x.numpy()})[0])
    if form == "torch-export":
        return torch.export.load(path).module()
    normalise = None
    if form == "robustbench" and isinstance(net, NormalisedInside):  # in the constructor's call
        normalise = (tuple(net.mean.flatten().tolist()), tuple(net.std.flatten().tolist()))
    arch, activation = info["arch"], info["activation"]
    return open_checkpoint(path, arch, activation=activation, normalise=normalise)[0]


@torch.no_grad()
def difference_of(content: bytes, form: str, net: nn.Module, info: dict[str, Any]) -> float | None:
    """Between the net's logits and the file's, of three images where tracing saw two; or None."""
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / f"net{SUFFIXES[form]}"
        draft.write_bytes(content)
        read_back = reader(form, draft, net, info)
        if read_back is None:
            return None
        x = example(3, info)
        expected, found = net(x), read_back(x)
    relative = (found - expected).abs() / expected.abs().clamp(min=1)
    return relative.max().item()


def records_of(run: Path, info: dict[str, Any]) -> list[dict[str, Any]]:
    """The run's evaluations of these very weights."""
    found = []
    for path in sorted((run / "eval").glob("*.json")):
        try:
            record = json_in(path)
            if "attack" in record and same_weights(record.get("checkpoint") or {}, info):
                found.append(record)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is no evaluation record ({error}): remove it") from error
    return found


def filled_in(path: Path) -> dict[str, Any]:
    """What model_info holds already; UserError where something else is in its place."""
    try:
        return dict(json_in(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is no model_info: remove it or choose another --out") from error


def write_model_info(path: Path, known: dict[str, Any], before: dict[str, Any]) -> tuple[str, ...]:
    """Write model_info and return the fields still open.

    What someone filled in before stays, but for accuracies: they may be of other weights.
    """
    kept = {k: v for k, v in before.items() if k not in MEASURED}
    fields = {name: kept.get(name) if value is None else value for name, value in known.items()}
    # Without a checksum: what is open is for people to fill in.
    write_bytes(path, json.dumps(kept | fields, indent=2).encode() + b"\n")
    return tuple(name for name, value in fields.items() if value is None and name != "footnote")


def told_of(entry: ZooClass, info: dict[str, Any], run: Path | None) -> dict[str, Any]:
    """model_info as far as the net and its run tell it."""
    config, records = (stored_config(run), records_of(run, info)) if run else ({}, [])
    attack = (config.get("settings") or {}).get("attack") or {}
    try:
        return model_info(
            entry, info, records, eps=attack.get("eps"), extra_data=config.get("extra_data")
        )
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{run}: config.json or a record in eval/ is damaged ({error})") from error


def export(
    net: nn.Module, info: dict[str, Any], form: str, path: Path, run: Path | None = None
) -> Exported:
    """Write `net`, in eval mode on the CPU, as one of SUFFIXES, and compare its logits.

    `info` is open_checkpoint's; with robustbench model_info goes to PATH with .json, filled from
    the evaluations and settings of `run`. UserError where the format cannot hold the net, a package
    is missing, the place is not writable, or the logits differ by more than TOLERANCE.
    """
    if path.exists() and path.samefile(info["path"]):
        raise UserError(f"{path} is the checkpoint itself: choose another --out")
    entry = zoo_class(net, info) if form == "robustbench" else None
    described, known, before = path.with_suffix(".json"), {}, {}
    if entry:
        known, before = told_of(entry, info, run), filled_in(described)
        content = robustbench_bytes(entry)
    else:
        make = {"safetensors": safetensors_bytes, "onnx": onnx_bytes}.get(form, torch_export_bytes)
        content = make(net, info)
    difference = difference_of(content, form, net, info)
    if difference is not None and not difference <= TOLERANCE:
        raise UserError(f"as {form} the net gives other logits, by {difference:.1e}: not written")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    if not entry:
        return Exported(path, difference)
    left = write_model_info(described, known, before)
    return Exported(path, difference, entry.constructor, described, left)
