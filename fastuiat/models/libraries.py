"""Nets of other libraries by name: `timm:NAME` and `torchvision:NAME`, with a head of our size.

Their weights are random ones: a run takes others by --init. A net that is made for one size of
images carries it in its name, `timm:test_vit@64`; without it the size is 32.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastuiat.config import UserError, count_in, legible, nearest
from fastuiat.models.heads import on_meta

SIZE = 32
"""Height and width of the images where a name does not say them."""
LARGEST = 4096
OWN = "own"
"""In place of the activation of a net that has its own."""


@dataclass(frozen=True)
class Library:
    """`names` of its classifiers; `build(name, num_classes, size)`; whether a net `is_fixed`, made
    for one size of images."""

    names: Callable[[], list[str]]
    build: Callable[[str, int, int], nn.Module]
    is_fixed: Callable[[str], bool]


def timm_names() -> list[str]:
    import timm

    names: list[str] = timm.list_models()
    return names


def timm_is_fixed(name: str) -> bool:
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    return bool(config and config.fixed_input_size)


def timm_net(name: str, num_classes: int, size: int) -> nn.Module:
    import timm

    if timm_is_fixed(name):
        with contextlib.suppress(TypeError):  # of the few that find their size by themselves
            sized: nn.Module = timm.create_model(name, num_classes=num_classes, img_size=size)
            return sized
    net: nn.Module = timm.create_model(name, num_classes=num_classes)
    return net


def torchvision_names() -> list[str]:
    from torchvision import models

    names: list[str] = models.list_models(module=models)
    return names


SIZED_BY_TORCHVISION = {"vit_": "image_size", "maxvit_": "input_size"}
AUXILIARY = {"googlenet", "inception_v3"}
"""Nets with heads beside the last one, in training alone."""


def torchvision_net(name: str, num_classes: int, size: int) -> nn.Module:
    from torchvision import models

    more: dict[str, object] = {}
    if name in AUXILIARY:
        more = {"aux_logits": False, "init_weights": True}
    for start, argument in SIZED_BY_TORCHVISION.items():
        if name.startswith(start):
            more = {argument: size if argument == "image_size" else (size, size)}
    net: nn.Module = models.get_model(name, weights=None, num_classes=num_classes, **more)
    return net


LIBRARIES = {
    "timm": Library(timm_names, timm_net, timm_is_fixed),
    "torchvision": Library(
        torchvision_names, torchvision_net, lambda name: name.startswith((*SIZED_BY_TORCHVISION,))
    ),
}


def is_of_library(arch: str) -> bool:
    """Whether a name is that of another library's net, known or not."""
    library, colon, _ = arch.partition(":")
    return bool(colon) and library in LIBRARIES


def parsed(arch: str) -> tuple[Library, str, int]:
    """(library, its name of the net, size of the images) of `timm:NAME@SIZE`.

    UserError on a name that it does not have, with the three nearest, and where it is not there.
    """
    prefix, _, rest = arch.partition(":")
    library = LIBRARIES[prefix]
    name, at, size = rest.partition("@")
    try:
        names = library.names()
    except ImportError as error:
        raise UserError(
            f"{legible(arch)} needs {prefix}: pip install 'fastuiat[{prefix}]'"
        ) from error
    base, dot, _ = name.partition(".")
    if dot and base in names:
        raise UserError(
            f"{legible(arch)} names weights beside the net, and none are fetched: say "
            f"{prefix}:{base}, and --init FILE where you have them"
        )
    if name not in names:
        close = ", ".join(f"{prefix}:{known}" for known in nearest(name, names).split(", "))
        raise UserError(f"unknown net '{legible(arch)}': the nearest are {close}")
    if at and not 1 <= (count_in(size) or 0) <= LARGEST:
        raise UserError(f"'{legible(arch)}': behind @ stands the images' size, as in @{SIZE}")
    if at and not library.is_fixed(name):
        raise UserError(f"'{legible(arch)}' takes images of any size: leave @{size} out")
    return library, name, int(size) if at else SIZE


def at_size(arch: str, size: int) -> str:
    """The name of the net for images of a size: with it, where the net is made for one."""
    if not is_of_library(arch) or "@" in arch or size == SIZE:
        return arch
    library, name, _ = parsed(arch)
    return f"{arch}@{size}" if library.is_fixed(name) else arch


def build(arch: str, num_classes: int) -> nn.Module:
    """A net with random weights, channels-last; UserError where it is none of this size."""
    library, name, size = parsed(arch)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of initialisations to come, which are not asked for
            net = library.build(name, num_classes, size)
    except Exception as error:
        raise UserError(
            f"{arch} cannot be made for {size}×{size} pixels: {reason(error)}"
        ) from error
    return net.to(memory_format=torch.channels_last)


def reason(error: BaseException) -> str:
    """The first line of somebody else's error."""
    text = str(error).strip() or type(error).__name__
    return legible(text.splitlines()[0].rstrip(".:!"), 160)


def refuse_images(
    make: Callable[[], nn.Module], arch: str, num_classes: int, image_shape: tuple[int, int, int]
) -> None:
    """UserError where a net does not take images (C, H, W) to logits, before any are read.

    It is asked without memory or arithmetic where it can be, and as it is where it cannot.
    """
    size = "×".join(map(str, image_shape[1:]))
    try:
        try:
            given = logits_of(on_meta(make), image_shape)
        except (NotImplementedError, RuntimeError) as error:
            if "meta" not in str(error).lower():
                raise
            with torch.random.fork_rng(devices=[]):
                given = logits_of(make(), image_shape)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{arch} does not take images of {size} pixels: {reason(error)}; choose another net"
        ) from error
    if not isinstance(given, Tensor) or given.shape != (2, num_classes):
        what = f"{tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise UserError(
            f"{arch} gives {what} where logits (2, {num_classes}) are due: choose another net"
        )


@torch.no_grad()
def logits_of(net: nn.Module, image_shape: tuple[int, int, int]) -> object:
    """What a net in training mode makes of two images, which are 0."""
    device = next(net.parameters()).device
    return net.train()(torch.zeros(2, *image_shape, device=device))
