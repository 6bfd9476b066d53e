"""Seeds and scales against the formulas they stand for, and where they are used."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastuiat.gradients import (
    cross_entropy_seed,
    gradient_through,
    input_gradient,
    kl_seed,
    power_of_two_scale,
)
from fastuiat.losses import attack_cross_entropy, attack_kl


def some_logits(spread: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(3)
    logits = torch.randn(7, 5, generator=g, dtype=torch.float64) * spread
    probs = torch.softmax(torch.randn(7, 5, generator=g, dtype=torch.float64), dim=1)
    return logits, torch.arange(7) % 5, probs


def gradient_of(loss, logits, y, probs):
    logits = logits.clone().requires_grad_()
    (grad,) = torch.autograd.grad(loss(logits, y, probs), logits)
    return grad


@pytest.mark.parametrize(
    "seed, loss", [(cross_entropy_seed, attack_cross_entropy), (kl_seed, attack_kl)]
)
def test_seeds_are_the_gradient_over_its_largest_entry(seed, loss):
    logits, y, probs = some_logits(3.0)
    grad = gradient_of(loss, logits, y, probs)
    wanted = grad / grad.abs().amax(dim=1, keepdim=True)
    torch.testing.assert_close(seed(logits, y, probs), wanted, rtol=1e-9, atol=1e-12)


def test_a_confident_sample_keeps_its_gradient():
    """Where fp32 has p_y = 1 and the other probabilities 0, their proportions are still there."""
    logits = torch.tensor([[300.0, 2.0, 1.0, 0.0]])
    seed = cross_entropy_seed(logits, torch.tensor([0]), None)
    assert (gradient_of(attack_cross_entropy, logits, torch.tensor([0]), None) == 0).all()
    torch.testing.assert_close(seed[0, 1:], torch.softmax(logits[0, 1:], dim=0))
    assert seed[0, 0] == -1


def test_a_point_with_no_kl_gradient_gives_zeros():
    probs = torch.tensor([[0.25, 0.25, 0.25, 0.25]])
    assert torch.equal(kl_seed(torch.zeros(1, 4), torch.tensor([0]), probs), torch.zeros(1, 4))


@pytest.mark.parametrize("size", [1e-44, 1e-37, 3e-5, 0.5, 1.0, 1.999, 2.0, 1e9, 1e38])
def test_the_scale_is_the_power_of_two_that_brings_the_largest_to_one(size):
    seeds = [torch.tensor([0.1 * size, -size]), torch.zeros(3)]
    scale = power_of_two_scale(seeds)
    assert torch.frexp(scale).mantissa == 0.5
    if size > 1e-37:
        assert 1 <= scale * torch.tensor(size) < 2


def test_the_scale_of_nothing_is_finite():
    assert power_of_two_scale([torch.zeros(2)]).isfinite()


def half_pair(dtype):
    """A net in half precision, and the same weights in fp64."""
    torch.manual_seed(1)
    small = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).to(dtype)
    large = nn.Sequential(nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 4)).double()
    large.load_state_dict(small.state_dict())
    return small, large


@pytest.mark.parametrize("dtype, error", [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_a_scaled_gradient_is_the_gradient(dtype, error):
    small, large = half_pair(dtype)
    x = torch.rand(6, 3, 2, 2)
    y = torch.arange(6) % 4

    def loss(logits):
        return 1e-7 * F.cross_entropy(logits, y, reduction="sum")  # fp16 has no 1e-7

    def gradient(net, x, cast):
        x = x.clone().requires_grad_()
        return gradient_through((net(x.to(cast)),), loss, x)

    got, wanted = gradient(small, x, dtype), gradient(large, x.double(), torch.float64)
    assert (got != 0).float().mean() > 0.99
    assert (got.double() - wanted).norm() < error * wanted.norm()


def test_seeds_are_for_half_precision_and_signs_only():
    """Elsewhere the gradient is autograd's of the loss, to the bit."""
    _, large = half_pair(torch.bfloat16)
    net = large.float()
    x, y = torch.rand(6, 3, 2, 2), torch.arange(6) % 4
    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(attack_cross_entropy(net(leaf), y, None), leaf)
    for sign_per_sample in (False, True):
        got = input_gradient(net, x, y, None, attack_cross_entropy, sign_per_sample)
        assert torch.equal(got, wanted)
    half = net.bfloat16()
    signed = input_gradient(half, x.bfloat16(), y, None, attack_cross_entropy, True)
    true = input_gradient(half, x.bfloat16(), y, None, attack_cross_entropy, False)
    factor = signed.flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)
    p_wrong = 1 - torch.softmax(half(x.bfloat16()).float(), dim=1).gather(1, y[:, None])[:, 0]
    torch.testing.assert_close(factor.float(), 1 / p_wrong, rtol=0.05, atol=0)
