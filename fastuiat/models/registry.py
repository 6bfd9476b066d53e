"""Nets by name: a class below `@register(NAME)` is all that `--arch NAME` takes."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from fastuiat.config import UserError, legible
from fastuiat.models import libraries
from fastuiat.models.blocks import ACTIVATIONS

PUBLISHED = 2000
"""No published net has as many layers times its width."""
MOST_NUMBER = 1000
MOST_PARAMETERS = 2_000_000_000
REGISTRY: dict[str, Family] = {}
N = TypeVar("N", bound="Callable[..., nn.Module]")


@dataclass(frozen=True)
class Family:
    """Nets of one name, or of one pattern of names whose numbers are the builder's first."""

    name: str
    build: Callable[..., nn.Module]
    legal: Callable[..., bool] | None
    example: str

    @property
    def numbers(self) -> list[str]:
        """What the numbers in its names are: `wrn-{depth}-{width}` has a depth and a width."""
        return re.findall(r"{(\w+)}", self.name)

    @property
    def shown(self) -> str:
        """For people: `wrn-D-W such as wrn-28-10`."""
        plain = re.sub(r"{(\w)\w*}", lambda match: match[1].upper(), self.name)
        return f"{plain} such as {self.example}" if self.example else plain

    def numbers_in(self, name: str) -> list[int] | None:
        """The numbers of a name of this family; None where it is of another."""
        pattern = re.sub(r"{\w+}", r"(\\d{1,9})", re.sub(r"[^\w{}]", r"\\\g<0>", self.name))
        match = re.fullmatch(pattern, name)
        return [int(number) for number in match.groups()] if match else None


def register(
    name: str, *, legal: Callable[..., bool] | None = None, example: str = ""
) -> Callable[[N], N]:
    """Make the class or function below known under `name`, or a pattern as `wrn-{depth}-{width}`.

    It is called as build(*numbers, num_classes, activation), the numbers being those of the
    pattern, for which `legal(*numbers)` may say no. `example` is one of its names, for people. The
    net takes images (B, 3, H, W) in [0, 1] to logits (B, num_classes).
    """

    def add(build: N) -> N:
        REGISTRY[name] = Family(name, build, legal, example)
        return build

    return add


def known() -> str:
    """All names, in words, patterns last."""
    families = sorted(REGISTRY.values(), key=lambda family: (bool(family.numbers), family.name))
    theirs = (f"{library}:NAME" for library in libraries.LIBRARIES)
    return ", ".join([*(family.shown for family in families), *theirs])


def refuse_huge(name: str, build: Callable[[], nn.Module], numbers: list[int]) -> None:
    """UserError on a net that no memory takes, before it is asked for.

    Its parameters are counted where its numbers are beyond those of any published net.
    """
    if math.prod(numbers) <= PUBLISHED:
        return
    count = None
    if max(numbers) <= MOST_NUMBER:
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in build().parameters())
    if count is None or count > MOST_PARAMETERS:
        raise UserError(f"'{name}' is beyond {MOST_PARAMETERS:,} parameters: choose a smaller net")


def build_model(name: str, num_classes: int = 10, activation: str = "relu") -> nn.Module:
    """A freshly initialised network for (B, 3, H, W) images in [0, 1], channels-last weights.

    prn-18-v1 is prn-18 with the shortcut on a block's raw input and no BatchNorm before the
    pooling, as RS-FGSM, N-FGSM and GradAlign train it (RobustBench's PreActBlock); prn-18-v1-bn has
    that BatchNorm. The dm- nets are those of Rebuffi et al. (2021) and normalise their input.
    `timm:NAME` and `torchvision:NAME` are those libraries' nets, with random weights and the
    activation that they have. UserError on an unknown name, an illegal depth or width, or an
    unknown activation.

    >>> import torch, fastuiat
    >>> fastuiat.build_model("wrn-10-1", num_classes=100)(torch.rand(2, 3, 32, 32)).shape
    torch.Size([2, 100])
    """
    if libraries.is_of_library(name):
        return libraries.build(name, num_classes)
    if activation not in ACTIVATIONS:
        raise UserError(f"unknown activation '{activation}': choose from {', '.join(ACTIVATIONS)}")
    for family in REGISTRY.values():
        numbers = family.numbers_in(name)
        if numbers is None:
            continue
        if family.legal and not family.legal(*numbers):
            raise UserError(
                f"'{name}' has no legal {' and '.join(family.numbers)}: choose from {known()}"
            )
        build = functools.partial(family.build, *numbers, num_classes, activation)
        refuse_huge(name, build, numbers)
        return build()
    raise UserError(f"unknown net '{legible(name)}': choose from {known()}")
