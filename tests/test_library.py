"""The library's face: every name has an example, and every example is run."""

from __future__ import annotations

import doctest
import inspect

import pytest
import torch

import fastuiat

CALLABLE = [name for name in fastuiat.__all__ if not name.endswith("Config")]


def test_the_names_are_those_that_are_promised():
    promised = {
        "Batch", "OptimizerConfig", "TrainConfig", "TrainingStep", "autoattack", "build_model",
        "create_method", "evaluate", "load_checkpoint", "pgd", "recipe_config", "train",
    }  # fmt: skip
    assert set(fastuiat.__all__) == promised


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLABLE)
def test_examples_are_true(name, tmp_path, monkeypatch):
    """As somebody types them after `import torch, fastuiat`, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    target = getattr(fastuiat, name)
    text = inspect.getdoc(target) or ""
    names = {"torch": torch, "fastuiat": fastuiat}
    test = doctest.DocTestParser().get_doctest(text, names, name, None, None)
    assert test.examples, f"fastuiat.{name} has no example"
    said: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert result.failed == 0, "".join(said)
