"""`fastuiat bench scaling`: real ranks beside a stop-watch, their groups, rows and refusals."""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from fastuiat.bench import groups, suites
from fastuiat.bench import rank as ranks_program
from fastuiat.bench.exchanges import Meter, MeteredRanks
from fastuiat.bench.groups import Group, RanksClock
from fastuiat.bench.rank import ANSWER, Task
from fastuiat.bench.setting import Setting
from fastuiat.bench.suites import scaling as suite
from fastuiat.bench.suites.scaling import Part, ScalingOptions, parts_of
from fastuiat.bench.timing import Plan
from fastuiat.bench.workload import Case, Phase
from fastuiat.cli import main
from fastuiat.config import UserError
from fastuiat.distributed import ALONE, Ranks

sys.path.insert(0, str(Path(__file__).parent))
from scaling_by_hand import B, by_hand, h100_record, metrics_of

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SETTING = Setting(device=CPU, precision="fp32", compiled=False)

# --- a real run


@dataclass(frozen=True)
class Run:
    said: str
    wall_s: float
    records: list[dict]
    file: Path


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Run:
    """One and two processes on what is said to be one core, so that one process is both others."""
    folder = tmp_path_factory.mktemp("scaling")
    file, known = folder / "scaling.jsonl", folder / "h100.jsonl"
    known.write_text(json.dumps(h100_record("wrn-10-1", 8, 0.004, precision="fp32")) + "\n")
    with pytest.MonkeyPatch.context() as patch, (folder / "said").open("w") as out:
        patch.setattr(suite, "cores", lambda: 1)
        patch.setattr(sys, "stdout", out)
        began = time.perf_counter()
        main(
            [
                *("bench", "scaling", "--processes", "1", "2", "--arch", "wrn-10-1"),
                *("--batch-size", str(B), "--precision", "fp32", "--no-compile", "--repeats", "3"),
                *("--recorded", str(known), "--json", str(file)),
            ]
        )
        wall = time.perf_counter() - began
    records = [json.loads(line) for line in file.read_text().splitlines()]
    return Run((folder / "said").read_text(), wall, records, file)


@pytest.mark.slow
def test_a_real_run_against_a_stop_watch(real):
    one, two = real.records
    assert [r["provider"] for r in real.records] == ["1 × 1 thread", "2 × 1 thread"]
    assert all(r["error"] is None and r["n"] == 3 and r["threads"] == 1 for r in real.records)
    taken = sum(sum(r["samples_s"]) * r["repeats"] for r in real.records)
    assert 0 < taken < real.wall_s
    assert (one["batch_each"], two["batch_each"]) == (B, B // 2)
    assert two["images_per_s"] == pytest.approx(B / two["median_s"])
    rounds = sorted(a / b for a, b in zip(one["samples_s"], two["samples_s"], strict=True))
    assert two["efficiency"] == pytest.approx(rounds[1])  # both have the core that there is
    assert two["efficiency_of_share"] == pytest.approx(rounds[1] / 2)
    assert one["efficiency"] is None


@pytest.mark.slow
def test_what_a_real_run_exchanged(real):
    one, two = real.records
    found = by_hand("wrn-10-1", metrics_of(Case(arch="wrn-10-1", batch_size=B)))
    assert two["exchanged"] == found and two["exchange_bytes"] == sum(found.values())
    assert 0 < two["exchange_least_share"] <= two["exchange_share"] < 1
    assert 0 < two["exchange_s"] < max(two["samples_s"])
    assert one["exchanged"] is None and one["exchange_s"] is None


@pytest.mark.slow
def test_a_real_run_is_shown_compared_and_rendered(real, tmp_path, monkeypatch, capsys):
    """What is predicted stands in columns and a table of its own."""
    measured, forecast = real.said.split("wrn-10-1/b4/uiat, predicted for H100")
    assert "efficiency" in measured and "predicted" not in measured
    assert forecast.splitlines()[1].count("predicted: ") == 5
    told = real.records[0]["predicted"]
    assert told["from"] == "step wrn-10-1/b8/uiat, 2026-01-02"
    assert [row["cards"] for row in told["ladder"]] == [8, 16, 32, 64, 128, 256]
    assert all(row["step_s"] is None for row in told["ladder"]), "4 images, 8 cards"
    monkeypatch.chdir(tmp_path)
    other = [r | {"device": "another"} for r in real.records]
    Path("b.jsonl").write_text("".join(json.dumps(r) + "\n" for r in other))
    main(["bench", "compare", str(real.file), "b.jsonl", "--no-bounds"])
    assert "scaling: a step\n" in capsys.readouterr().out
    path = Path(__file__).parents[2] / "benchmarks" / "render.py"
    spec = importlib.util.spec_from_file_location("render", path)
    render = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(render)
    text = render.render("scaling", real.file.parent)
    assert "| case | processes | images each | median |" in text
    assert "| wrn-10-1/b4/uiat | 2 × 1 thread | 2 | " in text


def test_a_sample_against_a_stop_watch():
    """Three steps of which each sleeps: neither longer than from outside nor shorter than that."""
    case = Case(arch="wrn-10-1", batch_size=B, method="natural")
    task = Task(case=case, device="cpu", precision="fp32", compiled=False, threads=1)
    worker = ranks_program.Worker(task, CPU, ALONE)
    step, pause = worker.step, 0.02
    taken = []

    def slow(batch):
        time.sleep(pause)
        taken.append(step(batch))

    slow.net = step.net
    worker.take = lambda steps: [slow(next(worker.batches)) for _ in range(steps)]
    began = time.perf_counter()
    told = worker.sample(3)
    wall = time.perf_counter() - began
    assert len(taken) == 3 and step.taken == 3
    assert 3 * pause <= told["seconds"] <= wall and told["inside_s"] == 0


def test_seconds_and_bytes_inside_exchanges(monkeypatch):
    def slow(self, values):
        time.sleep(0.01)
        return values

    for name in ("add_up", "gathered", "loudest"):
        monkeypatch.setattr(Ranks, name, slow)
    ranks = MeteredRanks(0, 3, meter=Meter(CPU))
    began = time.perf_counter()
    ranks.add_up(torch.zeros(5))
    ranks.gathered(torch.zeros(2, 4, dtype=torch.int64))
    ranks.loudest(0)
    time.sleep(0.01)
    assert 0.03 <= ranks.meter.seconds <= time.perf_counter() - began - 0.01
    assert ranks.meter.bytes == {"summed": 20, "gathered": 3 * 64, "flag": 8}
    ranks.meter.begin()
    assert ranks.meter.seconds == 0 and not ranks.meter.bytes


# --- rows


def test_rows_of_a_cpu(monkeypatch):
    monkeypatch.setattr(suite, "cores", lambda: 8)
    parts = parts_of(ScalingOptions(processes=(4, 2), batch_size=128), CPU)
    assert [(p.name, p.processes, p.threads, p.beside) for p in parts] == [
        ("1 × 2 threads", 1, 2, None),
        ("2 × 2 threads", 2, 2, "1 × 4 threads"),
        ("1 × 4 threads", 1, 4, None),
        ("4 × 2 threads", 4, 2, "1 × 8 threads"),
        ("1 × 8 threads", 1, 8, None),
    ]
    assert {p.batch_size for p in parts} == {128}


def test_rows_of_weak_scaling_and_of_too_few_cores(monkeypatch):
    monkeypatch.setattr(suite, "cores", lambda: 1)
    parts = parts_of(ScalingOptions(processes=(1, 2), batch_size=16, weak=True), CPU)
    assert [(p.name, p.batch_size, p.beside) for p in parts] == [
        ("1 × 1 thread, batch 16", 16, None),
        ("2 × 1 thread, batch 32", 32, "1 × 1 thread, batch 32"),
        ("1 × 1 thread, batch 32", 32, None),
    ]


def test_rows_of_cards(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    parts = parts_of(ScalingOptions(processes=(1, 4)), CUDA)
    assert [(p.name, p.processes, p.beside) for p in parts] == [
        ("1 card", 1, None),
        ("4 cards", 4, None),
    ]


class ScriptedGroup(Group):
    """A process that is no rank, but answers as ranks do: its seconds a step are its threads."""

    def command(self) -> list[str]:
        rank = {"exchanged": {"bytes": {"gradients": 7}, "calls": {}}}
        n, each = self.processes, self.task.threads / self.processes
        ranks = [
            rank | {"seconds": each, "inside_s": each / 4},
            *([rank | {"seconds": each / 2, "inside_s": each / 2}] * (n - 1)),
        ]
        fails = "sys.exit('no room')" if n == 4 else "pass"
        script = (
            f"import json, sys\n{fails}\nprint('noise')\n"
            f"for line in sys.stdin: print({ANSWER!r} + json.dumps({{'ranks': {ranks!r}}}), "
            "flush=True)"
        )
        return [sys.executable, "-c", script]


def test_rows_are_set_beside_each_other_and_a_failed_one_stays_alone(monkeypatch, capsys):
    """The slowest rank's time is the step's; two processes are twice as fast as two threads."""
    monkeypatch.setattr(suite, "Group", ScriptedGroup)
    parts = [
        Part("1 × 1 thread", 1, 1, 12),
        Part("2 × 1 thread", 2, 1, 12, "1 × 2 threads"),
        Part("1 × 2 threads", 1, 2, 12),
        Part("4 × 1 thread", 4, 1, 12, "1 × 2 threads"),
    ]
    case = Case(arch="wrn-10-1", batch_size=12)
    records = suite.measure(case, parts, SETTING, plan=Plan(warmup=1, rounds=2))
    one, two, threads, four = records
    assert [r["median_s"] for r in records] == [1.0, 0.5, 2.0, None]
    assert two["efficiency"] == 4.0 and two["efficiency_of_share"] == 1.0
    assert threads["efficiency"] is None and threads["efficiency_of_share"] == 0.25
    assert two["exchange_share"] == pytest.approx((0.125 + 0.25) / 2 / 0.5)
    assert two["exchange_least_share"] == pytest.approx(0.125 / 0.5)
    assert two["exchange_bytes"] == 7 and one["exchange_bytes"] is None
    assert four["error"] == "RuntimeError: its ranks ended, exit code 1: no room"
    assert four["n"] == 0 and four["efficiency"] is None
    suites.get("scaling").show(records)
    said = capsys.readouterr().out
    assert "4 × 1 thread: RuntimeError: its ranks ended" in said and "400%" in said
    assert "predicted: nothing, for no step of wrn-10-1 by uiat" in said
    assert "2 × 1 thread 500 ms, efficiency 400%" in suites.get("scaling").figures(records)


def group(script: str) -> Group:
    task = Task(case=Case(), device="cpu", precision="fp32", compiled=False, threads=3)
    made = Group("two", 2, task, RanksClock())
    made.command = lambda: [sys.executable, "-c", script]
    return made


def test_the_rank_that_failed_is_named_and_not_those_behind_it():
    lines = [{"error": "RankFailed: rank 1", "follows": True}, {"error": "E: 1", "follows": False}]
    script = f"import json\nfor x in {lines!r}: print({ANSWER!r} + json.dumps(x))"
    one = group(script)
    with pytest.raises(RuntimeError, match=r"^E: 1$"):
        one.start()()
    one.end()


def test_a_group_that_does_not_end_is_ended(monkeypatch):
    monkeypatch.setattr(groups, "PATIENCE", 0.2)
    script = (
        "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f'print({ANSWER!r} + \'{{"ranks": [{{"seconds": 1}}]}}\', flush=True)\ntime.sleep(600)'
    )
    one = group(script)
    one.start()()
    assert one.environment()["OMP_NUM_THREADS"] == "3"
    one.end()
    assert one._process.returncode < 0


def test_steps_are_repeated_until_a_sample_is_long_enough():
    script = (
        "import json, sys\nfor line in sys.stdin: "
        f"print({ANSWER!r} + json.dumps({{'ranks': [{{'seconds': int(line) * 0.5}}]}}), flush=True)"
    )
    one = group(script)
    one.min_sample_s, one.warmup = 1.75, 2
    call = one.start()
    for _ in range(4):
        call()
    one.end()
    assert [s["steps"] for s in one.samples] == [1, 1, 4, 4]
    assert [s["seconds"] for s in one.samples] == [0.5] * 4


def test_a_task_is_read_as_it_was_written():
    phase, settings = Phase("at", 80, 0.01), {"attack": {"eps": "8/255"}}
    case = Case(arch="wrn-10-1", method="uiat-oneoff", phase=phase, settings=settings)
    task = Task(case=case, device="cuda", precision="bf16", compiled=True, threads=4)
    assert Task.read(task.text()) == task


# --- refusals


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--processes", "1", "3"], "--batch-size 128 does not divide by 3 processes"),
        (["--processes", "2", "2"], "--processes names 2 twice"),
        (["--processes", "0", "1"], "--processes needs numbers from 1 to 1024, got 0 1"),
        (["--processes", "-2"], "numbers from 1 to 1024, got -2"),
        (["--processes"], "processes"),
        (["--processes", "two"], "processes"),
        (["--threads", "0"], "threads must be above 0"),
        (["--batch-size", "0"], "batch-size must be above 0"),
        (["--device", "cuda"], "no CUDA device"),
        (["--arch", "resnet-5"], "unknown net 'resnet-5'"),
        (["--method", "magic"], "unknown method 'magic'"),
        (["--recorded", "nowhere.jsonl"], "nowhere.jsonl cannot be read"),
        (["--predict-only", "--json", "x.jsonl"], "--predict-only measures nothing"),
        (["--predict-only", "--arch", "wrn-10-1"], "no step of wrn-10-1 by uiat on one H100"),
    ],
)
def test_bad_input_is_one_line(words, said, refusal, tmp_path):
    assert said in refusal("bench", "scaling", *words)
    assert not list(tmp_path.iterdir())


def test_more_processes_than_cards(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"--processes 2: each needs a CUDA device.* has 1: "):
        ScalingOptions(processes=(1, 2)).counts(CUDA)


@pytest.mark.parametrize(
    "told",
    [
        {"TORCHELASTIC_RUN_ID": "x"},
        {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "RANK": "0", "WORLD_SIZE": "2"},
    ],
)
def test_under_torchrun(told, monkeypatch):
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="run it without torchrun"):
        ScalingOptions().counts(CPU)


def test_predicting_measures_nothing(capsys, monkeypatch):
    monkeypatch.setattr(groups.subprocess, "Popen", None)
    main(["bench", "scaling", "--predict-only", "--arch", "resnet-18"])
    said = capsys.readouterr().out
    assert said.startswith("resnet-18/b128/uiat, predicted for H100\n")
    assert "step resnet-18/b128/uiat, 2026-" in said and "NVIDIA H100 datasheet" in said
