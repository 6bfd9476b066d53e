"""Options that say of a bare state dict what it does not say itself."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fastuiat.commands.output import Output
from fastuiat.config import UserError

Three = Annotated[str | None, tyro.conf.arg(metavar="R G B")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PublishedOptions:
    """Of eval and export."""

    arch: str | None = None
    """Net of a bare state dict."""
    activation: Literal["relu", "silu"] | None = None
    """Its activation; by default SiLU for the dm- nets, else ReLU."""
    mean: Three = None
    """What was subtracted from its pixels in [0, 1] outside the net, by channel."""
    std: Three = None
    """What they were then divided by."""
    which: Literal["best", "last"] = "best"
    """Which checkpoint of a run, or which net of a file that holds both."""
    weights: Literal["averaged", "raw"] = "averaged"
    """The averaged net where there is one, or the live one."""

    def described(self) -> dict[str, Any]:
        """As load_checkpoint takes it."""
        if (self.mean is None) != (self.std is None):
            raise UserError("--mean and --std go together")
        normalise = None
        if self.mean is not None and self.std is not None:
            normalise = numbers("mean", self.mean), numbers("std", self.std)
        return {
            "arch": self.arch,
            "activation": self.activation,
            "normalise": normalise,
            "which": self.which,
            "weights": self.weights,
        }


def numbers(name: str, text: str) -> tuple[float, ...]:
    """The three numbers of --mean or --std, with commas between them."""
    words = [word for word in text.split(",") if word]
    if len(words) != 3:
        raise UserError(f"--{name} takes three numbers, one a channel, and got {len(words)}")
    try:
        return tuple(map(float, words))
    except ValueError as error:
        raise UserError(f"--{name} takes three numbers, and got {' '.join(words)}") from error


def is_number(word: str) -> bool:
    """Whether a word is a number, or several with commas between them."""
    try:
        return bool([float(part) for part in word.split(",") if part])
    except ValueError:
        return False


def constants_joined(argv: list[str]) -> list[str]:
    """--mean R G B as --mean=R,G,B: so their count is ours to complain of, and commas are fine."""
    result: list[str] = []
    open_flag = False
    for word in argv:
        if open_flag and is_number(word):
            result[-1] += ("" if result[-1].endswith("=") else ",") + word
            continue
        open_flag = word.split("=")[0] in ("--mean", "--std")
        result.append(word + "=" if open_flag and "=" not in word else word)
    return result


def say_what_was_taken(
    output: Output, path: Path, options: PublishedOptions, typed: set[str], info: dict[str, Any]
) -> None:
    """The line of what a file gave, and the notes; UserError on a choice that it does not have."""
    if "which" in typed and path.is_file() and info["which"] != options.which:
        raise UserError(
            f"--which chooses from a run folder or a file that holds best and last: {path} has one"
        )
    if "weights" in typed and options.weights != info["weights"]:
        info["notes"].append(f"--weights {options.weights}: there is no averaged net to choose")
    for line in (info["taken"], *info["notes"]):
        output.say(line)
