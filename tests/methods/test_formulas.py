"""Each method against an implementation written straight from its formula.

The reference shares the network and the noise; attacks, losses and BatchNorm modes are its own, in
loops over samples and classes. Values agree to 1e-6 and gradients to 1e-5 in fp64.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fastuiat_kernels import random_start

EPS, ALPHA, STEPS = 8 / 255, 2 / 255, 3


def log_softmax(logits: Tensor) -> Tensor:
    shifted = logits - logits.amax(dim=1, keepdim=True)
    return shifted - shifted.exp().sum(dim=1, keepdim=True).log()


def cross_entropy(logits: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    """Per sample."""
    log_p, classes = log_softmax(logits), logits.shape[1]
    rows = []
    for i, label in enumerate(y.tolist()):
        weights = [smoothing / classes + (1 - smoothing) * (k == label) for k in range(classes)]
        rows.append(-sum(w * log_p[i, k] for k, w in enumerate(weights)))
    return torch.stack(rows)


def kl(p_logits: Tensor, q_logits: Tensor) -> Tensor:
    """Per sample, nothing detached."""
    log_p, log_q = log_softmax(p_logits), log_softmax(q_logits)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


class Net:
    """The reference's hand on a network: which mode each forward runs in is said at the call."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]

    def eval(self, x: Tensor, features: bool = False):
        self.net.eval()
        return self.net(x, return_features=features)

    def tracked(self, x: Tensor) -> Tensor:
        self.net.train()
        return self.net(x)

    def untracked(self, x: Tensor) -> Tensor:
        """Batch statistics, the running ones put back afterwards."""
        kept = [{k: v.clone() for k, v in norm.named_buffers()} for norm in self.norms]
        logits = self.tracked(x)
        for norm, buffers in zip(self.norms, kept, strict=True):
            for name, value in buffers.items():
                setattr(norm, name, value)
        return logits


def climb(forward, x: Tensor, x_adv: Tensor, objective, *, alpha=ALPHA, steps=STEPS) -> Tensor:
    for _ in range(steps):
        x_adv = x_adv.detach().requires_grad_()
        (grad,) = torch.autograd.grad(objective(forward(x_adv)).sum(), x_adv)
        x_adv = x_adv.detach() + alpha * torch.sign(grad)
        x_adv = torch.minimum(torch.maximum(x_adv, x - EPS), x + EPS).clamp(0, 1)
    return x_adv


def kl_from(clean_logits: Tensor):
    return lambda logits: kl(clean_logits.detach(), logits)


def trades(net, x, y, start, method):
    x_adv = climb(net.eval, x, start, kl_from(net.eval(x)))
    clean, adversarial = net.tracked(x), net.tracked(x_adv)
    return (cross_entropy(clean, y) + 6 * kl(clean, adversarial)).mean(), x_adv


def mart(net, x, y, start, method):
    x_adv = climb(net.eval, x, start, lambda logits: cross_entropy(logits, y))
    clean, adversarial = net.tracked(x), net.tracked(x_adv)
    p, p_adv = log_softmax(clean).exp(), log_softmax(adversarial).exp()
    terms = []
    for i, label in enumerate(y.tolist()):
        others = max(p_adv[i, k] for k in range(p.shape[1]) if k != label)
        boosted = -torch.log(p_adv[i, label]) - torch.log(1.0001 - others + 1e-12)
        terms.append(boosted + 5 * kl(clean, adversarial)[i] * (1.0000001 - p[i, label]))
    return torch.stack(terms).mean(), x_adv


def hat_with(beta: float, smoothing: float, batch_statistics: bool):
    def hat(net, x, y, start, method):
        attacked = net.untracked if batch_statistics else net.eval
        x_adv = climb(attacked, x, start, kl_from(attacked(x)))
        helper = method.helpers["helper"]
        helper.eval()
        y_help = torch.tensor([int(row.argmax()) for row in helper(x_adv)])
        clean, adversarial = net.tracked(x), net.tracked(x_adv)
        helping = net.tracked(x + 2 * (x_adv - x))
        terms = cross_entropy(clean, y, smoothing) + beta * kl(clean, adversarial)
        return (terms + 0.5 * cross_entropy(helping, y_help)).mean(), x_adv

    return hat


def rebuffi(net, x, y, start, method):
    x_adv = climb(net.untracked, x, start, kl_from(net.untracked(x)))
    clean, adversarial = net.tracked(x), net.tracked(x_adv)
    return (cross_entropy(clean, y, 0.1) + 6 * kl(clean, adversarial)).mean(), x_adv


def predicted(net: Net, x: Tensor, reading: str) -> Tensor:
    """f(x̌) as the reading has it."""
    if reading == "eval":
        return net.eval(x).detach()
    return net.tracked(x) if reading == "attached" else net.tracked(x).detach()


def iat_with(beta: float, reading: str = "train"):
    def iat(net, x, y, start, method):
        x_adv = climb(net.eval, x, start, lambda logits: cross_entropy(logits, y))
        features, features_adv = net.eval(x, True)[1].detach(), net.eval(x_adv, True)[1].detach()
        x_inv = method.inverse_start
        for _ in range(5):
            x_inv = x_inv.detach().requires_grad_()
            logits, f = net.eval(x_inv, True)
            near, far = (f - features).abs().mean(dim=1), (f - features_adv).abs().mean(dim=1)
            inverse = (cross_entropy(logits, y) + beta * (near - far)).sum()
            (grad,) = torch.autograd.grad(inverse, x_inv)
            x_inv = x_inv.detach() - 2 / 255 * torch.sign(grad)
            x_inv = torch.minimum(torch.maximum(x_inv, x - 4 / 255), x + 4 / 255).clamp(0, 1)
        p_logits = predicted(net, x_inv, reading)
        adversarial = net.tracked(x_adv)
        return (cross_entropy(adversarial, y) + 3.5 * kl(p_logits, adversarial)).mean(), x_adv

    return iat


CASES = [
    ("trades", {}, "normal", trades),
    ("mart", {}, "normal", mart),
    ("hat", {}, "normal", hat_with(2.5, 0.0, False)),
    (
        "hat",
        {"beta": 3.5, "label_smoothing": 0.1, "attack_bn": "batch"},
        "uniform",
        hat_with(3.5, 0.1, True),
    ),
    ("rebuffi", {}, "uniform", rebuffi),
    ("iat", {}, "uniform", iat_with(1.0)),
    ("iat", {"beta": 0.0}, "uniform", iat_with(0.0)),
    ("iat", {"inverse_forward": "eval"}, "uniform", iat_with(1.0, "eval")),
    ("iat", {"inverse_forward": "attached"}, "uniform", iat_with(1.0, "attached")),
]


def assert_same_training(loss: Tensor, net: nn.Module, expected: Tensor, twin: nn.Module) -> None:
    """Value, gradient of every parameter, and every running statistic."""
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    grads = torch.autograd.grad(loss, list(net.parameters()))
    wanted = torch.autograd.grad(expected, list(twin.parameters()))
    for (name, _), got, want in zip(net.named_parameters(), grads, wanted, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm() + 1e-12, name
    for (name, got), want in zip(net.named_buffers(), twin.buffers(), strict=True):
        assert torch.allclose(got, want, rtol=1e-9), name


def helper_that_tells(x: Tensor, x_adv: Tensor) -> nn.Module:
    """A net that sees class 0 in the first image and class 1 in its x̂, as no fresh net would."""
    linear = nn.Linear(x[0].numel(), 5).double()
    direction = torch.sign(x_adv[0] - x[0]).flatten()
    with torch.no_grad():
        linear.weight.zero_()
        linear.weight[1] = direction
        linear.bias[:] = torch.tensor([0.0, -float(direction @ x[0].flatten()) - 1e-3, -1, -1, -1])
    helper = nn.Sequential(nn.Flatten(), linear)
    assert helper(x[:1]).argmax() == 0 and helper(x_adv[:1]).argmax() == 1
    return helper


@pytest.mark.parametrize("name, config, kind, book", CASES)
def test_against_the_formula(name, config, kind, book, create, make_net, make_batch):
    batch = make_batch(torch.float64)
    width = EPS if kind == "uniform" else 0.001
    key, index = batch.noise("attack")
    start = random_start(batch.x, index, key, eps=width, kind=kind)
    method = create(name, torch.float64, attack={"steps": STEPS}, **config)
    if kind == "uniform" and name == "hat":
        method = create(name, torch.float64, attack={"steps": STEPS, "start": kind}, **config)
    assert method.config.attack.start == kind
    if name == "hat":
        _, x_adv = book(Net(make_net(torch.float64)), batch.x, batch.y, start, method)
        method.helpers["helper"] = helper_that_tells(batch.x, x_adv)
    key, index = batch.noise("inverse")
    method.inverse_start = random_start(batch.x, index, key, eps=0.001, kind="normal")
    net, twin = make_net(torch.float64), make_net(torch.float64)
    expected, x_adv = book(Net(twin), batch.x, batch.y, start, method)
    assert (x_adv - batch.x).abs().max() > EPS / 4
    out = method.loss(net, batch)
    assert_same_training(out.loss, net, expected, twin)
    # The same from the start given as a tensor.
    given = create(name, torch.float64, attack={"steps": STEPS, "start": start}, **config)
    given.helpers = method.helpers
    again = make_net(torch.float64)
    assert given.loss(again, batch).loss.item() == pytest.approx(expected.item(), rel=1e-6)


def single_step(name, net, batch, noise_ratio, alpha_ratio, project):
    """x̂ and the gradient it was made with."""
    x, y = batch.x, batch.y
    start = x
    if noise_ratio:
        key, index = batch.noise("attack")
        start = random_start(x, index, key, eps=noise_ratio * EPS)
    start = start.detach().requires_grad_()
    (grad,) = torch.autograd.grad(cross_entropy(net.tracked(start), y).sum(), start)
    x_adv = start.detach() + alpha_ratio * EPS * torch.sign(grad)
    if project:
        x_adv = torch.minimum(torch.maximum(x_adv, x - EPS), x + EPS)
    return x_adv.clamp(0, 1), grad


def single_step_loss(name, net, batch, mu, between=lambda: None):
    """The loss and f(x̂); `between` is run after the attack, before the training forwards."""
    x, y = batch.x, batch.y
    if name == "rs-fgsm":
        x_adv, _ = single_step(name, net, batch, 1, 1.25, True)
    elif name == "n-fgsm":
        x_adv, _ = single_step(name, net, batch, 2, 1, False)
    else:
        x_adv, grad = single_step(name, net, batch, 0, 1.25, True)
    between()
    alignment = torch.zeros((), dtype=x.dtype)
    if name == "gradalign":
        key, index = batch.noise("alignment")
        noisy = random_start(x, index, key, eps=EPS, lo=-1.0, hi=2.0).requires_grad_()
        total = cross_entropy(net.tracked(noisy), y).sum()
        (other,) = torch.autograd.grad(total, noisy, create_graph=True)
        terms = []
        for a, b in zip(grad.flatten(1), other.flatten(1), strict=True):
            if a.norm() > 0 and b.norm() > 0:
                terms.append(1 - (a @ b) / (a.norm() * b.norm()))
        alignment = mu * torch.stack(terms).mean()
    logits = net.tracked(x_adv)
    return cross_entropy(logits, y).mean() + alignment, logits


@pytest.mark.parametrize("name", ["rs-fgsm", "n-fgsm", "gradalign"])
def test_single_step_methods(name, create, make_net, make_batch):
    batch = make_batch(torch.float64)
    net, twin = make_net(torch.float64), make_net(torch.float64)
    expected, _ = single_step_loss(name, Net(twin), batch, mu=0.2)
    out = create(name, torch.float64).loss(net, batch)
    assert_same_training(out.loss, net, expected, twin)
    forwards = {"rs-fgsm": 2, "n-fgsm": 2, "gradalign": 3}[name]
    assert int(net.bn1.num_batches_tracked) == forwards


def note_prediction(found: list[Tensor], net: nn.Module, x: Tensor, reading: str) -> None:
    found.append(log_softmax(predicted(Net(net), x, reading)).exp())


@pytest.mark.parametrize("reading", ["eval", "train", "attached"])
@pytest.mark.parametrize("base", ["rs-fgsm", "n-fgsm", "gradalign"])
def test_single_step_with_the_one_off_target(base, reading, create, make_net, make_batch):
    """Epochs 1 (clean), 2 (universal, T'), 3 (memory, with samples that T' did not visit)."""
    settings = {"oneoff_epoch": 2, "inverse_forward": reading}
    method = create(f"{base}+uiat", torch.float64, **settings)
    z, memory = method.target.universal.bank.z.double().clone(), {}
    for epoch in (1, 2, 3):
        batch = make_batch(torch.float64, epoch, shift=3 * epoch)
        x, y, rows = batch.x, batch.y, batch.index.tolist()
        net, twin = make_net(torch.float64, seed=epoch), make_net(torch.float64, seed=epoch)
        # The target's forwards come between attack and training forwards: the running statistics
        # that eval mode reads have seen the attack's forward and no other.
        probe = make_net(torch.float64, seed=epoch)
        ratios = {"rs-fgsm": (1, 1.25, True), "n-fgsm": (2, 1, False), "gradalign": (0, 1.25, True)}
        single_step(base, Net(probe), batch, *ratios[base])
        x_inv = torch.stack([(x[i] + z[y[i]]).clamp(0, 1) for i in range(len(y))])
        if epoch == 2:
            leaf = x_inv.clone().requires_grad_()
            log_p = log_softmax(Net(probe).eval(leaf))
            (grad,) = torch.autograd.grad(-sum(log_p[i, y[i]] for i in range(len(y))), leaf)
            for c in set(y.tolist()):
                step = torch.sign(sum(grad[i] for i in range(len(y)) if y[i] == c))
                z[c] = (z[c] - 4 / 255 * step).clamp(-4 / 255, 4 / 255)
        seen_from = x if epoch == 1 else x_inv
        found: list[Tensor] = []
        between = partial(note_prediction, found, twin, seen_from, reading)
        plain, logits = single_step_loss(base, Net(twin), batch, mu=0.2, between=between)
        (p,) = found
        if epoch == 2:
            memory = {row: p[i].detach() for i, row in enumerate(rows)}
        if epoch == 3:
            p = torch.stack([memory.get(row, p[i].detach()) for i, row in enumerate(rows)])
        log_q = log_softmax(logits)
        pull = sum(
            p[i, k] * (p[i, k].log() - log_q[i, k])
            for i in range(len(y))
            for k in range(p.shape[1])
        ) / len(y)
        out = method.loss(net, batch)
        assert_same_training(out.loss, net, plain + 3.5 * pull, twin)
        assert torch.allclose(method.target.universal.bank.z.double(), z, atol=1e-7)
        attacks = {"rs-fgsm": 2, "n-fgsm": 2, "gradalign": 3}[base]
        assert int(net.bn1.num_batches_tracked) == attacks + (reading != "eval")


def test_on_a_given_x_adv_in_fp32(make_net, make_batch):
    """The losses alone, fp32 against fp64 on the same points."""
    from fastuiat.methods import gradalign, hat, mart, trades

    values = {}
    for dtype in (torch.float64, torch.float32):
        batch, net = make_batch(torch.float32), make_net(torch.float64).to(dtype)
        x, y = batch.x, batch.y
        key, index = batch.noise("attack")
        x_adv = random_start(x, index, key, eps=EPS)
        x_noisy = random_start(x, index, key + 1, eps=EPS, lo=-1.0, hi=2.0)
        grad = x_noisy - x
        x, x_adv, x_noisy, grad = (t.to(dtype) for t in (x, x_adv, x_noisy, grad))
        values[dtype] = [
            trades.trades_loss(net, x, x_adv, y, 6.0)[0],
            mart.mart_loss(net, x, x_adv, y, 5.0)[0],
            hat.hat_loss(net, x, x_adv, 2 * x_adv - x, y, y.flip(0), 2.5, 0.5, 0.1)[0],
            gradalign.aligned_loss(net, x_adv, x_noisy.requires_grad_(), grad, y, 0.2)[0],
        ]
        for loss in values[dtype]:
            assert loss.dtype == dtype
    for wide, narrow in zip(values[torch.float64], values[torch.float32], strict=True):
        assert narrow.item() == pytest.approx(wide.item(), rel=1e-4)


def test_alignment_weight():
    from fastuiat.methods.gradalign import alignment_weight

    assert alignment_weight(8 / 255) == pytest.approx(0.2)
    assert alignment_weight(16 / 255) == pytest.approx(2.0)
    assert alignment_weight(1e-12) == pytest.approx(0.02)


def boosted_by_the_book(logits: Tensor, y: Tensor, slack: float) -> Tensor:
    """MART's BCE, the constants of its authors' code added where slack is 1e-4."""
    p = log_softmax(logits).exp()
    terms = []
    for row, label in zip(p, y.tolist(), strict=True):
        others = max(row[k] for k in range(len(row)) if k != label)
        terms.append(-torch.log(row[label]) - torch.log(1 + slack - others + 1e-12))
    return torch.stack(terms)


MARGINS = (0.0, 3.0, 9.0, 12.0, 15.0, 20.0)
"""By how much a wrong class leads."""


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-7), (torch.float32, 2e-5)])
def test_boosted_cross_entropy_of_confident_errors(dtype, tolerance):
    """Also in fp32, where 1.0001 − p itself would have lost half of its digits."""
    from fastuiat.losses import boosted_cross_entropy

    exact = torch.tensor([[m, 0.0, -1.0, 0.5] for m in MARGINS], dtype=torch.float64)
    y = torch.ones(len(MARGINS), dtype=torch.int64)
    logits, exact = exact.to(dtype).requires_grad_(), exact.requires_grad_()
    got, wanted = boosted_cross_entropy(logits, y), boosted_by_the_book(exact, y, 1e-4)
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=0)
    (grad,) = torch.autograd.grad(got.sum(), logits)
    (want,) = torch.autograd.grad(wanted.sum(), exact)
    torch.testing.assert_close(grad.double(), want, rtol=0, atol=tolerance)
    # The wrong class is pulled down by one term, not by both.
    (plain,) = torch.autograd.grad(boosted_by_the_book(exact[4:5], y[4:5], 0.0).sum(), exact)
    assert grad[4, 0].item() == pytest.approx(1.0, abs=0.01)
    assert plain[4, 0].item() == pytest.approx(2.0, abs=0.01)


def test_the_weight_of_mart_is_never_zero():
    """1.0000001 − p_y: of a net that is sure of x and wrong in x̂, in fp32."""
    from fastuiat.methods.mart import mart_loss

    net = nn.Identity()
    x = torch.tensor([[40.0, 0.0, 0.0]])
    y = torch.tensor([0])
    with_kl = mart_loss(net, x, x.flip(1), y, 1e6)[0] - mart_loss(net, x, x.flip(1), y, 0.0)[0]
    divergence = kl(x.double(), x.flip(1).double()).item()
    assert with_kl.item() == pytest.approx(1e6 * 1e-7 * divergence, rel=1e-3)
