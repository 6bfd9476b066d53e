"""Private names of PyTorch: one file has them, and each may be gone."""

from __future__ import annotations

import ast
import importlib
import logging
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastuiat.device import has_bf16
from fastuiat.fast import torch_internals
from fastuiat.fast.regions import Regions
from fastuiat.network import batchnorm_mode
from fastuiat.training.averaging import Averaged

PACKAGE = Path(torch_internals.__file__).parents[1]
NEEDED = {
    "torch._dynamo.config",
    "torch._inductor.codegen.cpp.CppVecKernel",
    "torch._inductor.config.cpp",
    "torch.utils._python_dispatch.TorchDispatchMode",
}
"""PyTorch itself does not compile without them."""
NAMES = sorted(
    node.value
    for node in ast.walk(ast.parse(Path(torch_internals.__file__).read_text()))
    if isinstance(node, ast.Constant)
    and isinstance(node.value, str)
    and re.fullmatch(r"torch(\.\w+)*\._\w+(\.\w+)*", node.value)
    and node.value not in NEEDED
)
"""Every private name that the file gives to `internal`."""


@pytest.fixture
def without(monkeypatch, caplog):
    """without(NAME): PyTorch as if it had it no longer."""

    def take(name: str) -> None:
        owner, _, attribute = name.rpartition(".")
        place = torch_internals.internal(owner, "")
        assert hasattr(place, attribute), name
        original = torch_internals.importlib.import_module

        def gone(module: str):
            if module == name:
                raise ImportError(module)
            return original(module)

        monkeypatch.setattr(torch_internals.importlib, "import_module", gone)
        bases = (
            [c for c in place.__mro__ if attribute in vars(c)] if isinstance(place, type) else []
        )
        for owning in bases or [place]:
            monkeypatch.delattr(owning, attribute)

    torch_internals.say_once.cache_clear()
    with caplog.at_level(logging.WARNING, "fastuiat"):
        yield take
    torch_internals.say_once.cache_clear()


def said(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name.startswith("fastuiat")]


def gradient(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """A function of the kind that regions are: a gradient inside it."""
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(F.cross_entropy(net(x), y), x)
    return grad


def branching(net: nn.Module, x: Tensor) -> Tensor:
    """No compiler takes it: what is done depends on a value."""
    with torch.no_grad():
        return net(x) if x.sum().item() > 0 else x


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.head = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x))


def everything() -> list[Tensor]:
    """What uses the private names: a compiled region, an average, BatchNorm's modes, copies."""
    net = Small()
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    y = torch.tensor([0, 1, 2, 0])
    torch._dynamo.reset() if hasattr(torch, "_dynamo") else None
    regions = Regions(compiled=True)
    grad = regions(gradient, "train")(net, x, y)
    regions(branching, "train")(net, x)
    averaged = Averaged(net, 0.9)
    with torch.no_grad():
        net.head.weight.add_(1)
    averaged.update(1)
    with batchnorm_mode(net, "batch"):
        net(x)
    target = torch.zeros(3)
    torch_internals.foreach_copy_([target], [torch.arange(3.0)])
    torch_internals.foreach_mul_([target], torch.tensor(2.0))
    torch_internals.foreach_add_([target], [torch.ones(3)])
    assert isinstance(has_bf16(torch.device("cpu")), bool)
    return [grad, target, *averaged.net.state_dict().values(), *net.state_dict().values()]


def test_the_names_are_found():
    assert "torch._foreach_copy_" in NAMES and len(NAMES) >= 8
    for name in NAMES:
        assert torch_internals.internal(name, "") is not torch_internals.MISSING, name


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_may_be_gone(name, without, caplog):
    """The same numbers, and one line that names it."""
    expected = everything()
    assert not [line for line in said(caplog) if "has no" in line]
    without(name)
    for got, want in zip(everything(), expected, strict=True):
        torch.testing.assert_close(got, want)
    everything()
    lines = [line for line in said(caplog) if f"has no {name}" in line]
    assert len(lines) == 1, said(caplog)


@pytest.mark.slow
def test_a_setting_of_the_compiler_may_be_gone(without, caplog):
    expected = everything()
    without("torch._dynamo.config.trace_autograd_ops")
    for got, want in zip(everything(), expected, strict=True):
        torch.testing.assert_close(got, want)
    assert any("has no torch._dynamo.config.trace_autograd_ops" in line for line in said(caplog))


def test_what_does_not_compile_runs_eager_and_says_so(caplog, counted):
    regions = Regions(compiled=True)
    net, x = Small().eval(), torch.ones(2, 6)
    with caplog.at_level(logging.WARNING, "fastuiat"), torch.no_grad():
        for _ in range(2):
            assert torch.equal(regions(branching, "eval")(net, x), net(x))
    (line,) = said(caplog)
    assert line.startswith("branching runs eager, it does not compile: ")


def test_where_it_must_compile_it_is_an_error(counted):
    regions = Regions(compiled=True)
    regions.strict = True
    with pytest.raises(torch_internals.compiler_errors()), torch.no_grad():
        regions(branching, "eval")(Small().eval(), torch.ones(2, 6))


def test_nobody_else_names_them():
    """Attributes that begin with an underscore, of a module of PyTorch."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        if path.name == "torch_internals.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch."):
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
                found += [f"{path}: {node.module}"] * any(n.startswith("_") for n in names)
            if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
                text = ast.unparse(node)
                private = re.match(r"(torch|nn)\.", text) and not node.attr.startswith("__")
                found += [f"{path}: {text}"] * bool(private)
    assert found == []


def test_making_things_changes_nothing_of_the_process():
    """An import, a view, a step: the compiler's settings and loggers are as they were."""
    from fastuiat import build_model
    from fastuiat.methods import create
    from fastuiat.training.step import TrainingStep

    config = importlib.import_module("torch._dynamo.config")
    kernel = importlib.import_module("torch._inductor.codegen.cpp").CppVecKernel

    def state() -> tuple[object, ...]:
        logger = logging.getLogger("torch.utils.cpp_extension")
        flags = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
        return config.trace_autograd_ops, kernel.store_reduction, logger.level, flags

    before = state()
    method = create("natural", num_classes=10, num_samples=8)
    step = TrainingStep(build_model("wrn-10-1"), method, total_steps=1, compile=False)
    step(torch.rand(4, 3, 32, 32), torch.arange(4), torch.arange(4), epoch=1)
    everything()
    assert state() == before
