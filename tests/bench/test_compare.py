"""Comparisons: doctored records, ratios made again by hand, and the page in a browser."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from fastuiat.bench import floors
from fastuiat.bench.reading import read_records
from fastuiat.bench.record import config_hash
from fastuiat.cli import main
from fastuiat.config import UserError

sys.path.insert(0, str(Path(__file__).parents[1]))
from browser import open_browser

GPUS = {"NVIDIA A100-SXM4-80GB": 400.0, "NVIDIA H100 80GB HBM3": 700.0}
A100, H100 = GPUS
METHODS = {"natural": 10.0, "trades": 80.0, "uiat": 60.0}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty folder, and a CPU that need not be measured."""
    monkeypatch.chdir(tmp_path)
    rates = floors.Rates("cpu", dict.fromkeys(floors.DTYPES, 1e11), 1e10, 1 << 25, "test")
    monkeypatch.setattr(floors, "cpu_rates", lambda precision: rates)


def record(device: str, seconds: float | None, **more) -> dict:
    """A line as `fastuiat bench step` writes it, by hand."""
    config = {"arch": "resnet-18", "batch_size": 128, "method": "uiat", "precision": "bf16"}
    config |= more.pop("config", {})
    return {
        "format": "fastuiat-bench-1",
        "suite": "step",
        "case": "resnet-18/b128/uiat",
        "provider": "fastuiat",
        "device": device,
        "device_type": "cuda",
        "median_s": seconds,
        "p20_s": seconds,
        "p80_s": seconds,
        "n": 5 if seconds else 0,
        "extrapolated": False,
        "error": None if seconds else "out of memory",
        "flops": 3.12e12,
        "config": config,
        "config_hash": config_hash(config),
        "cpu": {"name": "a CPU", "cpus": 8, "threads": 8},
        "gpu": {"name": device, "driver": "1.2", "power_limit_w": GPUS.get(device)},
        "versions": {"fastuiat": "0", "torch": "2", "triton": "3", "cuda": "13"},
        "commit": "0123456789",
        "dirty": False,
        "time": "2026-01-02T00:00:00+00:00",
        **more,
    }


def epoch(device: str, method: str, seconds: float, arch: str = "resnet-18") -> dict:
    """A line of table2; its ratios are those that the bench made round by round."""
    inner = {
        name: {"median": seconds / METHODS[name], "p20": None, "p80": None}
        for name in ("natural", "uiat")
    }
    return record(
        device,
        seconds / 390,
        suite="table2",
        case=f"{arch}/b128/{method}",
        row=method,
        epoch_s=seconds,
        steps_per_epoch=390,
        ratios=inner,
        extrapolated=True,
        config={"arch": arch, "method": method},
    )


def write(path: str, *records: dict) -> str:
    Path(path).write_text("".join(json.dumps(r) + "\n" for r in records))
    return path


def lines_of(path: str) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def compared(*words: str) -> list[dict[str, str]]:
    main(["bench", "compare", *words, "--csv", "out.csv"])
    return lines_of("out.csv")


def test_ratios_are_those_of_the_files():
    """Every line of the CSV against the two files, read again without our reader."""
    cases = [f"resnet-18/b{8 * i}/uiat" for i in range(1, 4)]
    a = [record(A100, 0.5 + i, case=c, config={"batch_size": i}) for i, c in enumerate(cases)]
    b = [record(H100, 0.3 * (i + 1), case=c, config={"batch_size": i}) for i, c in enumerate(cases)]
    rows = compared(write("a.jsonl", *a), write("b.jsonl", *b))
    raw = {
        (r["case"], r["device"]): r["median_s"]
        for file in ("a.jsonl", "b.jsonl")
        for r in map(json.loads, Path(file).read_text().splitlines())
    }
    assert len(rows) == 6
    for row in rows:
        device = A100 if row["device"].startswith(A100) else H100
        own = raw[row["case"], device]
        assert float(row["seconds"]) == own
        assert float(row["ratio_to_reference"]) == pytest.approx(own / raw[row["case"], A100])


def test_the_newest_record_of_a_device_counts_wherever_it_stands():
    old = record(A100, 9.0, time="2026-01-01T00:00:00+00:00")
    new = record(A100, 1.0, time="2026-01-03T00:00:00+00:00")
    files = [write("one.jsonl", new, record(H100, 0.5)), write("two.jsonl", old)]
    for order in (files, files[::-1]):
        rows = compared(*order)
        assert sorted(float(r["seconds"]) for r in rows) == [0.5, 1.0]


def test_differing_configurations_are_never_in_one_row(capsys):
    fp16 = record(H100, 0.1, config={"precision": "fp16"})
    rows = compared(write("a.jsonl", record(A100, 1.0), fp16, record(H100, 0.5)))
    ratios = {(r["device"].split(",")[0], json.loads(r["config"])["precision"]): r for r in rows}
    assert float(ratios[H100, "bf16"]["ratio_to_reference"]) == 0.5
    assert ratios[H100, "fp16"]["ratio_to_reference"] == "", "nothing like it was measured"
    said = capsys.readouterr().out
    assert "not mixed, for the configurations differ: step resnet-18/b128/uiat fastuiat" in said
    assert "resnet-18/b128/uiat (precision fp16)" in said


def test_another_power_limit_is_another_device():
    slow = record(A100, 2.0, gpu={"name": A100, "driver": "1.2", "power_limit_w": 200.0})
    rows = compared(write("a.jsonl", record(A100, 1.0), slow))
    assert {r["device"] for r in rows} == {f"{A100}, 400 W", f"{A100}, 200 W"}


def test_a_baseline_file_is_a_device_of_its_own():
    """The same machine before and after: what a newer record would otherwise hide."""
    write("before.jsonl", record(A100, 4.0, time="2025-01-01T00:00:00+00:00"))
    write("after.jsonl", record(A100, 1.0))
    rows = compared("after.jsonl", "--baseline", "before.jsonl")
    ratio = {r["device"]: float(r["ratio_to_reference"]) for r in rows}
    assert ratio == {f"{A100}, 400 W (before.jsonl)": 1.0, f"{A100}, 400 W": 0.25}


def test_a_failed_row_is_shown_and_compared_with_nothing(capsys):
    files = (
        write("a.jsonl", record(A100, 1.0), record(H100, 0.5)),
        write(
            "b.jsonl",
            record(A100, None, case="wrn-34-10/b128/uiat"),
            record(H100, 2.0, case="wrn-34-10/b128/uiat"),
        ),
    )
    rows = compared(*files)
    failed = next(r for r in rows if r["error"])
    assert failed["seconds"] == "" and failed["ratio_to_reference"] == ""
    said = capsys.readouterr().out
    assert "wrn-34-10/b128/uiat fastuiat on NVIDIA A100-SXM4-80GB, 400 W: out of memory" in said


def test_beside_the_paper():
    """Table 2 prints 0.35, 2.57 and 2.20 minutes for these on resnet-18, 11.90 on wrn-28-10."""
    ours = [epoch(A100, method, s) for method, s in METHODS.items()]
    other = epoch(A100, "uiat", 60.0, arch="wrn-10-1")
    rows = compared(write("a.jsonl", *ours, other), "--baseline", "paper")
    by_case = {r["case"]: r for r in rows}
    for method, minutes in (("natural", 0.35), ("trades", 2.57), ("uiat", 2.20)):
        row = by_case[f"resnet-18/b128/{method}"]
        assert float(row["paper_s"]) == pytest.approx(60 * minutes)
        assert float(row["paper_ratio_to_natural"]) == pytest.approx(minutes / 0.35)
        assert float(row["paper_ratio_to_uiat"]) == pytest.approx(minutes / 2.20)
        assert float(row["ratio_to_natural"]) == pytest.approx(METHODS[method] / 10.0)
    small = by_case["wrn-10-1/b128/uiat"]
    assert small["paper_s"] == "", "the paper did not measure this net"
    assert float(small["paper_ratio_to_natural"]) == pytest.approx(2.20 / 0.35)


def test_bounds_stand_in_columns_of_their_own():
    """3.12 TFLOP: 10 ms on an A100 in bf16, whose measured time has its error beside it."""
    (row, _) = compared(write("a.jsonl", record(A100, 0.04), record(H100, 0.02)))
    assert float(row["bound_A100_s"]) == pytest.approx(0.010)
    assert float(row["bound_own_device_s"]) == pytest.approx(0.010)
    assert float(row["bound_RTX_4090_s"]) == pytest.approx(3.12 / 165.2)
    assert float(row["bound_this_CPU_s"]) == pytest.approx(31.2)
    assert float(row["share_of_peak"]) == pytest.approx(0.25)
    assert float(row["seconds"]) == 0.04
    known = record("an unknown GPU", 0.04, bound_s=0.02)
    rows = compared(write("b.jsonl", known, record(H100, 0.02)), "--no-bounds")
    assert not [key for key in rows[0] if key.startswith("bound")]


BAD = {
    "empty": ("", "is empty"),
    "blank": ("\n\n", "is empty"),
    "cut": ('{"format": "fastuiat-ben', "holds no whole record"),
    "text": ("hello\n", "is no record: not a line of JSON"),
    "list": ("[1, 2]\n", "is no record of fastuiat bench"),
    "theirs": ('{"loss": 1}\n', "is no record of fastuiat bench"),
    "next": (json.dumps(record(A100, 1.0) | {"format": "fastuiat-bench-2"}), "fastuiat-bench-2"),
    "nan": (json.dumps(record(A100, float("nan"))), "no usable median_s"),
    "lacks": (json.dumps({"format": "fastuiat-bench-1", "suite": "step"}), "no usable case"),
    "edited": (json.dumps(record(A100, 1.0) | {"config": {"arch": "x"}}), "another hash"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_record_file_is_one_line(name, capsys):
    content, said = BAD[name]
    Path("bad.jsonl").write_text(content)
    write("good.jsonl", record(A100, 1.0), record(H100, 1.0))
    refused(["good.jsonl", "bad.jsonl"], said, capsys)


def refused(words: list[str], said: str, capsys) -> None:
    before = {p: p.read_bytes() for p in Path().iterdir() if p.is_file()}
    with pytest.raises(SystemExit) as stop:
        main(["bench", "compare", *words])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastuiat: ") and said in line
    assert {p: p.read_bytes() for p in Path().iterdir() if p.is_file()} == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name the record files"),
        (["nowhere.jsonl"], "nowhere.jsonl cannot be read: No such file"),
        (["a.jsonl"], "only NVIDIA A100-SXM4-80GB, 400 W was measured in these files"),
        (["a.jsonl", "--baseline", "paper"], "no case in common"),
        (["a.jsonl", "other.jsonl"], "the nearest differ: step resnet-18/b128/uiat fastuiat"),
        (["a.jsonl", "case.jsonl"], "no case in common between NVIDIA A100-SXM4-80GB, 400 W; NV"),
        (["a.jsonl", "--baseline", "two.jsonl"], "--baseline two.jsonl holds 2 devices"),
        (["two.jsonl", "--html", "a.jsonl/x.html"], "--html a.jsonl/x.html cannot be written"),
        (["two.jsonl", "--csv", "two.jsonl"], "--csv two.jsonl would overwrite a record file"),
    ],
)
def test_nothing_to_compare_is_one_line(words, said, capsys):
    write("a.jsonl", record(A100, 1.0))
    write("two.jsonl", record(A100, 1.0), record(H100, 1.0))
    write("other.jsonl", record(H100, 1.0, config={"precision": "fp32"}))
    write("case.jsonl", record(H100, 1.0, case="resnet-18/b64/uiat"))
    refused(words, said, capsys)


def test_half_a_line_is_left_out_with_a_word(capsys):
    """The end of a killed run, and the same line after the next run has closed it."""
    whole = [json.dumps(record(device, 1.0)) for device in GPUS]
    Path("end.jsonl").write_text(f"{whole[0]}\n{whole[1]}\n{whole[0][:200]}")
    Path("middle.jsonl").write_text(f"{whole[0]}\n{whole[1][:200]}\n{whole[1]}\n")
    for name, line in (("end.jsonl", 3), ("middle.jsonl", 2)):
        main(["bench", "compare", name])
        assert capsys.readouterr().err == (
            f"fastuiat: {name}:{line} was cut off, as by a kill, and is left out\n"
        )
        assert len(read_records(Path(name))) == 2
    Path("gone.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not text"):
        read_records(Path("gone.jsonl"))


@pytest.mark.slow
def test_the_page_in_a_browser():
    records = [epoch(A100, m, s, a) for m, s in METHODS.items() for a in ("resnet-18", "wrn-28-10")]
    records += [epoch(H100, m, s / 4) for m, s in METHODS.items()]
    records += [record(A100, 0.04), record(H100, 0.02), record(H100, 9.0, case="<b>x</b>")]
    loader = {"suite": "loader", "case": "n9/b8/w1", "flops": None, "config": {"n": 9}}
    records += [record(d, 2.0, images_per_s=4.5, provider="ffcv", **loader) for d in GPUS]
    compared(write("a.jsonl", *records), "--baseline", "paper")
    script = (
        "return [...document.querySelectorAll('figure')].map(f => ["
        "f.querySelector('figcaption').textContent,"
        "[...f.querySelectorAll('svg text')].map(t => t.textContent),"
        "f.querySelector('svg').getBoundingClientRect().height])"
    )
    page = Path("compare.html")
    with open_browser() as browser:
        for width in (390, 1280):
            sight = browser.look(page, width=width, script=script)
            assert sight.errors == [] and sight.requests == []
            assert sight.scroll_width <= width
            assert all(height > 60 for _, _, height in sight.value)
    charts = {caption: texts for caption, texts, _ in sight.value}
    wanted = ["time", "time over that of natural", "share of the device's peak"]
    assert {f"resnet-18, batch 128: {what}" for what in wanted} <= set(charts)
    assert "wrn-28-10, batch 128: time" in charts and "n9/b8/w1: images per second" in charts
    # 60 s here, 2.20 min in the paper, with the devices named.
    assert {"1", "2.2", "0.25", "paper's A100", "uiat"} <= set(charts["resnet-18, batch 128: time"])
    text = page.read_text()
    assert "<b>x</b>" not in text and "&lt;b&gt;x&lt;/b&gt;" in text
