"""The tour: every part of it in small, and what it says in the end."""

from __future__ import annotations

import json

import pytest
import torch

from fastuiat.bench import suites
from fastuiat.bench import tour as tour_file
from fastuiat.bench.record import RecordFile
from fastuiat.bench.setting import Setting
from fastuiat.bench.suite import Size
from fastuiat.bench.suites import kernels as kernels_file
from fastuiat.bench.suites.table2 import epochs_line
from fastuiat.bench.timing import NO_TIME
from fastuiat.bench.tour import LARGE, SMALL, Tour, machine_line, size_for
from fastuiat.cli import main
from fastuiat.device import resolve_precision


@pytest.mark.slow
def test_the_tour_goes_through_its_parts_and_sums_up(tmp_path, capsys, monkeypatch):
    """A row that a slow machine had no time for is a row; the summary counts what is there."""
    monkeypatch.setattr(tour_file, "size_for", lambda device: Size("wrn-10-1", 4, 300))
    monkeypatch.chdir(tmp_path)
    main(["bench", "--no-compile", "--device", "cpu", "--budget", "4", "--json", "tour.jsonl"])
    said = capsys.readouterr().out
    records = [json.loads(line) for line in (tmp_path / "tour.jsonl").read_text().splitlines()]
    assert [r["suite"] for r in records] == ["step"] * 4 + ["loader"] * 3 + ["table2"] * 10
    errors = {r["error"] for r in records} - {None}
    assert all(error.endswith(NO_TIME) for error in errors)  # of a row, maybe one phase's
    assert records[0]["n"] >= 1, "whatever the budget, the first is measured"
    summary = said[said.index("Summary, ") :].splitlines()
    assert len(summary) == 6 and f"{len(records)} rows" in summary[0]
    arithmetic = resolve_precision("auto", torch.device("cpu"))
    assert summary[1].endswith(f"{arithmetic}, not compiled") and torch.__version__ in summary[1]
    assert [line.split(":")[0].strip() for line in summary[2:]] == [
        "a UIAT step of wrn-10-1, batch 4",
        "kernels",
        "loaders",
        "an epoch of wrn-10-1",
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["tour.jsonl"]


def row(name, seconds, paper_s=None, ratio=None, by_paper=None, **more):
    return {
        "row": name,
        "n": 5,
        "error": None,
        "extrapolated": True,
        "epoch_s": seconds,
        "paper": {"arch": "resnet-18", "epoch_s": paper_s},
        "ratios": {"natural": {"median": ratio, "paper": by_paper}},
        **more,
    }


def test_minutes_of_an_epoch_in_a_line():
    records = [
        row("natural", 30.0, 21.0),
        row("trades", 200.0, 154.2),
        row("uiat", 135.0, 132.0, 4.5, 6.2857),
        row("uiat-oneoff", 120.0, 117.6, 4.0, 5.6, extrapolated=False),
        row("uiat-oneoff", 121.0, phase_share=0.79),
    ]
    assert epochs_line(records) == (
        "natural ~0.5 (the paper's A100: 0.35), uiat ~2.25 (the paper's A100: 2.2), "
        "uiat-oneoff 2 (the paper's A100: 1.96) min; uiat is 4.50 times natural "
        "(the paper's resnet-18: 6.29)"
    )
    for r in records:
        r["n"] = 0
    assert epochs_line(records) == "not measured"


def test_kernels_loaders_and_machine_in_a_line():
    ratios = [("eager", 1.0), ("inductor", 0.5), ("inductor", 0.25), ("inductor", 0.8)]
    records = [{"provider": p, "n": 5, "ratio_median": r} for p, r in ratios]
    assert (
        suites.get("kernels").figures(records) == "inductor 2 times as fast as eager, median of 3"
    )
    assert suites.get("kernels").figures([]) == "not measured"
    rates = [("ffcv", 98_765.4), ("resident", None)]
    loaders = [{"provider": p, "images_per_s": r} for p, r in rates]
    assert suites.get("loader").figures(loaders) == "ffcv 98,765 images/s"
    gpu = {"driver": "570.1", "power_limit_w": 700.0}
    record = {"device": "H", "gpu": gpu, "cpu": {"threads": 8}, "versions": {"torch": "2.14"}}
    assert machine_line(record) == "H, driver 570.1, 700 W, torch 2.14"
    assert machine_line(record | {"gpu": None}) == "H, 8 threads, torch 2.14"


def test_kernels_go_on_while_there_is_time(monkeypatch):
    """One is always measured; the others only before the part's end."""
    setting = Setting(device=torch.device("cpu"), precision="fp32", compiled=True)
    kernels = suites.get("kernels")
    time = [0.0]
    measured = []

    def measure(case, device, **more):
        measured.append(case)
        time[0] += 7.0
        return [{"error": None, "provider": "eager"}]

    monkeypatch.setattr(kernels_file, "measure", measure)
    monkeypatch.setattr(kernels_file, "copy_bandwidth", lambda device, clock: 1.0)
    monkeypatch.setattr(kernels, "show", lambda records: None)
    for budget, count in ((100.0, 2), (1.0, 1)):
        tour = Tour(setting, SMALL, budget, RecordFile(None), now=lambda: time[0])
        tour.began, before = time[0], len(measured)
        records = kernels.visit(tour.visit(kernels, lambda event: None))
        assert len(records) == len(measured) - before == count


@pytest.mark.parametrize(("device", "size"), [("cpu", SMALL), ("cuda", LARGE)])
def test_size_follows_the_device(device, size):
    assert size_for(torch.device(device)) is size


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "cuda"], "PyTorch sees no CUDA device"),
        (["--budget", "-5"], "budget must be above 0"),
        (["--speed"], "--speed"),
        (["--json", "/proc/nowhere/x"], "cannot be written"),
    ],
)
def test_bad_input_is_one_line(words, said, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        main(["bench", *words])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastuiat: ") and said in line
