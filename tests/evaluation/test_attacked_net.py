"""The net as attacks meet it: the package's own losses, gradients and projection, only faster."""

from __future__ import annotations

import importlib
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastuiat.evaluation import attacked_net
from fastuiat.evaluation.attacked_net import AttackedNet, compiler_settings
from fastuiat.evaluation.package import make_adversary, package
from fastuiat.evaluation.projection import projection_linf
from fastuiat.fast import torch_internals
from fastuiat.models import build_model

pytestmark = pytest.mark.slow


def images(n: int) -> torch.Tensor:
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(n))


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    net = build_model("wrn-10-1").eval()
    nn.init.normal_(net.fc.weight)
    return net


@pytest.fixture(scope="module")
def compiled(plain):
    net = AttackedNet(plain)
    with compiler_settings():
        assert net.compile(images(64), ["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "fab"]) is None
        yield net


def close(ours, theirs):
    """Equal to rounding; a ReLU at its kink may fall to one side or the other in a few pixels."""
    off = (ours - theirs).abs() > 1e-4 * theirs.abs().max()
    assert off.float().mean() < 1e-3


# 64 is the width of a layer; 17 is just enough for graphs, 5 is not.
@pytest.mark.parametrize("n", [64, 37, 17, 5])
@pytest.mark.parametrize("faster", [False, True])
def test_losses_and_gradients_are_the_packages(plain, compiled, n, faster):
    net = compiled if faster else AttackedNet(plain)
    adversary = make_adversary(plain, eps=0.03, version="plus", seed=0, device=torch.device("cpu"))
    x = images(n)
    with torch.no_grad():
        order = plain(x).argsort(dim=1)
    # Right, wrong and all the targets that an attack goes through.
    y = torch.where(torch.arange(n) % 3 == 0, order[:, -2], order[:, -1])
    for rank in (-3, -9):
        target = order[:, rank]
        adversary.apgd_targeted.y_target = target
        leaf = x.clone().requires_grad_()
        logits = plain(leaf)
        cases = [
            (F.cross_entropy(logits, y, reduction="none"), net.get_logits_loss_grad_xent(x, y)),
            (adversary.apgd.dlr_loss(logits, y), net.get_logits_loss_grad_dlr(x, y)),
            (
                adversary.apgd_targeted.dlr_loss_targeted(logits, y),
                net.get_logits_loss_grad_target(x, y, target),
            ),
        ]
        for loss, (its_logits, its_loss, its_gradient) in cases:
            (gradient,) = torch.autograd.grad(loss.sum(), leaf, retain_graph=True)
            close(its_logits, logits.detach())
            close(its_loss, loss.detach())
            close(its_gradient, gradient)
            assert its_gradient.is_contiguous() and not its_loss.requires_grad
        theirs = adversary.fab.get_diff_logits_grads_batch_targeted(x, y, target)
        ours = net.get_diff_logits_grads_batch_targeted(x, y, target)
        for mine, its in zip(ours, theirs, strict=True):
            assert mine.shape == its.shape
            close(mine, its)


def test_fab_has_its_linear_model_for_few_classes():
    """Targeted DLR wants four classes, z_t − z_y two."""
    for classes in (2, 3):
        torch.manual_seed(classes)
        net = AttackedNet(build_model("wrn-10-1", classes).eval())
        x, y = images(20), torch.arange(20) % classes
        target = (y + 1) % classes
        with compiler_settings(), torch.no_grad():
            plain = net.get_diff_logits_grads_batch_targeted(x, y, target)
            assert net.compile(x, ["fab-t"]) is None
            ours = net.get_diff_logits_grads_batch_targeted(x, y, target)
            assert net.compiled
        for mine, its in zip(ours, plain, strict=True):
            close(mine, its)


def test_a_graph_with_another_gradient_is_not_used(monkeypatch):
    """It would be a weak attack, and the net would look robust."""
    real = attacked_net.compile_alone

    def wrong(function, **options):
        graph = real(function, **options)

        def run(*arguments):
            made = graph(*arguments)
            return (*made[:2], -made[2]) if isinstance(made, tuple) else made

        return run

    monkeypatch.setattr(attacked_net, "compile_alone", wrong)
    net = AttackedNet(build_model("wrn-10-1").eval())
    with compiler_settings():
        assert "other logits or gradients" in str(net.compile(images(20), ["fab-t"]))
    assert not net.compiled


def test_a_graph_is_checked_at_each_size(plain, monkeypatch):
    """Another size may get another graph, in the midst of an attack."""
    real = attacked_net.compile_alone

    def wrong(function, **options):
        graph = real(function, **options)

        def run(x, *arguments):
            made = graph(x, *arguments)
            return (*made[:2], -made[2]) if isinstance(made, tuple) and len(x) != 20 else made

        return run

    monkeypatch.setattr(attacked_net, "compile_alone", wrong)
    net = AttackedNet(plain)
    with compiler_settings(), torch.no_grad():
        assert net.compile(images(20), ["apgd-t"]) is None
        x = images(24)
        y, target = plain(x).argmax(dim=1), plain(x).argmin(dim=1)
        ours = net.get_logits_loss_grad_target(x, y, target)
        theirs = AttackedNet(plain).get_logits_loss_grad_target(x, y, target)
    assert not net.compiled and "other logits or gradients" in str(net.failure)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_an_answer_is_the_graph_s_from_the_first_time_on(plain, monkeypatch):
    """Not that of the plain net which it is compared with: or it would hang on what was before."""

    def inexact(function, **options):
        return lambda x, *arguments: function(x * (1 + 1e-6), *arguments)

    monkeypatch.setattr(attacked_net, "compile_alone", inexact)
    net = AttackedNet(plain)
    net.compiled = True
    with torch.no_grad():
        first, second = net(images(20)), net(images(20))
    assert net.compiled and torch.equal(first, second)
    assert not torch.equal(first, plain(images(20)))


def test_a_graph_that_fails_on_the_way_leaves_the_plain_net(plain, monkeypatch):
    """As past the limit of recompilations."""

    def brittle(function, **options):
        def run(x, *arguments):
            if x.shape[0] == 21:
                raise RuntimeError("no more graphs")
            return function(x, *arguments)

        return run

    monkeypatch.setattr(attacked_net, "compile_alone", brittle)
    net = AttackedNet(plain)
    assert net.compile(images(20), ["apgd-ce"]) is None and net.compiled
    with torch.no_grad():
        assert torch.equal(net(images(21)), plain(images(21)))
    assert net.failure == "not compiled: no more graphs" and not net.compiled


def test_one_forward_serves_several_backwards(plain, compiled):
    """FAB without targets takes the gradient of each logit in turn."""
    x = images(20).requires_grad_()
    logits, its_logits = plain(x), compiled(x)
    for k in (0, 7):
        (gradient,) = torch.autograd.grad(logits[:, k].sum(), x, retain_graph=True)
        (its_gradient,) = torch.autograd.grad(its_logits[:, k].sum(), x, retain_graph=True)
        close(its_gradient, gradient)


def hard_planes(scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points at the box's faces, weights of 0, ties, planes through the point and out of reach."""
    g = torch.Generator().manual_seed(3)
    t = torch.rand(61, 211, generator=g)
    t[:, ::5] = t[:, ::5].round()
    t[:, 1::10] = 0.25
    w = torch.randn(61, 211, generator=g) * torch.rand(61, 211, generator=g) ** 3
    w[:, ::7] = 0.0
    w[0] = 0.0
    b = (w * t).sum(1) + scale * torch.randn(61, generator=g)
    b[1] = (w[1] * t[1]).sum()
    return t, w, b


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 1.0, 100.0])
def test_projection_is_the_packages(scale):
    name = package()[0].__module__.split(".")[0]
    theirs = importlib.import_module(f"{name}.fab_projections").projection_linf
    t, w, b = hard_planes(scale)
    step = projection_linf(t, w, b)
    # Its cumulative sums round by a few 1e-7 of their length.
    torch.testing.assert_close(step, theirs(t, w, b), rtol=1e-5, atol=2e-6)
    arrived = t + step
    assert arrived.min() >= -1e-6 and arrived.max() <= 1 + 1e-6
    assert (step[w == 0] == 0).all()


@pytest.mark.parametrize("scale", [1e-2, 1.0, 100.0])
def test_projection_reaches_the_plane_or_the_corner(scale):
    t, w, b = (v.double() for v in hard_planes(scale))
    step = projection_linf(t, w, b)
    gap = b - (w * t).sum(1)
    corner = torch.where((w > 0) == (gap > 0)[:, None], 1 - t, -t) * (w != 0)
    furthest = (w * corner).sum(1)
    within = gap.abs() < furthest.abs()
    assert within.any() and (scale < 100 or (~within).any())
    torch.testing.assert_close((w * step).sum(1)[within], gap[within], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(step[~within], corner[~within])
    # The smallest: whatever has room for the largest step takes it.
    largest = step.abs().amax(dim=1, keepdim=True)
    free = (corner.abs() > largest) & (w != 0)
    torch.testing.assert_close(step.abs()[free], largest.expand_as(step)[free])


OPTIONS = {
    "_inductor": ["freezing"],
    "_functorch": ["donated_buffer"],
    "_dynamo": ["trace_autograd_ops", "prepare_freezing"],
}


def compiler_options() -> dict[str, bool]:
    parts = {part: importlib.import_module(f"torch.{part}.config") for part in OPTIONS}
    return {f"{p}.{name}": getattr(parts[p], name) for p in OPTIONS for name in OPTIONS[p]}


def test_the_compiler_s_settings_are_put_back():
    before = compiler_options(), logging.getLogger("torch.utils.cpp_extension").level
    with pytest.raises(ZeroDivisionError), compiler_settings():
        assert compiler_options() == {
            "_inductor.freezing": True,
            "_functorch.donated_buffer": False,
            "_dynamo.trace_autograd_ops": True,
            "_dynamo.prepare_freezing": True,
        }
        raise ZeroDivisionError
    AttackedNet(build_model("wrn-10-1"))
    assert before == (compiler_options(), logging.getLogger("torch.utils.cpp_extension").level)


@pytest.mark.parametrize(("part", "option"), [(p, o) for p in OPTIONS for o in OPTIONS[p]])
def test_without_an_option_the_verdicts_stay(monkeypatch, caplog, part, option):
    """Compiled without it, or not compiled, which is said; never dead."""
    torch_internals.say_once.cache_clear()
    real = importlib.import_module(f"torch.{part}.config")

    class Without:
        """The real settings but one."""

        def __getattr__(self, name):
            if name == option:
                raise AttributeError(name)
            return getattr(real, name)

        def __setattr__(self, name, value):
            setattr(real, name, value)

    imported = importlib.import_module
    monkeypatch.setattr(
        torch_internals.importlib,
        "import_module",
        lambda name, *more: Without() if name == f"torch.{part}.config" else imported(name, *more),
    )
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.Flatten(), nn.Linear(64, 10))
    net = AttackedNet(plain)
    x, y = images(20), torch.arange(20) % 10
    with compiler_settings():
        failure = net.compile(x, ["apgd-ce"])
        ours = net.get_logits_loss_grad_xent(x, y)
    theirs = AttackedNet(plain).get_logits_loss_grad_xent(x, y)
    for mine, its in zip(ours, theirs, strict=True):
        close(mine, its)
    assert (failure is None) == net.compiled
    said = [r.message for r in caplog.records if r.name == torch_internals.__name__]
    gone = f"this PyTorch ({torch.__version__}) has no torch.{part}.config.{option}"
    assert said == [f"{gone}: compiling goes on without it"]
