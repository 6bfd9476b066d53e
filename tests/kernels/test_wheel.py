"""The operations taken on their own: the wheel unpacked in an empty folder, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=cwd,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | env,
        capture_output=True,
        text=True,
    )


def test_the_wheel_alone(tmp_path):
    source, home = tmp_path / "source", tmp_path / "home"
    source.mkdir(), home.mkdir()
    for name in ("pyproject.toml", "README.md", "fastuiat", "kernels"):
        os.symlink(ROOT / name, source / name)
    build = "import sys, setuptools.build_meta as b; print(b.build_wheel(sys.argv[1]))"
    built = run("-c", build, tmp_path, cwd=source)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    pip = ("-m", "pip", "install", "--no-deps", "--no-index", "--target", home, wheel)
    installed = run(*pip, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    code = (
        "import sys, fastuiat_kernels as k, torch; print(k.__file__)\n"
        "x = torch.rand(2, 3, 4, 4)\n"
        "assert k.sign_step(x, x, x, alpha=0.1, eps=0.1).shape == x.shape\n"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'fastuiat']\n"
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    used = run("-c", code, cwd=empty, PYTHONPATH=str(home))
    assert used.returncode == 0, used.stderr
    assert Path(used.stdout.strip()).is_relative_to(home)
    words = ("-m", "fastuiat_kernels.audit", "--target", "sm_90", "--kernel", "bank_apply")
    audited = run(*words, cwd=empty, PYTHONPATH=str(home))
    assert audited.returncode == 0, audited.stderr
    compare_from(home, empty)


def compare_from(home: Path, empty: Path) -> None:
    """`bench compare` with the tables that the wheel carries: rates, and the paper's."""
    shipped = {path.name for path in (home / "fastuiat" / "bench").glob("*.toml")}
    assert shipped == {path.name for path in (ROOT / "fastuiat" / "bench").glob("*.toml")}
    ours = (ROOT / "benchmarks" / "results" / "step.jsonl").read_text()
    records = [json.loads(line) for line in ours.splitlines()]
    theirs = [{**record, "device": "NVIDIA H200", "gpu": {}, "cpu": {}} for record in records]
    (empty / "ours.jsonl").write_text(ours)
    (empty / "theirs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in theirs))
    words = ("-m", "fastuiat", "bench", "compare", "ours.jsonl", "theirs.jsonl")
    compared = run(*words, cwd=empty, PYTHONPATH=str(home))
    assert compared.returncode == 0, compared.stderr
    assert "NVIDIA H200" in compared.stdout and "RTX 4090: bound" in compared.stdout
    assert "<svg" in (empty / "compare.html").read_text()
