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
    {"config", "files", "allocator", "compiling", "convolutions"},
    {"losses", "memory", "data", "models", "progress", "report", "children"},
    {"gradients"},
    {"attacks"},
    {"targets"},
    {"methods"},
    {"origins"},
    {"presets"},
    {"recipes", "evaluation", "paper"},
    {"training"},
    {"bench", "export"},
    {"reproduce"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
ONLY = {
    "config": set(),
    "data": {"config", "files"},
    "models": {"config"},
    "report": {"config", "files"},
    "evaluation": {
        "allocator",
        "attacks",
        "compiling",
        "config",
        "convolutions",
        "data",
        "files",
        "gradients",
        "losses",
        "models",
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


def part_of(path: Path) -> str:
    return path.relative_to(ROOT / "fastuiat").parts[0].removesuffix(".py")


def house_parts(path: Path) -> set[str]:
    """The parts of fastuiat that a file imports."""
    parts = {name.split(".")[1] for name in imported(path) if name.startswith("fastuiat.")}
    return {part for part in parts if part in LEVEL}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path):
    part = part_of(path)
    if part == "__init__":
        return  # the public names
    assert part in LEVEL, f"{path} has no place in the house"
    for other in house_parts(path) - {part}:
        assert LEVEL[other] < LEVEL[part], f"{path} imports {other}, which lies above it"
        if part in ONLY:
            assert other in ONLY[part], f"{path} must not know {other}"
    assert not {n.split(".")[0] for n in imported(path)} & {"benchmarks", "tests"}


def test_a_method_knows_no_trainer_and_the_trainer_names_no_method():
    for path in (ROOT / "fastuiat" / "methods").glob("*.py"):
        assert not house_parts(path) & {"training", "data", "commands", "cli"}, path
    from fastuiat import methods

    for path in (ROOT / "fastuiat" / "training").glob("*.py"):
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
