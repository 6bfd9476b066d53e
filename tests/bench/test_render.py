"""The pages' numbers are those of the records, and a difference is found."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest

from fastuiat.bench.record import config_hash
from fastuiat.reproduce.table import summarise

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("render", ROOT / "benchmarks" / "render.py")
assert SPEC is not None and SPEC.loader is not None
render = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(render)


@pytest.fixture
def copy(tmp_path):
    """The pages and the records, to be doctored."""
    for page in render.PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / page, tmp_path / page)
    shutil.copytree(ROOT / "benchmarks" / "results", tmp_path / "benchmarks" / "results")
    return tmp_path


def test_a_doctored_result_is_found_and_written(copy, capsys):
    assert render.main(["--check"], copy) == 0, "the pages that are committed say something else"
    file = copy / "benchmarks" / "results" / "step.jsonl"
    records = [json.loads(line) for line in file.read_text().splitlines()]
    ours = next(r for r in reversed(records) if r["provider"] == "fastuiat")
    ours["median_s"] = 0.01234
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    before = {page: (copy / page).read_bytes() for page in render.PAGES}
    assert render.main(["--check"], copy) == 1
    said = capsys.readouterr().err
    with_steps = ("README.md", "benchmarks/RESULTS.md")
    assert all(f"{page} does not say what the records hold: step (" in said for page in with_steps)
    assert {page: (copy / page).read_bytes() for page in render.PAGES} == before
    assert render.main([], copy) == 0 and render.main(["--check"], copy) == 0
    assert all("| 12.3 ms |" in (copy / page).read_text() for page in with_steps)


def test_a_report_of_a_gpu_is_taken_in_and_shown(copy, tmp_path, capsys):
    """On the pages that say what ran where; what is no report changes nothing."""
    (recorded,) = (copy / "benchmarks" / "results").glob("gpu-nvidia-h100-*-551066ead5.json")
    state = json.loads(recorded.read_text())
    state |= {"device": "NVIDIA H200", "commit": "fedcba9876543210", "time": "2031-02-03T04:05:06"}
    state["stages"]["kernels"] = {"verdict": "passed"}
    report = tmp_path / "gpu-report"
    report.mkdir()
    before = {page: (copy / page).read_bytes() for page in render.PAGES}
    assert render.main(["--add", str(report)], copy) == 2
    assert "name a folder that bench gpu has filled" in capsys.readouterr().err
    assert {page: (copy / page).read_bytes() for page in render.PAGES} == before
    (report / "state.json").write_text(json.dumps(state))
    assert render.main(["--add", str(report)], copy) == 0
    assert (recorded.parent / "gpu-nvidia-h200-fedcba9876.json").exists()
    for page in ("benchmarks/RESULTS.md", "kernels/README.md"):
        text = (copy / page).read_text()
        assert "| NVIDIA H200 |" in text and "| fedcba9876 | 2031-02-03 | kernels, step, " in text
    assert render.main(["--check"], copy) == 0
    recorded.unlink()
    assert render.main(["--check"], copy) == 1
    assert "kernels/README.md does not say" in capsys.readouterr().err


def test_a_doctored_page_is_found(copy):
    page = copy / "benchmarks" / "RESULTS.md"
    text = page.read_text()
    number = re.search(r"<!-- measured: step -->\n(?:\|.*\n){2}.*?(\d+\.\d+) m?s", text)
    assert number is not None
    page.write_text(text[: number.start(1)] + "0.01" + text[number.end(1) :])
    assert render.main(["--check"], copy) == 1


def test_a_page_whose_blocks_are_broken_is_refused(copy, capsys):
    page = copy / "README.md"
    for text, said in (
        ("<!-- measured: step -->\nnothing ends it", "lacks its <!-- end -->"),
        ("<!-- measured: steps -->\n<!-- end -->\n", "unknown block 'steps'"),
    ):
        page.write_text(text)
        assert render.main([], copy) == 2
        assert said in capsys.readouterr().err and page.read_text() == text


def test_a_table_beside_the_paper(tmp_path):
    """Table 2 prints 0.35 and 2.20 minutes on resnet-18: 6.29, whatever a record says of it."""

    def record(method: str, seconds: float) -> dict:
        config = {"arch": "wrn-10-1", "batch_size": 32, "method": method}
        inner = {"median": seconds / 3.0, "p20": None, "p80": None, "paper": 99.0}
        return {
            "format": "fastuiat-bench-1",
            "suite": "table2",
            "case": f"wrn-10-1/b32/{method}",
            "row": method,
            "provider": "fastuiat",
            "device": "a CPU",
            "cpu": {"threads": 2, "features": ["avx2"]},
            **dict.fromkeys(("median_s", "p20_s", "p80_s"), seconds / 1562),
            "n": 7,
            "steps_per_epoch": 1562,
            "epoch_s": seconds,
            "extrapolated": True,
            "error": None,
            "ratios": {"natural": inner},
            "versions": {"torch": "9.9"},
            "commit": "abcdef0123456789",
            "dirty": True,
            "config": config,
            "config_hash": config_hash(config),
            "time": "2026-02-03T04:05:06+00:00",
        }

    lines = [record("natural", 3.0), record("uiat", 24.0)]
    (tmp_path / "table2.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    text = render.render("table2", tmp_path)
    assert "| net | method | min/epoch | 20–80% | n | ÷ natural | paper: ÷ natural |" in text
    assert "| wrn-10-1, batch 32 | uiat | ~0.4 | 0.4 | 7 | 8.00 | 6.29 |" in text
    assert "wrn-10-1 has those of resnet-18" in text
    assert (
        "Measured on a CPU, 2 threads (avx2); torch 9.9 at abcdef0123 with changes; n = 7; "
        "2026-02-03." in text
    )
    assert render.render("table5", tmp_path) == "Not measured yet.\n"


def test_evidence_sets_rows_beside_each_other_seed_by_seed(tmp_path):
    """Gains of 2 and 4 points over SAT are 3.0 ± 1.4, however far the seeds lie apart."""
    columns = ("natural", "pgd", "autoattack")

    def row(name: str, pgd: tuple[float, ...]) -> dict:
        seeds = {
            str(s): {"natural": 80.0, "pgd": value, "autoattack": 40.0}
            for s, value in enumerate(pgd)
        }
        n = dict.fromkeys(columns, 7)
        entry = {"row": name, "seeds": seeds, "seconds_per_epoch": {"0": 9.0}, "n": n}
        summarise(columns, [entry])
        return entry

    rows = [
        row("eps-8/sat", (50.0, 60.0)),
        row("eps-8/uiat", (52.0, 64.0)),
        row("eps-8/n-fgsm", (10.0, 10.0)),
        row("eps-8/n-fgsm+uiat", (11.0, 12.0)),
        row("eps-8/rs-fgsm", (3.0, 3.0)),
        row("eps-8/hat", (51.0,)),
        row("eps-8/iat", ()),
    ]
    made = {
        "jobs": 2,
        "device": "a CPU",
        "cpu": {"features": ["avx2"]},
        "versions": {"torch": "9.9"},
        "commit": "abcdef0123456789",
        "n": 11,
        "time": "2026-02-03T04:05:06+00:00",
    }
    document = {"rows": rows, "columns": columns, "made": [made, made | {"device": "B", "n": 1}]}
    (tmp_path / "fashion-mnist-small.json").write_text(json.dumps(document))
    text = render.render("fashion-mnist-small", tmp_path)
    assert "| 8/255 | sat | 80.0 ± 0.0 | 55.0 ± 7.1 | 40.0 ± 0.0 |  |  | 9.0 |" in text
    assert "| hat (of 1 seeds) | 80.0 | 51.0 | 40.0 | sat +1.0 | sat +0.0 |" in text
    assert "| iat (of 0 seeds) | – | – | – | sat – | sat – |" in text
    assert "| sat **+3.0 ± 1.4** | sat +0.0 ± 0.0 |" in text
    assert "| n-fgsm **+1.5 ± 0.7** |" in text
    assert "over 2 seeds (first test images: natural 7, pgd 7," in text and "2026-02-03" in text
    assert "Measured on a CPU (avx2)" in text and "Measured on B (avx2)" in text
    assert "n = 11;" in text and "n = 1;" in text
    assert render.render("fashion-mnist-small", tmp_path / "none") == "Not measured yet.\n"


def test_readings_are_listed_with_their_last_epoch(tmp_path):
    run = {"method": "uiat", "inverse_bn": "eval", "lam": 3.5, "beta": None, "max_lr": 0.1}
    run |= {"epochs": 2, "val_natural": [0.5, 0.25], "val_robust": [0.4, 0.2]}
    document = {
        "runs": [run, run | {"T": 3}],
        "device": "a CPU",
        "cpu": {},
        "versions": {"torch": "9.9"},
    }
    document |= {"commit": None, "time": "2026-02-03T04:05:06+00:00"}
    (tmp_path / "fashion-mnist-small-validation.json").write_text(json.dumps(document))
    text = render.render("fashion-mnist-small-validation", tmp_path)
    assert "| uiat | eval | 3.5 | – | – | 0.1 | 2 | 25.0 | 20.0 | 40 20 |" in text
    assert "| uiat | eval | 3.5 | – | 3 | 0.1 | 2 | 25.0 | 20.0 | 40 20 |" in text
    assert "torch 9.9; n = 1; 2026-02-03." in text


def test_campaigns_are_summed_by_commit(tmp_path):
    def line(commit, seed, minutes, **parts):
        told = {"commit": commit * 40, "dirty": False, "time": f"2026-01-0{seed}T00:00:00Z"}
        return json.dumps(told | {"seed": seed, "minutes": minutes, "parts": parts, "faults": []})

    def part(tried, held, **counts):
        return {"tried": tried, "held": held, "faults": {}, "counts": counts}

    lines = [
        line("a", 1, 5, kills=part(2, 1, kills=7) | {"faults": {"hang": 1}}),
        line("b", 2, 1.5, kills=part(3, 3, kills=9)),
        line("b", 3, 2, kills=part(1, 1, kills=1), words=part(1, 1)),
    ]
    (tmp_path / "campaign.jsonl").write_text("\n".join(lines) + "\n")
    rows = render.campaign(tmp_path).splitlines()
    assert rows[2:5] == [
        "| bbbbbbbbbb | kills | 4 | 4 | 10 kills | none |",
        "| bbbbbbbbbb | words | 1 | 1 | – | none |",
        "| aaaaaaaaaa | kills | 2 | 1 | 7 kills | 1 hang |",
    ]
    assert "bbbbbbbbbb: seeds 2, 3; 3.5 minutes; 2026-01-03." in rows
