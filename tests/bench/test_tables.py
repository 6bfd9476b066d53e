"""The tables of the paper: exact on a fake machine, whole on a real one."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastuiat import paper
from fastuiat.bench.epoch_steps import Steps, parts_of
from fastuiat.bench.epoch_table import show_table
from fastuiat.bench.epochs import plan_for
from fastuiat.bench.feed import Feed, Source, steps_per_epoch
from fastuiat.bench.suites.table5 import Table5
from fastuiat.bench.timing import OUT_OF_MEMORY, QUEUED_S, Plan
from fastuiat.bench.workload import Case
from fastuiat.cli import main
from fastuiat.data import Batch
from fastuiat.memory import ProbabilityMemory
from fastuiat.targets import OneOffTarget

sys.path.insert(0, str(Path(__file__).parent))
from table_machine import CASE, CPU, SECONDS, SETTING, TABLE2, WAIT, FakeMachine, on_fake


def test_times_ratios_and_phases_are_found_exactly():
    """A machine that grows slower by itself each round: ratios and phases do not see it."""

    def seconds(name, call):
        # 100 s of compiling, one warm-up call, then rounds 1, 2 and 4 times as long.
        return 100.0 if call == 0 else SECONDS[name] * 2 ** max(0, call - 2)

    records = on_fake(FakeMachine(seconds), ["natural", "trades", "uiat", "uiat-oneoff"])
    by_case = {r["case"]: r for r in records}
    prefix = "wrn-10-1/b4/"
    assert list(by_case) == [prefix + n for n in ("natural", "trades", "uiat", "uiat-oneoff")] + [
        f"{prefix}uiat-oneoff/{phase}" for phase in ("before", "at", "after")
    ]
    natural, oneoff = by_case[prefix + "natural"], by_case[prefix + "uiat-oneoff"]
    assert natural["samples_s"] == [2.0, 4.0, 8.0] and natural["median_s"] == 4.0
    assert natural["compile_s"] == 96.0
    mean = 0.79 * 15.0 + 0.01 * 17.0 + 0.2 * 12.0
    assert oneoff["samples_s"] == pytest.approx([mean, 2 * mean, 4 * mean])
    assert oneoff["epoch_s"] == pytest.approx(12_500 * 2 * mean) and oneoff["n"] == 3
    assert oneoff["compile_s"] == pytest.approx(300 - 2 * (15 + 17 + 12))
    assert oneoff["config"]["phases"] == {"before": 0.79, "at": 0.01, "after": 0.2}
    assert [
        by_case[f"{prefix}uiat-oneoff/{p}"]["phase_share"] for p in ("before", "at", "after")
    ] == [
        0.79,
        0.01,
        0.2,
    ]
    ratio = oneoff["ratios"]["natural"]
    assert [ratio[key] for key in ("p20", "median", "p80")] == pytest.approx([mean / 2] * 3)
    assert ratio["paper"] == pytest.approx(1.96 / 0.35)
    assert by_case[prefix + "trades"]["ratios"]["uiat"]["median"] == 20 / 16
    assert all(r["data_wait_s"] == WAIT for r in records)
    assert natural["data_wait_share"] == pytest.approx(3 * WAIT / 14)
    assert all(r["extrapolated"] and r["error"] is None and r["peak_bytes"] == 7 for r in records)
    assert len({r["config_hash"] for r in records}) == len(records)


def test_a_sample_of_several_steps_is_their_mean():
    """As on CUDA, where the host then runs ahead; what is waited for counts step by step."""
    plan = plan_for(
        torch.device("cuda"), steps=3, steps_per_epoch=390, now=0, deadline=None, nets=1
    )
    assert plan.min_sample_s == QUEUED_S and plan.warmup == 3
    plan = dataclasses.replace(plan, min_sample_s=7.0)
    machine = FakeMachine(lambda name, call: SECONDS[name])
    natural, uiat = on_fake(machine, ["natural", "uiat"], plan)
    assert (natural["repeats"], uiat["repeats"]) == (4, 1)
    assert machine.calls == {"natural": 4 + 3 * 4, "uiat": 4 + 3}
    assert natural["samples_s"] == [2.0] * 3 and natural["data_wait_s"] == WAIT
    assert natural["data_wait_share"] == WAIT / 2
    assert natural["n"] == 3 and natural["ratios"]["uiat"]["median"] == 2 / 16


def test_rows_are_interleaved_and_the_feed_is_closed():
    machine = FakeMachine(lambda name, call: SECONDS[name])
    on_fake(machine, ["natural", "uiat"], Plan(warmup=1, rounds=2))
    n, u = "natural", "uiat"
    assert machine.log == [n, n, u, u, n, u, u, n, "closed"]


def test_an_epoch_that_was_measured_whole_is_not_extrapolated():
    case = dataclasses.replace(CASE, batch_size=20_000)
    assert steps_per_epoch(20_000) == 2
    (record,) = on_fake(
        FakeMachine(lambda name, call: 3.0), ["natural"], Plan(warmup=0, rounds=2), case=case
    )
    assert not record["extrapolated"] and record["epoch_s"] == 6.0
    assert record["epoch_images"] == 40_000


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_out_of_memory_is_a_row_and_the_rest_goes_on(error, capsys):
    machine = FakeMachine(
        lambda name, call: SECONDS[name],
        fails=lambda name, built: error if name == "trades" else None,
    )
    natural, trades, uiat = on_fake(machine, ["natural", "trades", "uiat"])
    assert trades["error"] == OUT_OF_MEMORY
    assert trades["n"] == 0 and trades["epoch_s"] is None and not trades["extrapolated"]
    assert natural["error"] is None and uiat["ratios"]["natural"]["median"] == 8.0
    show_table(TABLE2, [natural, trades, uiat])
    said = capsys.readouterr().out
    assert "trades: out of memory" in said and "failed" in said


def test_a_step_that_fails_later_gives_its_room_back(monkeypatch):
    steps = Steps(SETTING, Feed(Source().make(CASE.batch_size, CPU), CPU))
    (part,) = parts_of(TABLE2, TABLE2.chosen(["natural"]), CASE)
    call = steps.build(part)
    step = steps._steps[part.row]

    def fails(batch):
        raise torch.cuda.OutOfMemoryError("no")

    monkeypatch.setattr(step.net, "forward", fails)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        call()
    assert not steps._steps


def test_a_phase_out_of_memory_takes_its_row_with_it():
    def fails(name, built):
        return torch.cuda.OutOfMemoryError("no") if name == "uiat-oneoff/at" else None

    machine = FakeMachine(lambda name, call: SECONDS[name], fails=fails)
    whole, before, at, after = on_fake(machine, ["uiat-oneoff"])
    assert whole["error"] == "uiat-oneoff/at: out of memory" and whole["epoch_s"] is None
    assert at["error"] and not before["error"] and not after["error"]


def test_what_does_not_fit_beside_all_is_measured_beside_its_references():
    def fails(name, built):
        return torch.cuda.OutOfMemoryError("no") if name == "iat" and len(built) > 3 else None

    machine = FakeMachine(lambda name, call: SECONDS.get(name, 18.0), fails=fails)
    records = on_fake(machine, ["natural", "trades", "hat", "iat", "uiat"])
    assert all(r["error"] is None for r in records)
    assert " ".join(machine.built) == "natural uiat trades hat iat | natural uiat iat |"
    (iat,) = [r for r in records if r["row"] == "iat"]
    assert iat["ratios"]["natural"]["median"] == 9.0


def test_the_paper_stands_beside_its_own_cases_only():
    rows = {row.name: row for row in TABLE2.rows}
    assert TABLE2.paper_epoch_s("uiat", "wrn-28-10", 128) == 11.90 * 60
    assert TABLE2.paper_epoch_s(rows["trades-published"].method, "resnet-18", 128) == 2.57 * 60
    assert {row.method for row in TABLE2.rows} == set(paper.tables()["table2"].rows)
    assert {row.method for row in Table5.table.rows} == set(paper.tables()["table5_time"].rows)
    assert TABLE2.archs == paper.tables()["table2"].columns
    plain = Table5.table.reference("plain", Table5.table.chosen(["gradalign+uiat"])[0])
    assert plain.name == "gradalign"
    machine = FakeMachine(lambda name, call: 4.0)
    case = Case(arch="prn-18", batch_size=128, epochs=30)
    records = on_fake(machine, ["n-fgsm", "n-fgsm+uiat"], table=Table5.table, case=case)
    assert records[0]["paper"] == {"arch": "prn-18", "epoch_s": 48.4}
    assert records[1]["ratios"]["plain"] == {
        "median": pytest.approx(1.0),
        "p20": pytest.approx(1.0),
        "p80": pytest.approx(1.0),
        "paper": 57.3 / 48.4,
    }
    assert records[1]["ratios"]["rs-fgsm"]["median"] is None, "not measured"
    shares = [r["phase_share"] for r in records[2:]]
    assert shares == pytest.approx([23 / 30, 1 / 30, 6 / 30])


def test_the_feed_hands_out_a_loaders_batches_as_of_the_epoch_asked_for():
    time = iter([0.0, 1.5, 10.0, 10.5, 20.0, 20.0])
    batches = [Batch(torch.zeros(1), torch.zeros(1), torch.zeros(1).long(), 1, i) for i in range(2)]
    asked = []

    def epoch(number):
        asked.append(number)
        yield from batches

    closed = []
    loader = SimpleNamespace(epoch=epoch, close=lambda: closed.append(True))
    feed = Feed(loader, CPU, now=lambda: next(time))
    got = [feed.next(80) for _ in range(3)]
    assert [(b.epoch, b.step, wait) for b, wait in got] == [(80, 0, 1.5), (80, 1, 0.5), (80, 0, 0)]
    assert asked == [1, 2]
    feed.close()
    assert closed == [True]


def test_after_the_one_off_epoch_no_sample_is_new():
    """Of 50,000 samples; else the phase would time forwards that a run does not make."""
    case = dataclasses.replace(CASE, method="uiat-oneoff")
    loader = Source().make(case.batch_size, CPU)
    steps = Steps(SETTING, Feed(loader, CPU))
    *_, after = parts_of(TABLE2, TABLE2.chosen(["uiat-oneoff"]), case)
    take = steps.build(after)
    step = steps._steps[after.row]
    (target,) = [m for m in step.method.modules() if isinstance(m, OneOffTarget)]
    take()
    assert step.taken == 1 and len(steps.waits["uiat-oneoff/after"]) == 1
    batch, _ = steps.feed.next(after.case.epoch)
    assert target._all_seen(batch)
    (memory,) = [m for m in step.method.modules() if isinstance(m, ProbabilityMemory)]
    assert memory.seen.all() and len(memory.seen) == loader.num_samples == 50_000
    # The three phases are the same step.
    before, at, _ = parts_of(TABLE2, TABLE2.chosen(["uiat-oneoff"]), case)
    z = target.universal.bank.z.clone()
    steps.build(before)()
    assert torch.equal(z, target.universal.bank.z) and step.taken == 2
    steps.build(at)()
    assert not torch.equal(z, target.universal.bank.z) and step.taken == 3


SMALL = ["bench", "table2", "--archs", "wrn-10-1", "--batch-size", "8", "--no-compile"]


@pytest.mark.slow
def test_table2_on_this_machine(tmp_path, capsys):
    """Every row, by a real trainer; the figures agree with each other."""
    path = tmp_path / "new" / "table2.jsonl"
    main([*SMALL, "--steps", "2", "--device", "cpu", "--json", str(path)])
    said = capsys.readouterr().out
    records = [json.loads(line) for line in path.read_text().splitlines()]
    rows = {r["row"]: r for r in records if "phase_share" not in r}
    assert list(rows) == [row.name for row in TABLE2.rows]
    parts = {r["config"]["phase"]: r for r in records if "phase_share" in r}
    passes = {name: round(r["passes"], 1) for name, r in rows.items()}
    assert passes == {
        "natural": 3.0,
        "trades-published": 38.9,
        "trades": 26.9,
        "hat": 30.9,
        "iat": 36.0,
        "uiat": 28.0,
        "uiat-oneoff": 23.8,
    }
    natural, uiat = (np.array(rows[name]["samples_s"]) for name in ("natural", "uiat"))
    for r in records:
        own = np.array(r["samples_s"])
        assert r["error"] is None and r["suite"] == "table2" and r["n"] == len(own) == 2
        assert r["median_s"] == pytest.approx(np.median(own))
        assert r["p20_s"] == pytest.approx(np.percentile(own, 20))
        assert r["epoch_s"] == pytest.approx(np.median(own) * 6250) and r["extrapolated"]
        assert r["ratios"]["natural"]["median"] == pytest.approx(np.median(own / natural))
        assert r["ratios"]["uiat"]["p80"] == pytest.approx(np.percentile(own / uiat, 80))
        assert r["tflops_per_s"] == pytest.approx(r["flops"] / r["median_s"] / 1e12)
        assert r["peak_share"] == pytest.approx(r["flops"] / r["median_s"] / r["peak_flops_per_s"])
        assert r["peak_bytes"] > 0 and 0 < r["data_wait_share"] < 1 and r["compile_s"] >= 0
        assert r["paper"] == {"arch": "resnet-18", "epoch_s": None}
        assert r["config"]["data"] == "synthetic" and r["config"]["loader"] == "resident"
    mean = sum(np.array(r["samples_s"]) * r["phase_share"] for r in parts.values())
    assert rows["uiat-oneoff"]["samples_s"] == pytest.approx(list(mean))
    assert rows["trades-published"]["provider"] == "naive"
    assert rows["trades-published"]["case"] == rows["trades"]["case"] == "wrn-10-1/b8/trades"
    assert said.startswith("Table 2, min/epoch: wrn-10-1, batch 8, on ")
    assert "~ extrapolated" in said and "resnet-18" in said


@pytest.mark.slow
def test_table5_with_a_real_loader(tmp_path, capsys, monkeypatch):
    """The data set's own loader feeds the steps, and its classes and samples size the method."""
    monkeypatch.chdir(tmp_path)
    words = ["--archs", "wrn-10-1", "--batch-size", "8", "--no-compile", "--steps", "1"]
    words += ["--data", "digits", "--loader", "resident", "--methods", "rs-fgsm", "rs-fgsm+uiat"]
    main(["bench", "table5", *words, "--json", "t.jsonl"])
    records = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    _plain, whole, before, at, after = records
    assert {r["config"]["data"] for r in records} == {"digits"}
    assert all(r["error"] is None and r["epoch_s"] > 0 for r in records)
    assert whole["passes"] == pytest.approx(
        sum(r["phase_share"] * r["passes"] for r in (before, at, after))
    )
    assert whole["ratios"]["plain"]["paper"] == pytest.approx(40.7 / 32.4)
    assert "s/epoch" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["t.jsonl"]


@pytest.mark.slow
def test_memory_that_is_really_not_there(tmp_path, capsys, monkeypatch):
    """A real allocation that no machine grants, in one row of a real run."""
    original = Steps.ours

    def greedy(self, part):
        if part.row.name == "uiat":
            torch.empty(1 << 60, dtype=torch.uint8)
        return original(self, part)

    monkeypatch.setattr(Steps, "ours", greedy)
    path = tmp_path / "t.jsonl"
    main([*SMALL, "--steps", "1", "--methods", "uiat", "natural", "--json", str(path)])
    natural, uiat = [json.loads(line) for line in path.read_text().splitlines()]
    assert natural["n"] == 1 and natural["ratios"]["uiat"]["median"] is None
    assert uiat["error"] == "out of memory" and uiat["median_s"] is None
    assert "uiat: out of memory" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--device", "cuda"], "PyTorch sees no CUDA device here; use --device cpu"),
        (["--archs", "resnet-5"], "unknown net 'resnet-5'"),
        (["--methods", "magic"], "table2 has no row 'magic': choose from natural, trades-pub"),
        (["--data", "mnist"], "unknown data set 'mnist'"),
        (["--steps", "0"], "steps must be above 0"),
        (["--budget", "0"], "budget must be above 0"),
        (["--batch-size", "-3"], "batch-size must be above 0"),
        (["--json", "/proc/nowhere/x.jsonl"], "cannot be written"),
        (["--data", "digits", "--batch-size", "9999"], "9999 is larger than the"),
    ],
)
def test_bad_input_is_one_line(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as stop:
        main(["bench", "table2", *words])
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastuiat: ") and said in line
    assert not list(tmp_path.iterdir())
