"""`fastuiat recipes` and `fastuiat reproduce`."""

from __future__ import annotations

import dataclasses
import subprocess
from typing import Any

from fastuiat.commands.output import Output, OutputOptions, columns, split_output
from fastuiat.commands.parsing import parse
from fastuiat.commands.train import default_config, resolved_config

STDERR = 2
"""Its file descriptor: where the runs of `reproduce --json` speak."""


def recipes(argv: list[str]) -> None:
    from fastuiat.recipes import RECIPES, described

    options, argv = split_output(argv)
    if argv[:1] in (["-h"], ["--help"]):
        print("usage: fastuiat recipes [NAME [flags of train]] [--quiet] [--json]")
        return
    output = Output(options)
    if not argv:
        output.result(list(RECIPES), "\n".join(RECIPES))
        return
    config, sources = resolved_config(["--recipe", argv[0], *argv[1:]])
    rows = list(described(config, sources))
    document = {name: {"value": value, "source": source} for name, value, source in rows}
    output.result(document, columns(rows))


def reproduce(argv: list[str]) -> None:
    from fastuiat.reproduce import Options, reproduce

    def configure(flags: list[str]) -> Any:
        default = default_config(flags)
        return parse(type(default), flags, prog="fastuiat train", default=default)

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class ReproduceOptions(Options, OutputOptions):
        __doc__ = Options.__doc__

    options = parse(ReproduceOptions, argv, prog="fastuiat reproduce")
    output = Output(options)
    stdout = None
    if options.quiet or options.json:
        stdout = subprocess.DEVNULL if options.quiet else STDERR
    reproduce(options, configure, output.say, conclude=output.result, stdout=stdout)
