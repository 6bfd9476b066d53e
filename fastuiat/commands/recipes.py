"""`fastuiat recipes` and `fastuiat reproduce`."""

from __future__ import annotations

from typing import Any

from fastuiat.commands.parsing import parse
from fastuiat.commands.train import default_config, resolved_config


def recipes(argv: list[str]) -> None:
    from fastuiat.recipes import RECIPES, described

    if not argv:
        print("\n".join(RECIPES))
        return
    config, sources = resolved_config(["--recipe", argv[0], *argv[1:]])
    for name, value, source in described(config, sources):
        print(f"{name:20} {value:14} {source}")


def reproduce(argv: list[str]) -> None:
    from fastuiat.reproduce import Options, reproduce

    def configure(flags: list[str]) -> Any:
        default = default_config(flags)
        return parse(type(default), flags, prog="fastuiat train", default=default)

    reproduce(parse(Options, argv, prog="fastuiat reproduce"), configure)
