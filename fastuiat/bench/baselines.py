"""Training steps as such code is usually written: what `fastuiat` is compared with.

Eager, fp32, NCHW, PyTorch's defaults otherwise. Each repeats the forwards that the method's
published code repeats, and says which; where there is no public code, those of code written without
care. They are written for reading, in one style, and share nothing with the methods but the nets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastuiat.config import UserError

EPS, ALPHA, STEPS = 8 / 255, 2 / 255, 10
INVERSE_EPS, INVERSE_STEP = 4 / 255, 2 / 255
LAM, BETA, GAMMA = 3.5, 1.0, 0.9
Loss = Callable[["NaiveStep", Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Baseline:
    """One method as it is usually written."""

    loss: Loss
    passes: Mapping[str | None, float]
    """Passes of a step, by phase; GradAlign's double backward is counted as 4."""
    source: str
    """Where the count comes from."""


BASELINES: dict[str, Baseline] = {}


def baseline(
    name: str, passes: float | Mapping[str | None, float], source: str
) -> Callable[[Loss], Loss]:
    def add(loss: Loss) -> Loss:
        by_phase: Mapping[str | None, float] = (
            passes if isinstance(passes, Mapping) else {None: passes}
        )
        BASELINES[name] = Baseline(loss, by_phase, source)
        return loss

    return add


class NaiveStep:
    """One optimiser step of a method: `step(x, y, index)`, x contiguous fp32 (B, C, H, W)."""

    def __init__(
        self,
        method: str,
        net: nn.Module,
        *,
        helper: nn.Module | None = None,
        phase: str | None = None,
        num_classes: int,
        num_samples: int,
        resolution: int = 32,
        device: torch.device,
    ) -> None:
        if method not in BASELINES:
            raise UserError(f"there is no naive baseline of {method}")
        self.baseline = BASELINES[method]
        self.net = net.to(memory_format=torch.contiguous_format)
        self.helper, self.phase = helper, phase
        with device:
            self.z = 0.001 * torch.randn(num_classes, 3, resolution, resolution)
            self.memory = torch.full((num_samples, num_classes), 1 / num_classes)
        self.optimizer = torch.optim.SGD(
            net.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4
        )

    def backward(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """The loss, and its gradients in the parameters."""
        self.net.train()
        loss = self.baseline.loss(self, x, y, index)
        self.optimizer.zero_grad()
        loss.backward()
        return loss

    def __call__(self, x: Tensor, y: Tensor, index: Tensor) -> None:
        loss = self.backward(x, y, index)
        self.optimizer.step()
        loss.item()  # the running loss that such code prints


def moved(x: Tensor, x_adv: Tensor, grad: Tensor, alpha: float, eps: float) -> Tensor:
    """One signed step, projected on the ball around x and on the pixel range."""
    delta = torch.clamp(x_adv.detach() + alpha * torch.sign(grad) - x, -eps, eps)
    return torch.clamp(x + delta, 0, 1)


def gradient(objective: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """∂objective/∂x and nothing else."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(objective(x), x)[0]


def attacked(
    net: nn.Module, x: Tensor, x_adv: Tensor, objective: Callable[[Tensor], Tensor]
) -> Tensor:
    """Ten ascent steps in eval mode."""
    net.eval()
    for _ in range(STEPS):
        x_adv = moved(x, x_adv, gradient(objective, x_adv), ALPHA, EPS)
    net.train()
    return x_adv


def uniform_start(x: Tensor, eps: float = EPS) -> Tensor:
    return torch.clamp(x + torch.empty_like(x).uniform_(-eps, eps), 0, 1)


def normal_start(x: Tensor) -> Tensor:
    return x + 0.001 * torch.randn_like(x)


def kl(logits: Tensor, target: Tensor) -> Tensor:
    """KL(target ‖ softmax(logits)), a batch mean."""
    return F.kl_div(F.log_softmax(logits, dim=1), target, reduction="batchmean")


def pgd(step: NaiveStep, x: Tensor, y: Tensor) -> Tensor:
    return attacked(step.net, x, uniform_start(x), lambda v: F.cross_entropy(step.net(v), y))


@baseline("natural", 3, "a forward and its backward")
def natural(step: NaiveStep, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    return F.cross_entropy(step.net(x), y)


@baseline(
    "sat",
    35,
    "locuslab/robust_overfitting: the attack's backward() computes weight gradients (30), one "
    "forward picks the best restart, 3 train, one logs the natural loss",
)
def sat(step: NaiveStep, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    net = step.net
    delta = (uniform_start(x) - x).requires_grad_()
    for _ in range(STEPS):
        F.cross_entropy(net(x + delta), y).backward()
        assert delta.grad is not None
        step_to = moved(x, x + delta, delta.grad, ALPHA, EPS)
        delta = (step_to - x).detach().requires_grad_()
    F.cross_entropy(net(x + delta), y, reduction="none")
    loss = F.cross_entropy(net((x + delta).detach()), y)
    F.cross_entropy(net(x), y)
    return loss


@baseline(
    "trades",
    39,
    "yaodongyu/TRADES: the clean forward is repeated in each attack step (30) and runs twice in "
    "the loss (9)",
)
def trades(step: NaiveStep, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    net = step.net
    x_adv = attacked(net, x, normal_start(x), lambda v: kl(net(v), F.softmax(net(x), dim=1)))
    clean = F.cross_entropy(net(x), y)
    return clean + 6.0 * kl(net(x_adv), F.softmax(net(x), dim=1))


@baseline("mart", 26, "YisenWang/MART: nothing is repeated")
def mart(step: NaiveStep, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    net = step.net
    x_adv = attacked(net, x, normal_start(x), lambda v: F.cross_entropy(net(v), y))
    p, p_adv = F.softmax(net(x), dim=1), F.softmax(net(x_adv), dim=1)
    own = F.one_hot(y, p.shape[1])
    others = (p_adv - own).amax(dim=1)
    boosted = F.nll_loss(torch.log(p_adv + 1e-12), y) - torch.log(1.0001 - others).mean()
    divergence = F.kl_div(torch.log(p_adv + 1e-12), p, reduction="none").sum(dim=1)
    return boosted + 5.0 * (divergence * (1 - (p * own).sum(dim=1))).mean()


@baseline("hat", 31, "imrahulr/hat: clean probabilities once, the helper's forward, three to train")
def hat(step: NaiveStep, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    net, helper = step.net, step.helper
    assert helper is not None
    net.eval()
    p = F.softmax(net(x), dim=1).detach()
    x_adv = attacked(net, x, normal_start(x), lambda v: kl(net(v), p))
    with torch.no_grad():
        y_help = helper.eval()(x_adv).argmax(dim=1)
    logits, logits_adv, logits_help = net(x), net(x_adv), net(x + 2.0 * (x_adv - x))
    loss = F.cross_entropy(logits, y) + 2.5 * kl(logits_adv, F.softmax(logits, dim=1))
    return loss + 0.5 * F.cross_entropy(logits_help, y_help)


@baseline(
    "rebuffi",
    27,
    "imrahulr/adversarial_robustness_pytorch: clean probabilities once for the attack, again for "
    "the loss",
)
def rebuffi(step: NaiveStep, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    net = step.net
    p = F.softmax(net(x), dim=1).detach()
    x_adv = uniform_start(x)
    for _ in range(STEPS):
        x_adv = moved(x, x_adv, gradient(lambda v: kl(net(v), p), x_adv), ALPHA, EPS)
    logits = net(x)
    clean = F.cross_entropy(logits, y, label_smoothing=0.1)
    return clean + 6.0 * kl(net(x_adv), F.softmax(logits, dim=1))


def inverse_objective(net: Any, x: Tensor, x_adv: Tensor, y: Tensor, beta: float) -> Any:
    """L_inv as a function of x̌ (eq. 4), F(x) and F(x̂) computed once."""
    if beta == 0:
        return lambda v: F.cross_entropy(net(v), y, reduction="sum")
    with torch.no_grad():
        features, features_adv = (net(v, return_features=True)[1] for v in (x, x_adv))

    def objective(v: Tensor) -> Tensor:
        logits, own = net(v, return_features=True)
        near = (own - features).abs().mean(dim=1) - (own - features_adv).abs().mean(dim=1)
        return F.cross_entropy(logits, y, reduction="sum") + beta * near.sum()

    return objective


def predicted(net: nn.Module, x: Tensor) -> Tensor:
    """softmax(f(x)), a constant, in the training forward's mode."""
    with torch.no_grad():
        return F.softmax(net(x), dim=1)


@baseline("iat", 36, "no public code: five inverse steps, F(x) and F(x̂) once, f(x̌) at their end")
def iat(step: NaiveStep, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    net = step.net
    x_adv = pgd(step, x, y)
    net.eval()
    objective, x_inv = inverse_objective(net, x, x_adv, y, BETA), normal_start(x)
    for _ in range(5):
        x_inv = moved(x, x_inv, -gradient(objective, x_inv), INVERSE_STEP, INVERSE_EPS)
    net.train()
    p = predicted(net, x_inv)
    logits_adv = net(x_adv)
    return F.cross_entropy(logits_adv, y) + LAM * kl(logits_adv, p)


def universal(step: NaiveStep, x: Tensor, x_adv: Tensor, y: Tensor, beta: float) -> Tensor:
    """z moved by its class gradients, and f(x̌)."""
    net, z = step.net, step.z
    net.eval()
    x_inv = torch.clamp(x + z[y], 0, 1)
    grad = gradient(inverse_objective(net, x, x_adv, y, beta), x_inv)
    sums = torch.zeros_like(z).index_add_(0, y, grad)
    present = F.one_hot(y, len(z)).sum(dim=0)[:, None, None, None] > 0
    stepped = torch.clamp(z - INVERSE_EPS * torch.sign(sums), -INVERSE_EPS, INVERSE_EPS)
    step.z = torch.where(present, stepped, z)
    net.train()
    return predicted(net, x_inv)


@baseline("uiat", 28, "no public code: f(x̌) once more, in train mode, after it has moved z")
def uiat(step: NaiveStep, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    x_adv = pgd(step, x, y)
    p = GAMMA * step.memory[index] + (1 - GAMMA) * universal(step, x, x_adv, y, BETA)
    step.memory[index] = p
    logits_adv = step.net(x_adv)
    return F.cross_entropy(logits_adv, y) + LAM * kl(logits_adv, p)


def oneoff(step: NaiveStep, x: Tensor, x_adv: Tensor, y: Tensor, index: Tensor, beta: float) -> Any:
    """p of the one-off variant in the step's phase."""
    if step.phase == "before":
        return predicted(step.net, x)
    if step.phase == "at":
        step.memory[index] = universal(step, x, x_adv, y, beta)
    return step.memory[index]


@baseline(
    "uiat-oneoff",
    {"before": 24, "at": 28, "after": 23},
    "no public code: as uiat where x̌ is made, one clean forward before it, none after it",
)
def uiat_oneoff(step: NaiveStep, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    x_adv = pgd(step, x, y)
    p = oneoff(step, x, x_adv, y, index, BETA)
    logits_adv = step.net(x_adv)
    return F.cross_entropy(logits_adv, y) + LAM * kl(logits_adv, p)


def rs_fgsm_attack(step: NaiveStep, x: Tensor, y: Tensor) -> Tensor:
    delta = (uniform_start(x) - x).requires_grad_()
    F.cross_entropy(step.net(x + delta), y).backward()
    assert delta.grad is not None
    return moved(x, x + delta, delta.grad, 1.25 * EPS, EPS)


def n_fgsm_attack(step: NaiveStep, x: Tensor, y: Tensor) -> Tensor:
    start = uniform_start(x, 2 * EPS)
    grad = gradient(lambda v: F.cross_entropy(step.net(v), y), start)
    return torch.clamp(start + EPS * torch.sign(grad), 0, 1)


def alignment(net: nn.Module, grad: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """1 − cos of the gradients at x and at a random point beside it, differentiable."""
    noisy = (x + torch.empty_like(x).uniform_(-EPS, EPS)).requires_grad_()
    loss = F.cross_entropy(net(noisy), y)
    (other,) = torch.autograd.grad(loss, noisy, create_graph=True)
    return 1 - F.cosine_similarity(grad.flatten(1), other.flatten(1)).mean()


def single_step(
    step: NaiveStep, attack: str, x: Tensor, y: Tensor
) -> tuple[Tensor, Tensor | float]:
    """x̂, and what the method adds to the loss."""
    if attack == "rs-fgsm":
        return rs_fgsm_attack(step, x, y), 0.0
    if attack == "n-fgsm":
        return n_fgsm_attack(step, x, y), 0.0
    grad = gradient(lambda v: F.cross_entropy(step.net(v), y), x)
    x_adv = moved(x, x, grad, 1.25 * EPS, EPS)
    return x_adv, 0.2 * alignment(step.net, grad, x, y)


def _add_single_step(attack: str, passes: float, source: str) -> None:
    """The method and its one-off combination, whose phases cost 1, 3 and 0 passes more."""

    @baseline(attack, passes, source)
    def plain(step: NaiveStep, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        x_adv, extra = single_step(step, attack, x, y)
        return F.cross_entropy(step.net(x_adv), y) + extra

    @baseline(
        f"{attack}+uiat",
        {"before": passes + 1, "at": passes + 3, "after": passes},
        f"{source}; no public code of the combination: f(x̌) has a forward of its own",
    )
    def combined(step: NaiveStep, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        x_adv, extra = single_step(step, attack, x, y)
        p = oneoff(step, x, x_adv, y, index, 0.0)
        logits_adv = step.net(x_adv)
        return F.cross_entropy(logits_adv, y) + extra + LAM * kl(logits_adv, p)


_add_single_step(
    "rs-fgsm", 6, "locuslab/fast_adversarial: the attack's backward() computes weight gradients"
)
_add_single_step("n-fgsm", 5, "pdejorge/N-FGSM: nothing is repeated")
_add_single_step("gradalign", 11, "tml-epfl/understanding-fast-adv-training: nothing is repeated")
