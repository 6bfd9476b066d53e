"""UIAT against an implementation written straight from Algorithm 1 and eqs. 4, 7, 8 and 10."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import fastuiat
from fastuiat import methods
from fastuiat.attacks import starting_point
from fastuiat.data import Batch

K, N, B = 5, 24, 8
EPS, ALPHA, STEPS = 8 / 255, 2 / 255, 3


def make_net(dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    return fastuiat.build_model("wrn-10-1", num_classes=K).to(dtype)


def make_batch(epoch: int, dtype: torch.dtype, shift: int = 0) -> Batch:
    g = torch.Generator().manual_seed(epoch * 10 + shift)
    x = torch.rand(B, 3, 32, 32, generator=g, dtype=dtype)
    y = torch.tensor([0, 0, 1, 3, 3, 3, 1, 0])  # classes 2 and 4 are absent
    index = (torch.arange(B) + shift) % N
    return Batch(x.to(memory_format=torch.channels_last), y, index, epoch, 0)


class ByTheBook:
    """Plain loops over the paper's formulas; shares only the start points of the attack."""

    def __init__(
        self, net, z, *, reading, lam, beta, gamma, momentum_epoch=None, oneoff_epoch=None
    ):
        self.net, self.z, self.reading = net, z.clone(), reading
        self.lam, self.beta, self.gamma = lam, beta, gamma
        self.momentum_epoch, self.oneoff_epoch = momentum_epoch, oneoff_epoch
        self.memory: dict[int, torch.Tensor] = {}

    def attack(self, x, y, x_adv):
        self.net.eval()
        for _ in range(STEPS):
            x_adv = x_adv.detach().requires_grad_()
            loss = sum(-F.log_softmax(self.net(x_adv), 1)[i, y[i]] for i in range(len(y)))
            (grad,) = torch.autograd.grad(loss, x_adv)
            x_adv = x_adv.detach() + ALPHA * torch.sign(grad)
            x_adv = torch.minimum(torch.maximum(x_adv, x - EPS), x + EPS).clamp(0, 1)
        return x_adv

    def inverse(self, x, y, x_adv):
        """z moved, and p, in which z stands as it was."""
        self.net.eval()
        x_inv = self.bright(x, y).requires_grad_()
        logits, f_inv = self.net(x_inv, return_features=True)
        with torch.no_grad():
            f = self.net(x, return_features=True)[1]
            f_adv = self.net(x_adv, return_features=True)[1]
        loss = F.cross_entropy(logits, y, reduction="sum")
        for i in range(len(y)):
            near, far = (f_inv[i] - f[i]).abs().mean(), (f_inv[i] - f_adv[i]).abs().mean()
            loss = loss + self.beta * (near - far)
        (grad,) = torch.autograd.grad(loss, x_inv)
        for c in set(y.tolist()):
            total = sum(grad[i] for i in range(len(y)) if y[i] == c)
            step = (4 / 255) * torch.sign(total).to(self.z.dtype)
            self.z[c] = (self.z[c] - step).clamp(-4 / 255, 4 / 255)
        if self.reading == "eval":
            return torch.softmax(logits.detach(), 1)
        return self.predict(x_inv.detach())

    def bright(self, x, y):
        return torch.stack([(x[i] + self.z[y[i]].to(x.dtype)).clamp(0, 1) for i in range(len(y))])

    def predict(self, x):
        self.net.train(self.reading != "eval")
        p = torch.softmax(self.net(x), 1)
        return p if self.reading == "attached" else p.detach()

    def target(self, batch, x_adv):
        if self.oneoff_epoch is not None:
            if batch.epoch < self.oneoff_epoch:
                return self.predict(batch.x)
            if batch.epoch == self.oneoff_epoch:
                p = self.inverse(batch.x, batch.y, x_adv)
                for i, row in zip(batch.index.tolist(), p.detach(), strict=True):
                    self.memory[i] = row
                return p
            if not all(i in self.memory for i in batch.index.tolist()):
                fallback = self.predict(self.bright(batch.x, batch.y)).detach()
                for i, row in zip(batch.index.tolist(), fallback, strict=True):
                    self.memory.setdefault(i, row)
            return torch.stack([self.memory[i] for i in batch.index.tolist()])
        p = self.inverse(batch.x, batch.y, x_adv)
        if batch.epoch >= self.momentum_epoch:
            p = torch.stack(
                [
                    self.gamma * self.memory[i] + (1 - self.gamma) * p[row]
                    if i in self.memory
                    else p[row]
                    for row, i in enumerate(batch.index.tolist())
                ]
            )
        if batch.epoch >= self.momentum_epoch - 1:
            for i, row in zip(batch.index.tolist(), p.detach(), strict=True):
                self.memory[i] = row
        return p

    def loss(self, batch, x_adv, p):
        self.net.train()
        log_q = F.log_softmax(self.net(x_adv), 1)
        total = 0.0
        for i in range(len(batch.y)):
            kl = sum(p[i, k] * (p[i, k].log() - log_q[i, k]) for k in range(K))
            total = total - log_q[i, batch.y[i]] + self.lam * kl
        return total / len(batch.y)


CASES = [
    ("uiat", {"momentum_epoch": 3}, {"momentum_epoch": 3}),
    ("uiat", {"momentum_epoch": 2, "beta": 0.0}, {"momentum_epoch": 2, "beta": 0.0}),
    ("uiat-oneoff", {"oneoff_epoch": 2}, {"oneoff_epoch": 2}),
]


READINGS = ("eval", "train", "attached")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reading", "dtype"), [*((r, torch.float64) for r in READINGS), ("train", torch.float32)]
)
@pytest.mark.parametrize("name, config, book", CASES)
def test_against_the_book(name, config, book, reading, dtype):
    net, twin = make_net(dtype), make_net(dtype)
    method = methods.create(
        name,
        num_classes=K,
        num_samples=N,
        epochs=4,
        attack={"steps": STEPS, "start": "uniform"},
        inverse_forward=reading,
        **config,
    )
    settings = {"reading": reading, "lam": 3.5, "beta": 1.0, "gamma": 0.9} | book
    book = ByTheBook(twin, method.target.universal.bank.z, **settings)
    for epoch in range(1, 5):
        # Epochs overlap in part, so that some samples are new after T'.
        batch = make_batch(epoch, dtype, shift=3 * epoch)
        start = starting_point(batch.x, "uniform", EPS, batch.noise("attack"))
        x_adv = book.attack(batch.x, batch.y, start)
        p = book.target(batch, x_adv)
        expected = book.loss(batch, x_adv, p)
        net.train()
        out = method.loss(net, batch)
        tolerance = 1e-6 if dtype == torch.float64 else 1e-4
        assert out.loss.item() == pytest.approx(expected.item(), rel=tolerance)
        z = method.target.universal.bank.z
        agree = (z == book.z).float().mean()
        assert agree == 1 if dtype == torch.float64 else agree > 0.99
        grads = torch.autograd.grad(out.loss, list(net.parameters()))
        wanted = torch.autograd.grad(expected, list(twin.parameters()))
        if dtype == torch.float64:
            for got, want in zip(grads, wanted, strict=True):
                assert (got - want).norm() <= 1e-5 * want.norm() + 1e-12
        # BatchNorm saw the training forwards, and no other.
        for (key, a), b in zip(net.state_dict().items(), twin.state_dict().values(), strict=True):
            assert torch.allclose(a, b, rtol=1e-5), key


def test_absent_classes_keep_z_bit_for_bit():
    method = methods.create("uiat", num_classes=K, num_samples=N, epochs=4, attack={"steps": 1})
    before = method.target.universal.bank.z.clone()
    method.loss(make_net(torch.float32), make_batch(1, torch.float32))
    after = method.target.universal.bank.z
    assert torch.equal(after[[2, 4]], before[[2, 4]])
    for c in (0, 1, 3):
        assert not torch.equal(after[c], before[c])
    assert after.abs().max() <= 4 / 255


def test_what_the_log_says_of_the_inverse_examples():
    method = methods.create("uiat", num_classes=K, num_samples=N, epochs=4, attack={"steps": 1})
    net, batch = make_net(torch.float32), make_batch(1, torch.float32)
    bank = method.target.universal.bank
    for _ in range(2):
        before = bank.z.clone()
        x_inv = batch.x + before[batch.y]
        twin = make_net(torch.float32)
        twin.load_state_dict(net.state_dict())
        logits = twin.train()(x_inv.clamp(0, 1)).tolist()
        metrics = method.loss(net.train(), batch).metrics
        changed = [
            sum(map(_sign_differs, before[c].flatten().tolist(), bank.z[c].flatten().tolist()))
            for c in (0, 1, 3)
        ]
        assert metrics["z_flipped"].item() == pytest.approx(sum(changed) / (3 * before[0].numel()))
        assert 0 < metrics["z_flipped"] < 1
        margins = [
            row[c] - max(v for k, v in enumerate(row) if k != c)
            for row, c in zip(logits, batch.y.tolist(), strict=True)
        ]
        assert metrics["target_margin"].item() == pytest.approx(sum(margins) / B, rel=1e-3)


def _sign_differs(a, b):
    return int(((a > 0) - (a < 0)) != ((b > 0) - (b < 0)))
