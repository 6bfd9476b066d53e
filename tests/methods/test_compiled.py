"""Methods with their own regions compile whole, once per shape and phase, and agree with eager.

By AOT's eager backend: what is tested is that the regions can be captured, GradAlign's double
backward included, and mean the same. Inductor's own rounding flips single signs of attack steps.
"""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch

from fastuiat.bench.workload import Case, make_loader, make_step
from fastuiat.fast import regions
from fastuiat.fast.view import TrainingView

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in ("gradalign+uiat", "hat", "iat", "rebuffi", "mart")),
        *(
            (name, {"inverse_forward": reading})
            for name in ("uiat", "uiat-oneoff")
            for reading in ("eval", "train", "attached")
        ),
        *((name, {"inverse_forward": "attached"}) for name in ("gradalign+uiat", "iat")),
    ],
)
def test_compiled_agrees_with_eager(name, settings, create, make_net, make_batch, monkeypatch):
    monkeypatch.setattr(regions, "BACKEND", "aot_eager")
    torch._dynamo.reset()

    def view_of(net: torch.nn.Module) -> TrainingView:
        return TrainingView(net, device=torch.device("cpu"), precision="fp32", compiled=True)

    net, twin = make_net(torch.float32), make_net(torch.float32)
    method = create(name, attack={"eps": "8/255"}, epochs=4, **settings)
    compiled = copy.deepcopy(method)
    compiled.helpers = {role: view_of(helper) for role, helper in method.helpers.items()}
    view = view_of(twin)
    for epoch in (1, 2, 3, 4):  # the phases of the one-off target, P filled and then mixed with
        batch = make_batch(torch.float32, epoch)
        expected, out = method.loss(net, batch), compiled.loss(view, batch)
        assert out.loss.item() == pytest.approx(expected.loss.item(), rel=1e-5)
        grads = torch.autograd.grad(expected.loss, list(net.parameters()))
        compiled_grads = torch.autograd.grad(out.loss, list(twin.parameters()))
        for got, want in zip(compiled_grads, grads, strict=True):
            assert (got - want).norm() <= 1e-4 * want.norm() + 1e-7
        for got, want in zip(twin.buffers(), net.buffers(), strict=True):
            assert torch.allclose(got, want, rtol=1e-5)
    # Another batch of the same shape compiles nothing.
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled.loss(view, make_batch(torch.float32, 4)).loss.backward()


def test_gradalign_compiles_in_half_precision():
    """By Inductor itself: its C++ for this double backward once did not compile."""
    torch._dynamo.reset()
    case = Case(arch="wrn-10-1", batch_size=16, method="gradalign")
    step = make_step(case, torch.device("cpu"), precision="bf16", compiled=True)
    batches = make_loader(case, torch.device("cpu")).epoch(1)
    losses = [step(batch).loss.item() for batch in itertools.islice(batches, 2)]
    assert len(losses) == 2 and all(map(math.isfinite, losses))
