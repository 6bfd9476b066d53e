"""What a start of the command imports, and what Ctrl-C does meanwhile."""

from __future__ import annotations

import signal
import subprocess
import sys
import types
from collections.abc import Sequence
from pathlib import Path

import pytest

import fastuiat
from tests.large import write_run

ASKED_AT = """
import importlib.abc, os, signal, sys

class Asked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {name!r}:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Asked())
signal.signal(signal.SIGINT, {handler})
sys.argv = ["fastuiat", *{words!r}]
from fastuiat.__main__ import main
main()
"""


def python(text: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", text], cwd=cwd, capture_output=True, text=True, timeout=120
    )


def stopped_at(
    name: str, words: Sequence[str], cwd: Path, handler: str = "signal.default_int_handler"
) -> subprocess.CompletedProcess[str]:
    """A command that is sent SIGINT when it begins to import a module."""
    return python(ASKED_AT.format(name=name, words=list(words), handler=handler), cwd)


@pytest.mark.parametrize(
    "name", ["fastuiat.cli", "tyro", "fastuiat.commands.train", "torch", "torch._C", "numpy"]
)
def test_ctrl_c_while_python_imports_ends_the_process(name, tmp_path):
    """As any program ends by it: the shell says 130, and nobody shows where Python was."""
    ended = stopped_at(name, ["train", "--dataset", "digits"], tmp_path)
    assert (ended.returncode, ended.stderr, ended.stdout) == (-signal.SIGINT, "", "")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["fastuiat.report.document", "matplotlib.figure"])
def test_ctrl_c_in_what_a_command_imports_later(name, tmp_path):
    ended = stopped_at(name, ["report", "run"], tmp_path)
    assert (ended.returncode, ended.stderr, ended.stdout) == (130, "", "")


def test_ctrl_c_while_python_ends(tmp_path):
    text = ASKED_AT.format(name=None, words=["--help"], handler="signal.default_int_handler")
    ended = python(
        "import atexit; atexit.register(lambda: os.kill(os.getpid(), 2))" + text, tmp_path
    )
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")
    assert ended.stdout.startswith("usage: fastuiat")


def test_who_ignores_ctrl_c_goes_on_doing_so(tmp_path):
    """As shells start what they put in the background."""
    ended = stopped_at("fastuiat.commands.report", ["report"], tmp_path, "signal.SIG_IGN")
    assert ended.returncode == 2
    assert ended.stderr == "fastuiat: name a run folder: fastuiat report RUN [RUN …]\n"


def test_a_report_of_a_run_without_a_net_needs_no_pytorch(tmp_path):
    """Nor does whoever only asks for the version; PyTorch and Triton are 600 MB."""
    write_run(tmp_path / "run", lines=200)
    asked = "import sys, fastuiat; fastuiat.__version__; from fastuiat.cli import main\n"
    ended = python(asked + "main(['report', 'run']); print('torch' in sys.modules)", tmp_path)
    assert ended.stdout.splitlines()[-1] == "False", ended.stderr
    assert (tmp_path / "run" / "report.html").exists()


def test_public_names_are_had_when_they_are_asked_for():
    assert set(fastuiat.__all__) == set(fastuiat._HOMES)
    assert {*fastuiat.__all__, "__version__"} <= set(dir(fastuiat))
    assert all(getattr(fastuiat, name) is getattr(fastuiat, name) for name in fastuiat.__all__)
    assert isinstance(fastuiat.attacks, types.ModuleType)
    assert fastuiat.pgd is fastuiat.attacks.pgd
    for name in ("no_such_name", "__no_such_name__", "_HOME", "a.b", "train.x", ""):
        assert not hasattr(fastuiat, name)
        with pytest.raises(AttributeError, match=f"'fastuiat' has no attribute '{name}'"):
            getattr(fastuiat, name)
