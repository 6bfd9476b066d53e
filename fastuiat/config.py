"""What settings are made of: values that refuse nonsense, and the one error users see."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from tyro.constructors import PrimitiveConstructorSpec


class UserError(ValueError):
    """Something the user can mend: one line that says what is wrong and what to do."""


def legible(text: object, most: int = 80) -> str:
    """A name out of a stranger's file as it can be shown: short, without control characters."""
    plain = "".join(c if c.isprintable() else "?" for c in written(text, str)[: most + 1])
    return plain if len(plain) <= most else plain[: most - 1] + "…"


def written(value: object, how: Callable[[object], str] = repr) -> str:
    """`how(value)`, also of a whole number of more digits than Python writes."""
    try:
        return how(value)
    except ValueError:
        return "a number of thousands of digits"


def nearest(name: str, known: Iterable[str], most: int = 3) -> str:
    """The names most like one that nothing has, in words."""
    return ", ".join(difflib.get_close_matches(name, list(known), n=most, cutoff=0.0))


def parse_radius(value: str | float) -> float:
    """A radius in [0, 1] pixel units from a number or text such as `8/255`."""
    try:
        if isinstance(value, str):
            top, _, bottom = value.partition("/")
            radius = float(top) / float(bottom) if bottom else float(top)
        else:
            radius = float(value)
    except (ArithmeticError, TypeError, ValueError) as error:
        raise UserError(f"'{value}' is not a radius: write it as 8/255") from error
    if not (math.isfinite(radius) and -1 <= radius <= 1):
        hint = "" if "/" in str(value) else f": for {value} grey levels write {value}/255"
        raise UserError(f"a radius of {value} is outside the pixel range [0, 1]{hint}")
    return radius


def radius_text(radius: float) -> str:
    """`8/255` for 0.0313…, the plain number where it is no whole 255th."""
    levels = radius * 255
    is_whole = math.isfinite(levels) and abs(levels - round(levels)) < 1e-9
    return f"{round(levels)}/255" if is_whole else f"{radius:g}"


Radius = Annotated[
    float,
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="RADIUS",
        instance_from_str=lambda words: parse_radius(words[0]),
        is_instance=lambda value: isinstance(value, float),
        str_from_instance=lambda value: [radius_text(value)],
    ),
]


MOST = 10**12
"""Of anything that is counted: what is above is a slip of the keyboard, and beyond what is computed
with."""


def positive(**values: float) -> None:
    """UserError on a number that is not above 0, and on a count above MOST."""
    for name, value in values.items():
        if not 0 < value < math.inf:
            got = legible(value) if isinstance(value, int) else f"{value:g}"
            raise UserError(f"--{name.replace('_', '-')} must be above 0 and finite, got {got}")
        if isinstance(value, int) and value > MOST:
            raise UserError(f"--{name.replace('_', '-')} must be at most 10^12")


def count_in(word: str) -> int | None:
    """The whole number that a word is, of at most 18 digits; None of any other word."""
    return int(word) if word.isdecimal() and len(word) <= 18 else None


def refuse_seed(seed: int) -> None:
    """UserError on what PyTorch's generators cannot begin from."""
    if seed < 0:
        raise UserError(f"--seed must not be negative, got {seed}")
    if seed >= 1 << 64:
        raise UserError(f"--seed must be below 2^64, got {seed}")


def printable(text: str) -> str:
    """Without what a terminal obeys: file names, settings and records may hold it."""
    return "".join(c for c in text if c.isprintable() or c == "\n")


def not_negative(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            got = legible(value) if isinstance(value, int) else f"{value:g}"
            raise UserError(f"{name.replace('_', '-')} must not be negative, got {got}")


def refuse_other_choices(settings: Any) -> None:
    """UserError on a setting that is none of the values its Literal lists."""
    try:
        hints = get_type_hints(type(settings))
    except NameError:  # of a class made where its names cannot be looked up, as in a function
        return
    for name, hint in hints.items():
        value = getattr(settings, name)
        if get_origin(hint) is not Literal or not isinstance(value, str):
            continue  # the start of an attack may be a tensor
        if value not in get_args(hint):
            choices = ", ".join(get_args(hint))
            raise UserError(f"--{name.replace('_', '-')} {value}: choose from {choices}")


KINDS: dict[Any, tuple[Any, str]] = {
    bool: (bool, "yes or no"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "words"),
    Path: (Path, "a path"),
    type(None): (type(None), "None"),
}
"""What a setting of a plain type may be, and in words."""


def refuse_other_types(cls: type, values: Mapping[str, Any]) -> None:
    """UserError on a value that is not of its setting's plain type, as a file may hold it."""
    try:
        hints = get_type_hints(cls, include_extras=True)  # a radius may be text
    except NameError:  # of a class made where its names cannot be looked up, as in a function
        return
    for name, value in values.items():
        hint = hints.get(name)
        words = None
        if isinstance(value, int) and not -(1 << 64) < value < 1 << 64:
            words = "below 2^64" if value > 0 else "above -2^64"
        if get_origin(hint) is Literal and isinstance(value, int | float | list | dict | None):
            words = "one of " + ", ".join(get_args(hint))
        allowed = get_args(hint) or (hint,)
        if set(allowed) <= KINDS.keys():
            fits = value != "" and isinstance(value, tuple(KINDS[kind][0] for kind in allowed))
            if not fits or (isinstance(value, bool) and bool not in allowed):
                words = " or ".join(KINDS[kind][1] for kind in allowed)
        if words:
            raise UserError(
                f"--{name.replace('_', '-')} must be {words}, got {legible(written(value))}"
            )


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """The attack that makes the training examples."""

    eps: Radius = 8 / 255
    """Radius of the L∞ ball, in pixel units."""
    alpha: Radius = 2 / 255
    """Step size, in pixel units."""
    steps: int = 10
    """Number of sign-gradient steps."""
    start: Literal["uniform", "normal", "zero"] = "uniform"
    """Where the attack begins: U(−eps, eps), 0.001·N(0,1), or the image itself."""

    def __post_init__(self) -> None:
        for name in ("eps", "alpha"):
            object.__setattr__(self, name, parse_radius(getattr(self, name)))
        refuse_other_choices(self)
        positive(eps=self.eps, alpha=self.alpha)
        if self.steps < 1:
            raise UserError(f"--steps must be at least 1, got {self.steps}")

    def kwargs(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def validation_alpha(self) -> float:
        """Step size of the iterated attack that validates what this one trained."""
        return self.alpha


@dataclass(frozen=True, kw_only=True)
class SingleStepConfig:
    """The attack of the single-step methods: one signed gradient step."""

    eps: Radius = 8 / 255
    """Radius of the L∞ ball, in pixel units."""
    alpha: Radius | None = None
    """Step size, in pixel units; by default the method's multiple of eps."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", parse_radius(self.eps))
        refuse_other_choices(self)
        positive(eps=self.eps)
        if self.alpha is not None:
            object.__setattr__(self, "alpha", parse_radius(self.alpha))
            positive(alpha=self.alpha)

    @property
    def validation_alpha(self) -> float:
        """A quarter of the radius, as 2/255 is of 8/255: one step's own size is no use in ten."""
        return self.eps / 4


@dataclass(frozen=True, kw_only=True)
class RandomStepConfig(SingleStepConfig):
    """A single step that need not begin at the image."""

    start: Literal["uniform", "zero"] = "uniform"
    """Where the gradient is taken: at a uniformly drawn point, or at the image (plain FGSM)."""


SCHEDULES = "one-cycle, linear:SHARE such as linear:0.5"


def parse_schedule(text: str) -> tuple[str, float | None]:
    """(kind, place of the peak as a share of the run) of a learning-rate schedule.

    `one-cycle` has its own place, None; `linear:0.5` says it. UserError on anything else.
    """
    kind, _, place = text.partition(":")
    if text == "one-cycle":
        return kind, None
    if kind != "linear":
        raise UserError(f"unknown schedule '{text}': choose from {SCHEDULES}")
    try:
        share = float(place)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise UserError(f"--schedule {text}: the peak's place must be in (0, 1), as linear:0.5")
    return kind, share


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """SGD: its learning rate over the run, its momentum, and what it decays."""

    max_lr: float = 0.1
    """Peak of the learning rate."""
    schedule: str = "one-cycle"
    """Learning rate over the run: one-cycle (cosine legs, the peak at a quarter), or linear:SHARE
    from 0 to the peak at that share of the run and back to 0."""
    momentum: float = 0.9
    """Momentum of SGD."""
    cycle_momentum: bool = False
    """Let the momentum go from 0.05 above to 0.05 below as a one-cycle rate rises, and back, as
    PyTorch's OneCycleLR does unless told not to."""
    nesterov: bool = True
    """Nesterov's form of the momentum."""
    weight_decay: float = 5e-4
    """L2 penalty on the parameters."""
    decay_batchnorm: bool = True
    """Put it on BatchNorm's factors and shifts too."""
    batchnorm_momentum: float | None = None
    """Share of a batch in BatchNorm's running statistics, 1 in the first step; None: the net's own
    (0.1) from the start."""

    def __post_init__(self) -> None:
        positive(max_lr=self.max_lr)
        kind, place = parse_schedule(self.schedule)
        if place is not None:
            object.__setattr__(self, "schedule", f"{kind}:{place!r}")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError("--weight-decay must not be negative or infinite")
        if not 0 <= self.momentum < 1:
            raise UserError(f"--momentum must be in [0, 1), got {self.momentum:g}")
        if self.nesterov and not self.momentum:
            raise UserError("--nesterov needs a --momentum above 0: add --no-nesterov")
        if self.cycle_momentum and kind != "one-cycle":
            raise UserError(f"--cycle-momentum goes with --schedule one-cycle, not {self.schedule}")
        if self.cycle_momentum and not 0.05 < self.momentum < 0.95:
            raise UserError("--cycle-momentum needs a --momentum between 0.05 and 0.95")
        m = self.batchnorm_momentum
        if m is not None and not 0 < m <= 1:
            raise UserError(f"--batchnorm-momentum must be in (0, 1], got {m:g}")


def of_this_version(stored: dict[str, Any]) -> dict[str, Any]:
    """The settings of an older run's config.json, named and nested as they are now.

    `inverse_forward` was `inverse_bn`. Before there was an `optimizer`, two of its settings stood
    at the top, all others were as its defaults are, and prn-18-v1 ended in a BatchNorm. UserError
    where what must be nested is not.
    """
    for name in ("settings", "optimizer"):
        if not isinstance(nested := stored.get(name), dict | None):
            raise UserError(f"{name} must be names with values, not {type(nested).__name__}")
    method = dict(stored.get("settings") or {})
    if "inverse_bn" in method:
        method["inverse_forward"] = method.pop("inverse_bn")
        stored = stored | {"settings": method}
    if "optimizer" in stored:
        return stored
    flat = ("max_lr", "weight_decay")
    settings = {name: value for name, value in stored.items() if name not in flat}
    optimizer = OptimizerConfig(**{name: stored[name] for name in flat if name in stored})
    if settings.get("arch") == "prn-18-v1":
        settings["arch"] = "prn-18-v1-bn"
    return settings | {"optimizer": dataclasses.asdict(optimizer)}


def changed_since(stored: dict[str, Any]) -> str | None:
    """What of a run's mathematics is another now than when its config.json was written, if any."""
    if stored.get("method") == "mart" and "optimizer" not in stored:
        return "MART's loss has had its authors' constants since it was begun"
    return None
