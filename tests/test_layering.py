"""Imports point down only; each file knows no more than its place allows."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "fastuiat").rglob("*.py"))
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))

# Lowest first. A part may import any part of a lower level, and its own.
LEVELS = [
    {"bounds", "interrupts"},
    {
        "config",
        "sealed",
        "file_kinds",
        "convolutions",
        "machine",
        "torch_internals",
        "torchrun",
        "presence",
    },
    {"distributed", "files", "sealed_tensors"},
    {
        "device",
        "network",
        "losses",
        "memory",
        "data",
        "models",
        "progress",
        "report",
        "children",
        "writer",
    },
    {"gradients", "fast"},
    {"attacks"},
    {"targets"},
    {"methods"},
    {"origins"},
    {"presets"},
    {"evaluation", "paper"},
    {"training"},
    {"recipes", "bench", "export"},
    {"reproduce"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
ONLY = {
    "config": set(),
    "data": {"bounds", "config", "file_kinds", "files", "machine", "sealed", "torch_internals"},
    "models": {"config", "file_kinds", "torch_internals"},
    "report": {"bounds", "config", "files", "sealed"},
    "evaluation": {
        "attacks",
        "bounds",
        "config",
        "convolutions",
        "data",
        "device",
        "distributed",
        "fast",
        "files",
        "gradients",
        "losses",
        "machine",
        "models",
        "network",
        "torch_internals",
        "writer",
    },
}
"""Parts that may know even less than their level allows."""


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            names.add(node.module)
            if node.module == "fastuiat":
                names |= {f"fastuiat.{alias.name}" for alias in node.names}
    return names


INTERNALS = ("fast", "torch_internals")
"""A file of `fast` that has a place of its own, below all who must not name what is private."""


def part_of(path: Path) -> str:
    parts = path.relative_to(ROOT / "fastuiat").with_suffix("").parts
    return parts[1] if parts == INTERNALS else parts[0]


def part_named(name: str) -> str:
    parts = tuple(name.split(".")[1:])
    return parts[1] if parts[:2] == INTERNALS else parts[0]


def parts_imported(path: Path) -> set[str]:
    """The parts of fastuiat that a file imports."""
    parts = {part_named(name) for name in imported(path) if name.startswith("fastuiat.")}
    return {part for part in parts if part in LEVEL}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    part = part_of(path)
    if part == "__init__":
        return  # the public names
    assert part in LEVEL, f"{path} has no level"
    for other in parts_imported(path) - {part}:
        assert LEVEL[other] < LEVEL[part], f"{path} imports {other}, which lies above it"
        if part in ONLY:
            assert other in ONLY[part], f"{path} must not know {other}"
    assert not {n.split(".")[0] for n in imported(path)} & {"benchmarks", "tests"}


def test_a_method_knows_no_trainer_and_the_trainer_names_no_method():
    for path in (ROOT / "fastuiat" / "methods").glob("*.py"):
        assert not parts_imported(path) & {"training", "data", "commands", "cli"}, path
    from fastuiat import methods

    for path in (ROOT / "fastuiat" / "training").glob("*.py"):
        if path.name == "config.py":
            continue  # the settings of a run, whose default is a method
        words = {
            node.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        # "natural" is also the name of an accuracy.
        assert not words & set(methods.names()) - {"natural"}, path


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.name)
def test_kernels_stand_alone(path):
    assert not [name for name in imported(path) if name.split(".")[0] == "fastuiat"]
    assert not (ROOT / "kernels" / "__init__.py").exists()
