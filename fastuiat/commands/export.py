"""`fastuiat export`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro

from fastuiat.commands.evaluate import run_of
from fastuiat.commands.output import Output, OutputOptions, columns
from fastuiat.commands.parsing import flags_in, parse
from fastuiat.commands.published import PublishedOptions, constants_joined, say_what_was_taken

TOLD = (
    "arch", "activation", "num_classes", "nest", "weights", "normalisation", "left_out", "notes",
    "taken",
)  # fmt: skip
"""Of the net, in the JSON document."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(PublishedOptions, OutputOptions):
    """Write a net for use elsewhere, read it back and compare its logits."""

    path: tyro.conf.Positional[Path]
    """Run folder, checkpoint, or state dict."""
    format: Literal["robustbench", "safetensors", "onnx", "torch-export"]
    """robustbench: a state dict for one of its classes, and a submission's model_info JSON."""
    out: Path | None = None
    """File to write; by default RUN/export/<name>."""
    dataset: str | None = None
    """Data set of a bare state dict, which decides the constants of a dm- net."""


def export(argv: list[str]) -> None:
    argv = constants_joined(argv)
    options = parse(ExportOptions, argv, prog="fastuiat export")
    described = options.described()
    from fastuiat.export import SUFFIXES
    from fastuiat.export import export as write
    from fastuiat.training.checkpoint import open_checkpoint

    output = Output(options)
    net, info = open_checkpoint(options.path, dataset=options.dataset, **described)
    run = run_of(options.path)
    name = run.resolve().name if run else options.path.stem
    folder = run or options.path.parent
    path = options.out or folder / "export" / (name + SUFFIXES[options.format])
    say_what_was_taken(output, options.path, options, flags_in(argv), info)
    done = write(net, info, options.format, path, run)
    document = {
        "format": options.format,
        **{name: info[name] for name in TOLD},
        **dataclasses.asdict(done),
    }
    checked = "not checked: onnxruntime is not installed"
    if done.difference is not None:
        checked = f"read back, logits differ by {done.difference:.1e} at most"
    rows = [[str(path), checked]]
    if done.model_info:
        rows.append(
            [str(done.model_info), f"to fill in: {', '.join(done.open_fields) or 'nothing'}"]
        )
    lines = [columns(rows)]
    if done.constructor:
        lines.append(f"loads into {done.constructor}")
    output.result(document, *lines)
