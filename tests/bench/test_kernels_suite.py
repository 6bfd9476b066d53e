"""The kernel bench iterates the specs and counts their bytes."""

from __future__ import annotations

import pytest
import torch

from fastuiat.bench import calls, suites
from fastuiat.bench.suites import kernels as suite
from fastuiat.bench.timing import Plan
from fastuiat.config import UserError
from fastuiat_kernels import SIZES, SPECS

CPU = torch.device("cpu")


def test_every_variant_of_every_operation_is_a_case():
    cases = suite.cases((), ("cifar10",), every_dtype=False)
    assert len(cases) == sum(len(spec.variants) for spec in SPECS)
    assert {c.spec.name for c in cases} == {spec.name for spec in SPECS}
    assert len({c.name for c in cases}) == len(cases)
    every = suite.cases((), ("cifar10", "cifar100"), every_dtype=True)
    assert len(every) == 2 * sum(len(v.dtypes) for spec in SPECS for v in spec.variants)
    with pytest.raises(UserError, match="unknown kernel 'nope'"):
        suite.cases(("nope",), ("cifar10",), every_dtype=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sign_step", "bank_step"])
def test_eager_and_inductor_rows(name, capsys):
    case = suite.cases((name,), ("small",), every_dtype=False)[0]
    plan = Plan(rounds=2, min_sample_s=1e-4)
    eager, inductor = suite.measure(case, CPU, plan=plan, bandwidth=1e9)
    assert (eager["provider"], inductor["provider"]) == ("eager", "inductor")
    for r in (eager, inductor):
        assert r["error"] is None
        assert r["bytes_per_s"] == pytest.approx(r["bytes_moved"] / r["median_s"])
        assert r["copy_share"] == pytest.approx(r["bytes_per_s"] / 1e9)
        assert r["timed"] == "calls" and r["call_s"] == r["median_s"] and not r["replay_error"]
    assert eager["ratio_median"] == 1.0
    suites.get("kernels").show([eager, inductor])
    assert "Python" not in capsys.readouterr().out


def test_a_loss_is_timed_with_its_gradients():
    one, both = suite.cases(("distill_loss",), ("small",), every_dtype=False)
    inputs = one.inputs(CPU)
    assert one.variant.gradients == ("logits",)
    grad, target_grad = suite.with_gradients(one.variant.reference, both.variant.gradients)(
        **inputs
    )
    q, p = torch.softmax(inputs["logits"].double(), dim=1), inputs["target_probs"].double()
    own = torch.nn.functional.one_hot(inputs["y"], q.shape[1])
    by_hand = (q - own + inputs["lam"] * (q - p)) / len(q)
    assert torch.allclose(grad.double(), by_hand, atol=1e-6)
    by_hand = inputs["lam"] * (p.log() + 1 - q.log()) / len(q)
    assert torch.allclose(target_grad.double(), by_hand, atol=1e-5)
    (step,) = suite.cases(("sign_step",), ("small",), every_dtype=False)[:1]
    assert not step.variant.gradients


def test_bytes_of_a_sign_step_by_hand():
    """x, x' and g read, the result written: four fp32 values for each element."""
    case = suite.cases(("sign_step",), ("cifar10",), every_dtype=False)[0]
    moved = case.variant.bytes_moved(case.inputs(CPU))
    assert moved == 4 * 4 * 128 * 3 * 32 * 32


def test_inputs_go_around_beyond_the_cache(monkeypatch):
    case = suite.cases(("sign_step",), ("small",), every_dtype=False)[0]
    moved = case.variant.bytes_moved(case.inputs(CPU))

    def input_pool():
        return calls.input_pool(lambda: case.inputs(CPU), moved, CPU)

    monkeypatch.setattr(calls, "cache_bytes", lambda device: 5 * moved)
    pool = input_pool()
    assert len(pool) == 10
    assert len({inputs["grad"].data_ptr() for inputs in pool}) == 10
    monkeypatch.setattr(calls, "cache_bytes", lambda device: 1)
    assert len(input_pool()) == 1
    monkeypatch.setattr(calls, "cache_bytes", lambda device: 1 << 40)
    monkeypatch.setattr(calls, "POOL_BYTES", 2 * 4 * 3 * SIZES["small"].batch * 768)
    assert len(input_pool()) == 2


def test_cache_size_is_read_from_the_system():
    assert 1 << 18 <= calls.cache_bytes(CPU) <= 1 << 31
