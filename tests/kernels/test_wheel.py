"""The operations taken on their own: the wheel unpacked in an empty folder, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_wheel_alone(distributions, tmp_path):
    code = (
        "import sys, fastuiat_kernels as k, torch; print(k.__file__)\n"
        "x = torch.rand(2, 3, 4, 4)\n"
        "assert k.sign_step(x, x, x, alpha=0.1, eps=0.1).shape == x.shape\n"
        "assert not [m for m in sys.modules if m.split('.')[0] == 'fastuiat']\n"
    )
    file = distributions.run("-c", code, cwd=tmp_path)
    assert Path(file.strip()).is_relative_to(distributions.unpacked)
    words = ("-m", "fastuiat_kernels.audit", "--target", "sm_90", "--kernel", "bank_apply")
    distributions.run(*words, cwd=tmp_path)


def test_compare_with_the_tables_that_the_wheel_carries(distributions, tmp_path):
    """Rates, and the paper's."""
    shipped = {path.name for path in (distributions.unpacked / "fastuiat/bench").glob("*.toml")}
    assert shipped == {path.name for path in (ROOT / "fastuiat" / "bench").glob("*.toml")}
    ours = (ROOT / "benchmarks" / "results" / "step.jsonl").read_text()
    records = [json.loads(line) for line in ours.splitlines()]
    theirs = [{**record, "device": "NVIDIA H200", "gpu": {}, "cpu": {}} for record in records]
    (tmp_path / "ours.jsonl").write_text(ours)
    (tmp_path / "theirs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in theirs))
    words = ("-m", "fastuiat", "bench", "compare", "ours.jsonl", "theirs.jsonl")
    compared = distributions.run(*words, cwd=tmp_path)
    assert "NVIDIA H200" in compared and "RTX 4090: bound" in compared
    assert "<svg" in (tmp_path / "compare.html").read_text()
