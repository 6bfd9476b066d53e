"""`fastuiat recipes` and `fastuiat reproduce`."""

from __future__ import annotations

import dataclasses
import subprocess

from fastuiat.commands.output import Output, OutputOptions, columns, split_output
from fastuiat.commands.parsing import hyphenated, parse, refuse_second
from fastuiat.commands.train import settings_in

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
    config, sources = settings_in(["--recipe", argv[0], *hyphenated(argv[1:])])
    rows = list(described(config, sources))
    document = {name: {"value": value, "source": source} for name, value, source in rows}
    output.result(document, columns(rows))


def reproduce(argv: list[str]) -> None:
    from fastuiat.reproduce import Options, reproduce

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class ReproduceOptions(Options, OutputOptions):
        __doc__ = Options.__doc__

    refuse_second(hyphenated(argv), "--extra-data")
    options = parse(ReproduceOptions, argv, prog="fastuiat reproduce")
    output = Output(options)
    stdout = None
    if options.quiet or options.json:
        stdout = subprocess.DEVNULL if options.quiet else STDERR
    reproduce(options, output.say, conclude=output.result, stdout=stdout)
