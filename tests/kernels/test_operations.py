"""The public operations on the CPU, and what can be said of their GPU path without a GPU."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._functorch.aot_autograd import aot_function, make_boxed_func
from torch._higher_order_ops.triton_kernel_wrap import triton_kernel_wrapper_functional
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastuiat_kernels import (
    SIZES,
    SPECS,
    Size,
    augment,
    bank_accumulate,
    bank_apply,
    bank_step,
    bank_update,
    distill_loss,
    memory_update,
    noise_key,
    random_start,
    sign_step,
)

sys.path.insert(0, str(Path(__file__).parent))
import by_the_book

CPU = torch.device("cpu")
VARIANTS = {variant.name: variant for spec in SPECS for variant in spec.variants}
SMALL = Size(6, 3, 5, 7, 4, 19)
NAN, INF = float("nan"), float("inf")


def copies(inputs):
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


def arrays(inputs):
    return {k: v.numpy().copy() if hasattr(v, "numpy") else v for k, v in inputs.items()}


# --- against NumPy ---


def test_sign_step_against_numpy():
    inputs = VARIANTS["sign_step"].inputs(SMALL, torch.float32, CPU)
    inputs["grad"][0, 0, 0, :4] = torch.tensor([0.0, -0.0, NAN, INF])
    assert (sign_step(**inputs).numpy() == by_the_book.sign_step(**arrays(inputs))).all()


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_random_start_against_numpy(kind):
    x = torch.rand(2, 3, 3, 5).to(memory_format=torch.channels_last)
    index, key = torch.tensor([7, 2**35]), noise_key(1, 2, 3, "attack")
    out = random_start(x, index, key, eps=0.1, kind=kind)
    noise = by_the_book.noise(x.shape, index, key.tolist(), kind)
    expected = by_the_book.clip(x.numpy() + np.float32(0.1) * noise.astype(np.float32), 0, 1)
    np.testing.assert_allclose(out.numpy(), expected, rtol=0, atol=2**-23)


def test_augment_against_numpy():
    inputs = VARIANTS["augment"].inputs(SMALL, torch.uint8, CPU)
    assert (augment(**inputs).numpy() == by_the_book.augment(*arrays(inputs).values())).all()


def test_bank_against_numpy():
    inputs = VARIANTS["bank_step"].inputs(SMALL, torch.float32, CPU)
    inputs["y"][:] = torch.tensor([3, 0, 3, 3, 1, 0])
    expected = by_the_book.bank_step(**arrays(inputs))
    z = inputs["z"].clone()
    sums, present = bank_accumulate(inputs["grad"], inputs["y"], 4)
    assert bank_update(z, sums, present, alpha=inputs["alpha"], eps=inputs["eps"]) is z
    assert bank_step(**inputs) is inputs["z"]
    assert (z.numpy() == expected).all() and (inputs["z"].numpy() == expected).all()
    applied = bank_apply(inputs["grad"], z, inputs["y"], lo=-1, hi=1)
    book = by_the_book.bank_apply(inputs["grad"].numpy(), z.numpy(), inputs["y"].numpy(), -1, 1)
    assert (applied.numpy() == book).all()


def test_distill_loss_against_numpy():
    inputs = VARIANTS["distill_loss"].inputs(SMALL, torch.float32, CPU)
    inputs["target_probs"][0] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    loss, grad, target_grad = by_the_book.distill_loss(*arrays(inputs).values())
    logits, p = (inputs[name].requires_grad_() for name in ("logits", "target_probs"))
    out = distill_loss(**inputs)
    out.backward()
    assert abs(out.item() - loss) < 1e-6 * abs(loss)
    np.testing.assert_allclose(logits.grad.numpy(), grad, atol=1e-7)
    np.testing.assert_allclose(p.grad.numpy(), target_grad, rtol=1e-5)


def test_memory_update_against_numpy():
    inputs = VARIANTS["memory_update"].inputs(SMALL, torch.float16, CPU)
    out, memory, seen = by_the_book.memory_update(*arrays(inputs).values())
    assert (memory_update(**inputs).numpy() == out).all()
    assert (inputs["memory"].numpy() == memory).all() and (inputs["seen"].numpy() == seen).all()


# --- properties ---


@given(st.integers(0, 2**31), st.floats(0, 0.5, width=32), st.floats(0, 0.5, width=32))
@settings(max_examples=50, deadline=None)
def test_sign_step_properties(seed, alpha, eps):
    random = torch.Generator().manual_seed(seed)
    x = torch.rand(2, 3, 4, 5, generator=random)
    start = (x + eps * (2 * torch.rand(x.shape, generator=random) - 1)).clamp(0, 1)
    start = start.clamp(x - eps, x + eps)
    grad = torch.randn(x.shape, generator=random)
    up = sign_step(x, start, grad, alpha=alpha, eps=eps)
    assert ((up >= x - eps) & (up <= x + eps) & (up >= 0) & (up <= 1)).all()
    assert torch.equal(sign_step(x, start, 0 * grad, alpha=alpha, eps=eps), start)
    assert torch.equal(sign_step(x, start, -grad, alpha=alpha, eps=eps, ascend=False), up)


@given(st.integers(0, 2**31), st.floats(2**-20, 0.5, width=32))
@settings(max_examples=25, deadline=None)
def test_random_start_stays_in_ball_and_box_and_knows_no_batch(seed, eps):
    x = torch.rand(4, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    index, key = torch.randint(2**40, (4,)), noise_key(seed)
    out = random_start(x, index, key, eps=eps)
    # Rounding of the sum may leave the ball by half an ulp of 1.
    assert ((out - x).abs() <= eps + 2**-24).all() and (out >= 0).all() and (out <= 1).all()
    last = x.to(memory_format=torch.channels_last)
    assert torch.equal(random_start(last, index, key, eps=eps), out)
    assert torch.equal(random_start(x[2:3], index[2:3], key, eps=eps), out[2:3])


@given(st.integers(0, 2**31), st.integers(2, 30), st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_bank_step_properties(seed, classes, batch):
    random = torch.Generator().manual_seed(seed)
    eps = 4 / 255
    z = (eps * (2 * torch.rand(classes, 2, 3, 3, generator=random) - 1)).clamp(-eps, eps)
    grad = torch.randn(batch, 2, 3, 3, generator=random)
    y = torch.randint(classes, (batch,), generator=random)
    out = bank_step(z.clone(), grad, y, alpha=eps, eps=eps)
    absent = torch.tensor([c not in y for c in range(classes)])
    assert torch.equal(out[absent], z[absent])
    assert (out.abs() <= torch.tensor(eps)).all()
    assert torch.equal(bank_step(z.clone(), 0 * grad, y, alpha=eps, eps=eps), z)
    mirrored = bank_step(-z.clone(), -grad, y, alpha=eps, eps=eps)
    assert torch.equal(mirrored, -out)


def test_counts_are_added_up():
    x = torch.zeros(1, 1, 2, 3)
    grad = torch.tensor([0.0, -0.0, NAN, INF, -INF, 2.0]).reshape(x.shape)
    counts = torch.tensor([10, 20])
    sign_step(x, x, grad, alpha=0.1, eps=1, counts=counts)
    assert counts.tolist() == [12, 23]
    compiled = torch.compile(sign_step, fullgraph=True)
    compiled(x, x, grad, alpha=0.1, eps=1, counts=counts)
    assert counts.tolist() == [14, 26]


# --- devices and dtypes ---


@pytest.mark.parametrize("name", VARIANTS)
def test_meta_tensors(name):
    variant = VARIANTS[name]
    inputs = variant.inputs(SMALL, variant.dtypes[0], CPU)
    expected = variant.op(**copies(inputs))
    on_meta = {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    out = variant.op(**on_meta)
    for a, b in zip(
        out if isinstance(out, tuple) else (out,),
        expected if isinstance(expected, tuple) else (expected,),
        strict=True,
    ):
        assert a.device.type == "meta" and a.shape == b.shape and a.dtype == b.dtype


@pytest.mark.parametrize("name", [n for n in VARIANTS if n != "augment"])
def test_double_precision(name):
    variant = VARIANTS[name]
    single = variant.inputs(SMALL, torch.float32, CPU)
    double = {
        k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in copies(single).items()
    }
    out, expected = variant.op(**double), variant.op(**single)
    if isinstance(out, tuple):
        out, expected = out[0], expected[0]
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, expected.double(), rtol=1e-5, atol=1e-6)


def test_deterministic_algorithms():
    torch.use_deterministic_algorithms(True)
    try:
        for variant in VARIANTS.values():
            inputs = variant.inputs(SMALL, variant.dtypes[0], CPU)
            first, second = variant.op(**copies(inputs)), variant.op(**copies(inputs))
            torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)
    finally:
        torch.use_deterministic_algorithms(False)


# --- the registered operators ---


SEEN_ALREADY = (
    "random_start, normal, contiguous",
    "conv3x3, alone",
    "conv3x3, split",
    "conv3x3",
    "strided3x3_backward",
    "conv3x3_sign_step",
)
"""Each of whose arguments another variant of the same operator has as well."""


def operator_calls():
    """Each registered operator with the arguments of its sample input."""
    for variant in VARIANTS.values():
        if variant.name in SEEN_ALREADY:
            continue
        inputs = variant.inputs(SMALL, variant.dtypes[0], CPU)
        name = variant.name.split(",")[0]
        name = "distill_rows" if name == "distill_loss" else name
        if name == "distill_rows":
            for asked in variant.gradients:
                inputs[asked].requires_grad_()
            inputs["with_target"] = "target_probs" in variant.gradients
        if name == "sign_step":
            inputs.setdefault("counts", None)
        yield pytest.param(getattr(torch.ops.fastuiat, name), inputs, id=variant.name)


@pytest.mark.parametrize(("operator", "inputs"), operator_calls())
def test_opcheck(operator, inputs):
    torch.library.opcheck(operator.default, (), inputs)


def test_distill_rows_gradient():
    """The registered backward is the reference's gradient."""
    inputs = VARIANTS["distill_loss"].inputs(SMALL, torch.float32, CPU)
    logits = inputs.pop("logits")
    ours, reference = (logits.clone().requires_grad_() for _ in range(2))
    inputs["target_probs"][0] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    probs = inputs.pop("target_probs")
    for with_target in (False, True):
        mine, theirs = (probs.clone().requires_grad_(with_target) for _ in range(2))
        ours.grad = reference.grad = None
        rows, *_ = torch.ops.fastuiat.distill_rows(ours, mine, **inputs, with_target=with_target)
        (3 * rows.mean()).backward()
        (3 * distill_loss(reference, theirs, **inputs)).backward()
        torch.testing.assert_close(ours.grad, reference.grad, rtol=1e-5, atol=1e-7)
        assert (mine.grad is not None) == with_target
        if with_target:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-7)


class Operators(TorchDispatchMode):
    """Counts what would launch a kernel: everything but views, allocations and questions."""

    FREE = ("empty", "empty_like", "new_empty", "new_empty_strided", "empty_strided", "detach")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and func.overloadpacket.__name__ not in self.FREE:
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", VARIANTS)
def test_launches_replaced(name):
    """`replaces` counts the eager reference's operators, its backward included."""
    variant = VARIANTS[name]
    inputs = variant.inputs(SMALL, variant.dtypes[0], CPU)
    for asked in variant.gradients:
        inputs[asked].requires_grad_()
    with Operators() as operators:
        out = variant.reference(**inputs)
        if variant.gradients:
            out.backward()
    assert operators.count == variant.replaces


@pytest.mark.parametrize("name", VARIANTS)
def test_readme_tells_the_same(name):
    text = (Path(__file__).parents[2] / "kernels" / "README.md").read_text()
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| `")]
    (row,) = [row for row in rows if row[0].strip() == f"`{name.split(',')[0]}`"]
    assert re.search(rf"\b{VARIANTS[name].launches}\b", row[-2])
    assert re.search(rf"\b{VARIANTS[name].replaces}\b", row[-1])


# --- the GPU path, traced without a GPU ---


@pytest.fixture
def pretended_driver(monkeypatch):
    """A driver that knows its target: enough for PyTorch to analyse what a kernel writes."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import driver

    class Pretended:
        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self):
            return 0

    monkeypatch.setattr(driver, "_active", Pretended())


WRITTEN = {
    "sign_step": {"out_ptr"},
    "sign_step, counted": {"out_ptr", "counts_ptr"},
    "augment": {"out_ptr"},
    "bank_apply": {"out_ptr"},
    "bank_step": {"order_ptr", "starts_ptr", "z_ptr"},
    "bank_accumulate": {"order_ptr", "starts_ptr", "sums_ptr", "present_ptr"},
    "bank_update": {"z_ptr"},
    "distill_loss": {"losses_ptr", "grad_ptr"},
    "distill_loss, both sides": {"losses_ptr", "grad_ptr", "target_grad_ptr"},
    "memory_update": {"memory_ptr", "seen_ptr", "out_ptr"},
}


def graph_on_a_gpu(op, inputs):
    """What is traced of a call on CUDA tensors."""
    graphs = []

    def keep(graph_module, _):
        graphs.append(graph_module.graph)
        return make_boxed_func(graph_module.forward)

    with FakeTensorMode():
        fakes = {
            k: torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device="cuda")
            for k, v in inputs.items()
            if isinstance(v, torch.Tensor)
        }
        aot_function(lambda **tensors: op(**(inputs | tensors)), keep)(**fakes)
    (graph,) = graphs
    return graph


@pytest.mark.parametrize("name", [n for n in VARIANTS if not VARIANTS[n].by_tiles])
def test_cuda_tensors_take_the_kernel(name, pretended_driver):
    """On CUDA tensors a graph holds the launches, no fallback, and the right writes."""
    variant = VARIANTS[name]
    op = variant.op
    if len(variant.gradients) > 1:  # as it calls its operator: no backward runs on this device
        op = functools.partial(torch.ops.fastuiat.distill_rows, with_target=True)
    graph = graph_on_a_gpu(op, variant.inputs(SMALL, variant.dtypes[0], CPU))
    launches = [n for n in graph.nodes if n.target is triton_kernel_wrapper_functional]
    assert len(launches) == variant.launches
    written = {p for node in launches for p in node.kwargs["tensors_to_clone"]}
    assert written == WRITTEN.get(name, {"out_ptr"})


@pytest.mark.parametrize("name", [n for n in VARIANTS if VARIANTS[n].by_tiles])
def test_what_reads_by_tiles_is_one_operator_of_a_graph(name):
    """It chooses its way when it runs: a graph holds nothing of it but the call."""
    variant = VARIANTS[name]
    graph = graph_on_a_gpu(variant.op, variant.inputs(SMALL, variant.dtypes[0], CPU))
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    # One that may write into its inputs is the first argument of what makes it a function.
    called = [
        str(node.args[0] if "auto_functionalized" in str(node.target) else node.target)
        for node in nodes
    ]
    assert [c for c in called if "getitem" not in c] == [f"fastuiat.{name.split(',')[0]}.default"]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_operator_in_a_compiled_graph(name, monkeypatch):
    """The public function in one graph, by way of its operator as on a GPU."""
    for spec in SPECS:
        module = sys.modules[f"fastuiat_kernels.{spec.name}"]
        monkeypatch.setattr(module, "takes_kernel", lambda *tensors: True, raising=False)
    variant = VARIANTS[name]
    left = variant.inputs(SMALL, variant.dtypes[0], CPU)
    right = copies(left)
    for asked in variant.gradients:
        left[asked].requires_grad_()
        right[asked].requires_grad_()
    compiled = torch.compile(variant.op, fullgraph=True, dynamic=False, backend="aot_eager")
    out, expected = compiled(**left), variant.reference(**right)
    if variant.gradients:
        out.backward()
        expected.backward()
    for asked in variant.gradients:
        torch.testing.assert_close(left[asked].grad, right[asked].grad)
    torch.testing.assert_close(out, expected, equal_nan=True)
    for mutated in variant.mutates:
        assert torch.equal(left[mutated], right[mutated])


@pytest.mark.parametrize("name", ["sign_step", "bank_apply", "bank_step"])
def test_a_graph_with_other_strides_is_refused(name, pretended_driver, monkeypatch):
    """While Dynamo traces nobody asks for strides: the launch in the graph must."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    variant = VARIANTS[name]
    inputs = variant.inputs(SMALL, torch.float32, CPU)
    with FakeTensorMode():
        fakes = {
            k: torch.empty(v.shape, dtype=v.dtype, device="cuda")
            for k, v in inputs.items()
            if isinstance(v, torch.Tensor)
        }
        last = "x" if "x" in fakes else "grad"
        fakes[last] = fakes[last].to(memory_format=torch.channels_last)
        with pytest.raises(ValueError, match="has strides"):
            aot_function(lambda **t: variant.op(**(inputs | t)), lambda g, _: g)(**fakes)


# --- bad input ---

X = torch.rand(2, 3, 4, 4)
LAST = X.to(memory_format=torch.channels_last)
Y = torch.tensor([0, 1])
Z = torch.zeros(3, 3, 4, 4)
P = torch.full((2, 3), 1 / 3)
MEMORY, SEEN = torch.zeros(5, 3), torch.zeros(5, dtype=torch.bool)
BYTES = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
NO = torch.tensor([False, False])
STEP = {"alpha": 0.1, "eps": 0.1}
BAD = {
    "x_ref": lambda: sign_step(X.long(), X, X, **STEP),
    "grad has strides": lambda: sign_step(X, X, LAST, **STEP),
    "grad has shape": lambda: sign_step(X, X, X[:1], **STEP),
    "grad is on meta": lambda: sign_step(X, X, X.to("meta"), **STEP),
    "x_cur must be dense": lambda: sign_step(X[..., ::2], X[..., ::2], X[..., ::2], **STEP),
    "counts": lambda: sign_step(X, X, X, **STEP, counts=torch.zeros(2)),
    "x must be contiguous or channels-last": lambda: random_start(
        X[..., ::2], Y, noise_key(0), eps=0.1
    ),
    "index must be int64": lambda: random_start(X, Y.int(), noise_key(0), eps=0.1),
    "index must lie": lambda: random_start(X, Y - 1, noise_key(0), eps=0.1),
    "key": lambda: random_start(X, Y, torch.zeros(3, dtype=torch.int64), eps=0.1),
    "kind": lambda: random_start(X, Y, noise_key(0), eps=0.1, kind="cauchy"),
    "images_u8 must be uint8": lambda: augment(X, Y, Y, NO),
    "images_u8 must be contiguous": lambda: augment(BYTES.transpose(1, 2), Y, Y, NO),
    "shift_y": lambda: augment(BYTES, Y + 8, Y, NO),
    "shift_x": lambda: augment(BYTES, Y, Y - 1, NO),
    "flip": lambda: augment(BYTES, Y, Y, Y),
    "y must lie": lambda: bank_apply(X, Z, Y + 2),
    "z has strides": lambda: bank_apply(LAST, Z, Y),
    "z has shape": lambda: bank_apply(X, torch.zeros(3, 2, 4, 4), Y),
    "z must be dense": lambda: bank_apply(X, torch.zeros(3, 6, 4, 4)[:, ::2], Y),
    "y must lie in 0…1": lambda: bank_accumulate(X, Y + 1, 2),
    "grad has strides (48, 1, 12, 3), z": lambda: bank_step(Z, LAST, Y, **STEP),
    "sums has shape": lambda: bank_update(Z, X, NO, **STEP),
    "present": lambda: bank_update(Z, Z, Y, **STEP),
    "target_probs has shape": lambda: distill_loss(P, P[:1], Y, lam=1),
    "target_probs must be floating": lambda: distill_loss(P, P.long(), Y, lam=1),
    "logits must be contiguous": lambda: distill_loss(P.t(), P.t(), torch.zeros(3).long(), lam=1),
    "y must be int64 of shape (2,)": lambda: distill_loss(P, P, Y.float(), lam=1),
    "index must lie in 0…4": lambda: memory_update(MEMORY, SEEN, Y + 4, P, gamma=0.9),
    "index holds a sample twice": lambda: memory_update(MEMORY, SEEN, 0 * Y, P, gamma=0.9),
    "seen": lambda: memory_update(MEMORY, SEEN[1:], Y, P, gamma=0.9),
    "probs": lambda: memory_update(MEMORY, SEEN, Y, P[:, :2], gamma=0.9),
    "memory must be floating": lambda: memory_update(MEMORY.long(), SEEN, Y, P, gamma=0.9),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_names_the_argument(message):
    with pytest.raises(ValueError) as error:
        BAD[message]()
    assert message in str(error.value)


def test_layouts_of_one_channel_are_alike():
    """With one channel, channels-last and contiguous are one order whatever the strides say."""
    x = torch.rand(2, 1, 4, 4)
    last = torch.empty_strided(x.shape, (16, 1, 4, 1)).copy_(x)
    assert last.stride() != x.stride()
    assert torch.equal(sign_step(x, x, last, **STEP), sign_step(x, x, x, **STEP))


# --- without Triton ---


def test_import_and_cpu_path_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch, fastuiat_kernels as k\n"
        "for s in k.SPECS:\n"
        "    for v in s.variants:\n"
        "        v.op(**v.inputs(k.SIZES['small'], v.dtypes[0], torch.device('cpu')))\n"
        "assert 'fastuiat' not in sys.modules\n"
        "from fastuiat_kernels.audit.__main__ import main\n"
        "main([])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "Triton is not installed" in done.stderr.splitlines()[-1]


def test_sizes_serve_bench_on_any_device():
    """Sample inputs are the same numbers wherever they are made."""
    for variant in VARIANTS.values():
        here = variant.inputs(SIZES["small"], variant.dtypes[0], CPU)
        there = variant.inputs(SIZES["small"], variant.dtypes[0], torch.device("meta"))
        for name, value in here.items():
            if isinstance(value, torch.Tensor):
                assert there[name].stride() == value.stride()
                assert there[name].dtype == value.dtype
        again = variant.inputs(SIZES["small"], variant.dtypes[0], CPU)
        for name, value in here.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(again[name], value, rtol=0, atol=0, equal_nan=True)
            else:
                assert again[name] == value
