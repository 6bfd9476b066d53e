"""The AutoAttack package, driven one restart and one target class at a time.

Its `perturb` methods loop over restarts and target classes inside one batch. What they call in that
loop, `attack_single_run`, is called here instead, so that whoever drives it may form the batches
anew from the points still standing; the attack itself is the package's own code. A package that has
not what is asked of it here runs the attack by its own evaluation, batch by batch, which is slower;
the log says so.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastuiat.config import UserError
from fastuiat.fast.torch_internals import say_once

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


def check(name: str, *arguments: Any, **options: Any) -> Any:
    """One of the package's own checks of a net; None, which the log says, where it has no such."""
    try:
        module: Any = importlib.import_module(f"{package()[0].__module__.split('.')[0]}.checks")
        function = getattr(module, name)
    except (ImportError, AttributeError):
        say_once(f"{package()[1]} has no {name}: the net goes without this check")
        return None
    # Its counter would go on from the last net.
    counts = getattr(module, "funcs", {})
    counts.update(dict.fromkeys(counts, 0))
    return function(*arguments, **options)


class Listener:
    """Stands in for the package's logger and keeps what it warns of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warning(self, message: str, *_: Any) -> None:
        self.warnings.append(message)

    log = debug = info = warning

    def zero_gradients(self) -> int:
        """How many points with a zero gradient it was told of since the last call."""
        counts = (re.search(r"there are (\d+) points with zero", text) for text in self.warnings)
        total = sum(int(match[1]) for match in counts if match)
        self.warnings.clear()
        return total

    def warned(self) -> bool:
        """Whether it was warned since the last call."""
        found = bool(self.warnings)
        self.warnings.clear()
        return found


WHOLE = -1
"""As a run's restart: all target classes and restarts in one go, by the package's own loop."""


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


PARTS = {
    "apgd-ce": "apgd",
    "apgd-dlr": "apgd",
    "apgd-t": "apgd_targeted",
    "fab": "fab",
    "fab-t": "fab",
    "square": "square",
}
"""Which part of the package's object runs an attack."""
ASKED = {
    "apgd": "attack_single_run init_hyperparam n_restarts n_iter eot_iter",
    "apgd_targeted": "attack_single_run init_hyperparam n_restarts n_iter eot_iter model",
    "fab": "attack_single_run predict eps n_restarts n_iter targeted target_class",
    "square": "attack_single_run init_hyperparam predict n_restarts n_queries",
}
"""What is asked of each beyond what the package documents."""


def lacking(adversary: Any, attack: str) -> list[str]:
    """Which of the names asked for this package does not have."""
    part = PARTS[attack]
    runner = getattr(adversary, part, None)
    return [f"{part}.{name}" for name in ASKED[part].split() if not hasattr(runner, name)]


def make_adversary(
    net: Any,
    *,
    eps: float,
    version: str,
    seed: int,
    device: torch.device,
    listener: Listener | None = None,
) -> Any:
    """The package's object, quiet, in the L∞ ball; `listener` is told of zero gradients."""
    adversary = package()[0](
        net, norm="Linf", eps=eps, version=version, seed=seed, device=str(device)
    )
    adversary.verbose = False
    adversary.logger = Listener()
    for part in ("apgd", "apgd_targeted"):
        if hasattr(adversary, part):
            getattr(adversary, part).logger = listener or Listener()
    return adversary


def let_net_differentiate(adversary: Any, net: Any) -> None:
    """Let the attacks take each loss and its gradient from the net's own methods.

    The package has this way for nets of TensorFlow; nothing else in an attack depends on it.
    """
    runners: list[Any] = [getattr(adversary, part, None) for part in ("apgd", "apgd_targeted")]
    name = "get_diff_logits_grads_batch_targeted"
    fab = getattr(adversary, "fab", None)
    if not (all(hasattr(r, "is_tf_model") for r in runners) and hasattr(fab, name)):
        say_once(
            f"{package()[1]} takes no gradients from a net: its attacks take their own, slower"
        )
        return
    for runner in runners:
        runner.is_tf_model = True
    setattr(fab, name, getattr(net, name))


def possible(attacks: list[str], classes: int) -> tuple[list[str], list[str]]:
    """(attacks that exist for so many classes, the others).

    The difference of logits ratio needs three classes, its targeted form four; UserError below two.
    """
    if classes < 2:
        raise UserError(f"a net of {classes} class cannot be attacked: it has nothing to confuse")
    least = {"apgd-dlr": 3, "apgd-t": 4}
    fit = [a for a in attacks if classes >= least.get(a, 2)]
    return fit, [a for a in attacks if a not in fit]


PASSES = {
    "apgd-ce": 202,
    "apgd-dlr": 202,
    "apgd-t": 1827,
    "fab": 6000,
    "fab-t": 2718,
    "square": 5001,
}
"""About how many forward passes an attack of ten classes takes, for the progress."""


def runs_of(adversary: Any, attack: str, classes: int) -> list[Run]:
    """The passes of one attack in the package's order: target classes, and restarts of each.

    One for all where the package has not what it takes to do them apart.
    """
    if names := lacking(adversary, attack):
        say_once(
            f"{package()[1]} has no {', '.join(names)}: {attack} runs in its own batches, slower"
        )
        for part in ("apgd_targeted", "fab"):
            if hasattr(adversary, part):
                getattr(adversary, part).n_target_classes = min(MOST_TARGETS, classes - 1)
        return [Run(attack, 0, WHOLE, first=True, last=True, passes=PASSES[attack])]
    targets = list(range(2, min(MOST_TARGETS, classes - 1) + 2))
    runner = getattr(adversary, PARTS[attack])
    if attack in ("apgd-ce", "apgd-dlr"):
        restarts, passes = runner.n_restarts, 2 * runner.eot_iter * (runner.n_iter + 1)
    elif attack == "apgd-t":
        restarts, passes = runner.n_restarts, 2 * runner.eot_iter * (runner.n_iter + 1) + 1
    elif attack == "fab":
        restarts, passes = runner.n_restarts, (classes + 2) * runner.n_iter
    elif attack == "fab-t":
        # The standard evaluation sets this number itself before it runs the attack.
        restarts, passes = 1, 3 * runner.n_iter + 2
    else:
        restarts, passes = runner.n_restarts, runner.n_queries + 1
    order = [(t, r) for t in (targets if attack.endswith("-t") else [0]) for r in range(restarts)]
    return [
        Run(attack, t, r, first=i == 0, last=i == len(order) - 1, passes=passes)
        for i, (t, r) in enumerate(order)
    ]


def perturb(adversary: Any, run: Run, x: Tensor, y: Tensor) -> Tensor:
    """x (B, C, H, W) with the points that the run broke replaced by their adversarial examples.

    The random numbers go on from wherever torch's generator stands.
    """
    if run.restart == WHOLE:
        return perturb_whole(adversary, run.attack, x, y)
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


def perturb_whole(adversary: Any, attack: str, x: Tensor, y: Tensor) -> Tensor:
    """The same by the package's documented evaluation, of this one attack."""
    evaluation, kept = adversary.run_standard_evaluation, adversary.attacks_to_run
    size = "batch_size" if "batch_size" in inspect.signature(evaluation).parameters else "bs"
    adversary.attacks_to_run = [attack]
    try:
        out = evaluation(x, y, **{size: len(x)})
    finally:
        adversary.attacks_to_run = kept
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found


def warnings_before(
    net: nn.Module, x: Tensor, y: Tensor, *, version: str, attacks: list[str]
) -> list[str]:
    """What the package would say of the net on its first batch, by its own checks."""
    found = []
    listener = Listener()
    if version != "rand":
        check("check_randomized", net, x, y, bs=len(x), logger=listener)
        if listener.warned():
            found.append(RANDOMISED)
    check("check_range_output", net, x, logger=listener)
    if listener.warned():
        found.append("the net puts out probabilities: attacks need its logits")
    before = sys.gettrace()
    try:
        check("check_dynamic", net, x, False, logger=listener)
    finally:
        sys.settrace(before)
    if listener.warned():
        found.append(DYNAMIC)
    with torch.no_grad():
        classes = net(x[:1]).shape[1]
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
