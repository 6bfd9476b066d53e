"""The AutoAttack package, driven one restart and one target class at a time.

Its `perturb` methods loop over restarts and target classes inside one batch. What they call in that
loop, `attack_single_run`, is called here instead, so that whoever drives it may form the batches
anew from the points still standing; the attack itself is the package's own code.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastuiat.config import UserError

NAMES = ("pyautoattack", "autoattack")
VERSIONS = ("standard", "plus", "rand")
MOST_TARGETS = 9
RANDOMISED = "the net answers the same images differently each time: use --version rand"
DYNAMIC = "the net differentiates while it answers: AutoAttack may be too weak for such a defence"


def package() -> tuple[Any, str]:
    """The AutoAttack class that is installed, and `name version`; UserError where none is."""
    for name in NAMES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        return module.AutoAttack, f"{name} {importlib.metadata.version(name)}"
    raise UserError("AutoAttack is not installed: pip install pyautoattack")


def checks() -> Any:
    """The package's own module of checks."""
    return importlib.import_module(f"{package()[0].__module__.split('.')[0]}.checks")


class Listener:
    """Stands in for the package's logger and keeps what it warns of."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def warning(self, message: str, *_: Any) -> None:
        self.heard.append(message)

    log = debug = info = warning

    def zero_gradients(self) -> int:
        """How many points with a zero gradient it has heard of since the last call."""
        counts = (re.search(r"there are (\d+) points with zero", text) for text in self.heard)
        total = sum(int(match[1]) for match in counts if match)
        self.heard.clear()
        return total


@dataclass(frozen=True)
class Run:
    """One pass of one attack over the points that stand.

    `target` counts from 2, the runner-up class, as the package does; 0 where there is none.
    """

    attack: str
    target: int
    restart: int
    first: bool
    """Whether the attack begins here, and with it the random numbers of each batch."""
    last: bool
    passes: int
    """Forward passes per point; a backward to the image counts as one more."""


def make_adversary(net: Any, *, eps: float, version: str, seed: int, device: torch.device) -> Any:
    """The package's object, quiet, in the L∞ ball."""
    adversary = package()[0](
        net, norm="Linf", eps=eps, version=version, seed=seed, device=str(device)
    )
    adversary.verbose = False
    adversary.apgd.logger = adversary.apgd_targeted.logger = Listener()
    return adversary


def let_net_differentiate(adversary: Any, net: Any) -> None:
    """Let the attacks take each loss and its gradient from the net's own methods.

    The package has this way for nets of TensorFlow; nothing else in an attack depends on it.
    """
    adversary.apgd.is_tf_model = adversary.apgd_targeted.is_tf_model = True
    name = "get_diff_logits_grads_batch_targeted"
    setattr(adversary.fab, name, getattr(net, name))


def possible(attacks: list[str], classes: int) -> tuple[list[str], list[str]]:
    """(attacks that exist for so many classes, the others).

    The difference of logits ratio needs three classes, its targeted form four; UserError below two.
    """
    if classes < 2:
        raise UserError(f"a net of {classes} class cannot be attacked: it has nothing to confuse")
    least = {"apgd-dlr": 3, "apgd-t": 4}
    fit = [a for a in attacks if classes >= least.get(a, 2)]
    return fit, [a for a in attacks if a not in fit]


def runs_of(adversary: Any, attack: str, classes: int) -> list[Run]:
    """The passes of one attack in the package's order: target classes, and restarts of each."""
    targets = list(range(2, min(MOST_TARGETS, classes - 1) + 2))
    apgd, targeted, fab, square = (
        adversary.apgd, adversary.apgd_targeted, adversary.fab, adversary.square
    )  # fmt: skip
    restarts, passes = {
        "apgd-ce": (apgd.n_restarts, 2 * apgd.eot_iter * (apgd.n_iter + 1)),
        "apgd-dlr": (apgd.n_restarts, 2 * apgd.eot_iter * (apgd.n_iter + 1)),
        "apgd-t": (targeted.n_restarts, 2 * targeted.eot_iter * (targeted.n_iter + 1) + 1),
        "fab": (fab.n_restarts, (classes + 2) * fab.n_iter),
        # The standard evaluation sets this number itself before it runs the attack.
        "fab-t": (1, 3 * fab.n_iter + 2),
        "square": (square.n_restarts, square.n_queries + 1),
    }[attack]
    order = [(t, r) for t in (targets if attack.endswith("-t") else [0]) for r in range(restarts)]
    return [
        Run(attack, t, r, first=i == 0, last=i == len(order) - 1, passes=passes)
        for i, (t, r) in enumerate(order)
    ]


def perturb(adversary: Any, run: Run, x: Tensor, y: Tensor) -> Tensor:
    """x (B, C, H, W) with the points that the run broke replaced by their adversarial examples.

    The random numbers go on from wherever torch's generator stands.
    """
    if run.attack in ("apgd-ce", "apgd-dlr", "apgd-t"):
        runner = adversary.apgd_targeted if run.attack == "apgd-t" else adversary.apgd
        runner.init_hyperparam(x)
        if run.attack == "apgd-t":
            runner.y_target = runner.model(x).sort(dim=1)[1][:, -run.target]
        else:
            runner.loss = run.attack.removeprefix("apgd-")
        _, standing, _, found = runner.attack_single_run(x, y)
        broken = standing == 0
    elif run.attack in ("fab", "fab-t"):
        fab = adversary.fab
        fab.targeted, fab.target_class = run.attack == "fab-t", run.target or None
        found = fab.attack_single_run(
            x, y, use_rand_start=run.restart > 0, is_targeted=fab.targeted
        )
        # It looks for the nearest adversarial example, which may lie outside the ball.
        distance = (x - found).abs().flatten(1).amax(dim=1)
        broken = (fab.predict(found).argmax(dim=1) != y) & (distance <= fab.eps)
    else:
        square = adversary.square
        square.init_hyperparam(x)
        _, found = square.attack_single_run(x, y)
        broken = square.predict(found).argmax(dim=1) != y
    return torch.where(broken[:, None, None, None], found, x)


def warnings_before(
    net: nn.Module, x: Tensor, y: Tensor, *, version: str, attacks: list[str]
) -> list[str]:
    """What the package would say of the net on its first batch, by its own checks."""
    found = []
    tests, listener = checks(), Listener()
    if version != "rand":
        tests.check_randomized(net, x, y, bs=len(x), logger=listener)
        if listener.heard:
            found.append(RANDOMISED)
        listener.heard.clear()
    classes = tests.check_range_output(net, x, logger=listener)
    if listener.heard:
        found.append("the net puts out probabilities: attacks need its logits")
    listener.heard.clear()
    tests.funcs.update(dict.fromkeys(tests.funcs, 0))  # it would go on counting from the last net
    before = sys.gettrace()
    try:
        tests.check_dynamic(net, x, False, logger=listener)
    finally:
        sys.settrace(before)
    if listener.heard:
        found.append(DYNAMIC)
    fit, left_out = possible(attacks, classes)
    if left_out:
        found.append(
            f"{' and '.join(left_out)} left out: its loss needs more than {classes} classes"
        )
    targeted = [a for a in fit if a.endswith("-t")]
    if targeted and classes - 1 < MOST_TARGETS:
        others = f"{classes - 1} instead of {MOST_TARGETS}"
        found.append(f"{' and '.join(targeted)} with {others} target classes: there are no more")
    return found


def warnings_after(accuracy: dict[str, float], zero_gradients: dict[str, int]) -> list[str]:
    """What it would say of the attacks' outcome."""
    found = [
        f"{attack} met {count} zero gradients: gradient attacks may be unreliable on this net"
        for attack, count in zero_gradients.items()
    ]
    others = [a for name, a in accuracy.items() if name != "square"]
    if "square" in accuracy and len(others) > 1:
        fall = min(others) - accuracy["square"]
        if fall > 0.002:
            found.append(
                f"square took {100 * fall:.2f} points of accuracy that the gradient attacks left: "
                "they may be unreliable on this net"
            )
    return found
