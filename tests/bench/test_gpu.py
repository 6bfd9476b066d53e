"""`fastuiat bench gpu` with stages that are quick: what it keeps, whatever happens to them."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import pytest
import torch

from fastuiat.bench.cli import SUITES
from fastuiat.bench.gpu import packing, recorded, report, results
from fastuiat.bench.gpu import stages as table
from fastuiat.bench.gpu.runner import GpuOptions, run
from fastuiat.bench.gpu.stages import STAGES, TRAINED, Place, Stage, train_figures
from fastuiat.bench.record import config_hash
from fastuiat.commands.parsing import parse
from fastuiat.config import UserError

HARDWARE = {
    "device": "NVIDIA Test 80GB",
    "gpu": {"driver": "1.2"},
    "versions": {"torch": "9.9", "triton": "3.9", "python": "3.12.3"},
    "commit": "abcdef0123456789",
    "dirty": False,
}
CONFIG = {"arch": "wrn-10-1", "batch_size": 4}
RECORD = {
    "format": "fastuiat-bench-1",
    "suite": "step",
    "case": "wrn-10-1/b4/uiat",
    "provider": "fastuiat",
    "device": HARDWARE["device"],
    "n": 5,
    **dict.fromkeys(("median_s", "p20_s", "p80_s"), 0.0214),
    "peak_share": 0.181,
    "error": None,
    "config": CONFIG,
    "config_hash": config_hash(CONFIG),
    "time": "2026-02-03T04:05:06+00:00",
}


def line(**more) -> str:
    return json.dumps(RECORD | more)


def shell(name: str, script: str, share: float = 1.0, **more) -> Stage:
    """A stage of a shell script: $1 is its records, $2 the folder of what stays here."""

    def command(place: Place) -> list[str]:
        return ["sh", "-c", script, name, str(place.records), str(place.work)]

    return Stage(name, share, (command,), **{"least": 0.5, **more})


def said(record: str) -> str:
    return f"echo '{record}' >> $1"


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """machine(NAME): from now on the temporary folder is that of this machine."""

    def be(name: str) -> Path:
        folder = tmp_path / f"tmp-{name}"
        folder.mkdir(exist_ok=True)
        monkeypatch.setenv("TMPDIR", str(folder))
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        return folder

    be("first")
    return be


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "report"


def call(out: Path, stages, budget=60.0, hardware=HARDWARE, **options):
    return run(GpuOptions(out=out, budget=budget, **options), stages=stages, hardware=hardware)


def state_of(out: Path) -> dict:
    return json.loads((out / "state.json").read_text())


def verdicts(out: Path) -> dict[str, str]:
    return {name: entry["verdict"] for name, entry in state_of(out)["stages"].items()}


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar}


def test_each_stage_comes_to_a_row_and_the_others_go_on(out, capsys):
    oom = line(provider="naive", n=0, median_s=None, p20_s=None, p80_s=None, error="out of memory")
    no_time = line(provider="naive", n=0, median_s=None, error="no time left to measure it: give "
                   "--budget more seconds, or ask for less")  # fmt: skip
    stages = [
        shell("passes", said(line())),
        shell("fails", "echo what went wrong; exit 3"),
        shell("hangs", f"{said(line(case='half'))}; printf '{{\"suite\": ' >> $1; sleep 50", 0.03),
        shell("fills", f"{said(line(case='full'))}; {said(oom)}"),
        shell("crashes", "echo 'torch.OutOfMemoryError: CUDA out of memory. Tried' >&2; exit 1"),
        shell("lacks", "echo \"ModuleNotFoundError: No module named 'tyro.conf'\"; exit 1"),
        shell("needs", "exit 0", needs=("json|nowhere", "nowhere_to_be_found")),
        shell("elsewhere", "exit 0", obstacle=lambda place: f"nothing in {place.data_dir.name}"),
        shell("hurries", f"{said(line(case='hurried'))}; {said(no_time)}"),
        shell("long", "exit 0", least=1000.0),
        shell("unasked", "exit 0"),
    ]
    began = time.monotonic()
    call(out, stages, skip=("unasked",))
    assert time.monotonic() - began < 20
    assert verdicts(out) == {
        "passes": "passed",
        "fails": "failed",
        "hangs": "cut off",
        "fills": "out of memory",
        "crashes": "out of memory",
        "lacks": "missing",
        "needs": "missing",
        "elsewhere": "not run",
        "hurries": "cut off",
        "long": "not run",
        "unasked": "not run",
    }
    entries = state_of(out)["stages"]
    assert entries["hangs"]["codes"] == [None] and 0.4 < entries["hangs"]["seconds"] < 6
    notes = {name: entry.get("note") for name, entry in entries.items()}
    assert (
        notes["fails"] == "exit code 3: what went wrong"
        and notes["lacks"] == "the package tyro is not here"
    )
    assert notes["needs"] == "the package nowhere_to_be_found is not here"
    assert notes["elsewhere"] == "nothing in data" and notes["long"] == "no time left for it"
    assert entries["passes"]["figures"] == "wrn-10-1/b4/uiat 21.4 ms, 18.1% of peak"
    assert "1 of 2 rows failed or had no time" in entries["fills"]["figures"]
    records = [json.loads(text) for text in (out / "records.jsonl").read_text().splitlines()]
    whole = ["wrn-10-1/b4/uiat", "half", "full", "wrn-10-1/b4/uiat", "hurried", "wrn-10-1/b4/uiat"]
    assert [r["case"] for r in records] == whole
    assert b"what went wrong" in members(out / "logs.tar.gz")["fails.log"]
    printed = capsys.readouterr().out
    summary = (out / "summary.txt").read_text()
    assert printed.endswith(summary) and len(summary.splitlines()) <= 25
    assert summary.startswith("NVIDIA Test 80GB (driver 1.2): torch 9.9, triton 3.9, python 3.12.3")
    assert "at abcdef0123\n" in summary
    assert sorted(p.name for p in out.iterdir()) == [
        "logs.tar.gz",
        "records.jsonl",
        "state.json",
        "summary.txt",
    ]


def test_called_again_what_passed_is_left_out(out, machine):
    """On a fresh machine too: there the logs of before are in the archive as well."""
    ran = out.parent / "ran"
    once = f"test -e {ran}.went || {{ touch {ran}.went; exit 1; }}"
    stages = [
        shell("good", f"{said(line(case='good'))}; echo good >> {ran}; echo well done"),
        shell("bad", f"echo bad >> {ran}; {once}"),
    ]
    call(out, stages)
    assert verdicts(out) == {"good": "passed", "bad": "failed"}
    machine("second")
    call(out, stages)
    assert verdicts(out) == {"good": "passed", "bad": "passed"}
    assert ran.read_text().split() == ["good", "bad", "bad"]
    assert [json.loads(x)["case"] for x in (out / "records.jsonl").read_text().splitlines()] == [
        "good"
    ]
    assert b"well done" in members(out / "logs.tar.gz")["good.log"]
    assert len(state_of(out)["calls"]) == 2
    call(out, stages)
    assert ran.read_text().split() == ["good", "bad", "bad"], "nothing was left to do"


def test_what_a_stage_leaves_over_the_next_have(out):
    call(out, [shell("a", "", 1.0), shell("b", "", 1.0), shell("c", "", 2.0)])
    given = [entry["allotted"] for entry in state_of(out)["stages"].values()]
    assert given[0] == pytest.approx(54 / 4, abs=2) and given[2] == pytest.approx(53, abs=3)
    assert given[1] == pytest.approx(54 / 3, abs=2)


def test_the_commands_of_a_stage_share_its_time(out):
    hangs, passes = shell("s", "sleep 50"), shell("s", said(line()))
    stage = Stage("s", 0.03, (*hangs.commands, *passes.commands), least=2.0)
    call(out, [stage, shell("rest", "")])
    entry = state_of(out)["stages"]["s"]
    assert entry["codes"] == [None, 0] and entry["verdict"] == "cut off"
    assert "21.4 ms" in entry["figures"] and entry["seconds"] < 2.0


DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from test_gpu import HARDWARE, call, line, said, shell

out, folder = Path(sys.argv[1]), sys.argv[2]
call(out, [
    shell("first", said(line(case="first")) + f"; echo first >> {{folder}}/ran"),
    shell("second", said(line(case="second")) + f"; sleep 600 & echo $$ $! > {{folder}}/pids.new; "
          f"mv {{folder}}/pids.new {{folder}}/pids; wait"),
])
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_for(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_killed_in_the_middle_it_loses_the_running_stage_alone(out, signum):
    folder = out.parent
    script = folder / "driver.py"
    script.write_text(DRIVER.format(path=[str(Path(__file__).parent)]))
    process = subprocess.Popen(
        [sys.executable, script, out, folder], stdout=subprocess.PIPE, text=True
    )
    wait_for(lambda: (folder / "pids").exists())
    process.send_signal(signum)
    printed, _ = process.communicate(timeout=30)
    pids = [int(word) for word in (folder / "pids").read_text().split()]
    wait_for(lambda: not any(map(alive, pids)), 10)
    if signum == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        assert verdicts(out) == {"first": "passed", "second": "running"}
    else:
        assert process.returncode != 0 and printed.endswith((out / "summary.txt").read_text())
        assert verdicts(out) == {"first": "passed", "second": "cut off"}
    (out / ".state.json-0123abcd").write_text("half")  # as a kill may leave it
    stages = [
        shell("first", f"echo first >> {folder}/ran"),
        shell("second", said(line(case="again"))),
    ]
    call(out, stages)
    assert verdicts(out) == {"first": "passed", "second": "passed"}
    assert (folder / "ran").read_text().split() == ["first"]
    cases = [json.loads(x)["case"] for x in (out / "records.jsonl").read_text().splitlines()]
    assert cases == ["first", "second", "again"]
    assert not list(out.glob(".*"))


def test_a_signal_first_so_that_it_can_save_its_state(out, machine):
    """And what it saved goes on, on a fresh machine too."""
    script = """
        cd $2; mkdir -p train/sat/seed-0; cd train; echo . >> sat/seed-0/config.json
        trap 'echo saved > sat/seed-0/last.pt; exit 143' TERM
        test -e sat/seed-0/last.pt && exit 0
        sleep 50 & wait
    """
    stages = [shell("train", script, 0.03, stop=signal.SIGTERM, grace=1.0), shell("rest", "")]
    call(out, stages)
    assert verdicts(out)["train"] == "cut off"
    assert members(out / "train.tar.gz")["sat/seed-0/last.pt"] == b"saved\n"
    machine("second")
    call(out, stages)
    assert verdicts(out)["train"] == "passed"
    assert members(out / "train.tar.gz")["sat/seed-0/config.json"] == b".\n.\n"


def test_runs_that_are_too_large_stay_behind_and_the_summary_says_so(out, machine, monkeypatch):
    monkeypatch.setattr(packing, "LIMIT", 200_000)
    document = {"columns": ["pgd"], "rows": [
        {"row": name, "seeds": {"0": {"pgd": 50.0}}, "ours": {"pgd": {"mean": 50.0}}}
        for name in ("small", "large")
    ]}  # fmt: skip
    script = f"""
        mkdir -p $2/train; cd $2/train; mkdir -p small/seed-0 large/seed-0
        touch small/seed-0/config.json large/seed-0/config.json
        head -c 300000 /dev/urandom > large/seed-0/last.pt
        echo '{json.dumps(document)}' > {TRAINED}.json
    """
    call(out, [shell("train", script, figures=train_figures)])
    kept = members(out / "train.tar.gz")
    assert sorted(kept) == [f"{TRAINED}.json", "small/seed-0/config.json"]
    assert state_of(out)["stages"]["train"]["figures"] == "small pgd 50.0; large pgd 50.0"
    assert "kept here: of train, large/seed-0\n" in (out / "summary.txt").read_text()
    machine("second")
    call(out, [shell("train", script), shell("more", "ls $2/train")])
    assert b"cifar10-20-before-1.json" in members(out / "logs.tar.gz")["more.log"]


def test_caches_travel(out, machine):
    compiles = "mkdir -p $TRITON_CACHE_DIR/k; test -e $TRITON_CACHE_DIR/k/cubin || exit 7"
    prepares = "mkdir -p $TRITON_CACHE_DIR/k && echo code > $TRITON_CACHE_DIR/k/cubin"
    call(out, [shell("cold", compiles), shell("warm", prepares)])
    assert members(out / "caches.tar.gz") == {"triton/k/cubin": b"code\n"}
    assert verdicts(out)["cold"] == "failed"
    machine("second")
    call(out, [shell("cold", compiles)])
    assert verdicts(out)["cold"] == "passed"


def test_the_folder_stays_small(out):
    noise = "head -c 9000000 /dev/urandom; echo the end of $0"
    stages = [shell(name, noise) for name in "ab"]
    call(out, stages)
    sizes = {path.name: path.stat().st_size for path in out.iterdir()}
    assert len(sizes) <= 8 and max(sizes.values()) < 16_000_000, sizes
    logs = members(out / "logs.tar.gz")
    assert sorted(logs) == ["a.log", "b.log"]
    assert all(logs[f"{name}.log"].endswith(f"the end of {name}\n".encode()) for name in "ab")
    assert all(b"bytes before this are left out" in content[:100] for content in logs.values())
    assert all(path.is_file() for path in out.iterdir())


def test_records_that_do_not_fit_are_the_oldest(monkeypatch):
    monkeypatch.setattr(report, "LIMIT", 10)
    assert report.newest(["1234", "5678", "9"]) == ["5678\n", "9\n"]


def test_a_folder_of_other_sources_or_another_device_is_refused(out, monkeypatch):
    stages = [shell("a", "")]
    call(out, stages)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    (out.parent / "report-nvidia-test-80gb-fedcba9876").mkdir()  # a name that is taken
    for hardware, words in (
        (HARDWARE | {"commit": "fedcba9876543210"}, ("of abcdef0123, these sources are fedcba9876",
                                                     "report-nvidia-test-80gb-fedcba9876-2")),
        (HARDWARE | {"device": "NVIDIA H200"}, ("of NVIDIA Test 80GB, this is NVIDIA H200",
                                                f"--out {out}-nvidia-h200-abcdef0123")),
    ):  # fmt: skip
        with pytest.raises(UserError) as refused:
            call(out, stages, hardware=hardware)
        assert all(word in str(refused.value) for word in words)
    monkeypatch.setattr(report, "digest_of_sources", lambda: "changed")
    with pytest.raises(UserError, match="other changes than these sources have: choose a new"):
        call(out, stages)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_folder_that_is_no_report_is_refused(out):
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"no report of bench gpu: choose a new folder"):
        call(out, [shell("a", "")])
    for broken in ("{", "[]", '{"format": "fastuiat-gpu-1", "id": "../../etc"}'):
        (out / "state.json").write_text(broken)
        with pytest.raises(UserError, match=r"state.json is damaged.*choose a new folder"):
            call(out, [shell("a", "")])
    assert (out / "thesis.tex").read_text() == "mine"
    (out.parent / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made: Not a directory"):
        call(out.parent / "file" / "report", [shell("a", "")])


def test_one_call_at_a_time(out):
    def again(place: Place) -> list[str]:
        with pytest.raises(UserError, match="another bench gpu is filling"):
            call(out, [shell("a", "")])
        return ["true"]

    call(out, [Stage("a", 1.0, (again,))])
    assert verdicts(out) == {"a": "passed"}


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["--budget", "59"], "--budget 59 is too short"),
        (["--budget", "nan"], "--budget nan is too short"),
        (["--only", "kernels", "nope"], "unknown stage 'nope': choose from kernels, cuda, step"),
        (["--skip", "stairs"], "unknown stage 'stairs'"),
        (["--only", "cuda", "--skip", "cuda"], "--only and --skip leave no stage"),
        ([], "PyTorch sees no CUDA device here"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    words, answer, refusal, tmp_path, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = sorted(tmp_path.rglob("*"))
    assert answer in refusal("bench", "gpu", *words)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_outcomes_of_tests_survive_a_run_that_does_not(out, tmp_path, monkeypatch):
    """One test of each kind, then one that ends the process: no report of pytest's own is left."""
    folder = tmp_path / "checks"
    folder.mkdir()
    (folder / "test_some.py").write_text(
        "import os, pytest\n"
        "def test_good(): pass\n"
        "@pytest.mark.parametrize('n', [1, 2])\n"
        "def test_bad(n): assert n == 2\n"
        "@pytest.fixture\n"
        "def broken():\n    yield\n    raise OSError\n"
        "def test_ends_badly(broken): pass\n"
        "def test_skipped(): pytest.skip()\n"
        "def test_crashes(): os.kill(os.getpid(), 9)\n"
        "def test_never_begun(): pass\n"
    )
    (folder / "test_unreadable.py").write_text("import nothing_of_this_name\n")
    monkeypatch.setattr(table, "cores", lambda: 1)
    stage = table.tests_in("checks", str(folder), 1.0, [])
    call(out, [dataclasses.replace(stage, tests="checks")])
    entry = state_of(out)["stages"]["checks"]
    assert entry["verdict"] == "failed"
    assert entry["note"] == "the package nothing_of_this_name is not here"
    assert entry["codes"] == [128 + signal.SIGKILL]
    failed = ["test_unreadable.py", "test_some.py::test_bad[1]", "test_some.py::test_ends_badly"]
    counts = {"total": 8, "passed": 2, "failed": 3, "skipped": 1}
    assert entry["tests"] == counts | {"failed_tests": failed}
    assert entry["figures"] == "2 of 8 tests passed, 3 failed, 1 skipped, 2 not ended"
    assert f"failed: checks: {failed[0]}, checks: {failed[1]}" in (out / "summary.txt").read_text()


def test_tests_use_what_plugins_there_are(tmp_path, monkeypatch):
    """Neither xdist nor pytest-timeout need be there."""
    monkeypatch.setattr(table, "cores", lambda: 16)
    place = Place(tmp_path, tmp_path, tmp_path, "cuda", 100.0)
    words = STAGES[1].commands[0](place)
    assert words[words.index("-n") + 1] == "4" and "--timeout=75" in words
    small = dataclasses.replace(place, memory_bytes=24 << 30)
    assert "-n 3 " in " ".join(STAGES[1].commands[0](small))
    assert f"--junitxml={place.junit}" in words and str(tmp_path / "tests/cuda") in words
    monkeypatch.setattr(table, "has", lambda package: False)
    words = STAGES[1].commands[0](place)
    assert "-n" not in words and not [word for word in words if word.startswith("--timeout")]


def test_the_figures_that_matter():
    """Of real kinds of records; and one that lacks what is shown loses nothing else."""
    rows = [("convolution forward", 0.3), ("idle", 0.05), ("convolution forward", 0.2)]
    profile = {"rows": [{"kind": kind, "share": share} for kind, share in rows], "layers": []}
    naive = RECORD | {"provider": "naive", "median_s": 0.0723, "ratio_median": 3.378}
    step = results.figures([RECORD | {"profile": profile}, naive])
    assert step == (
        "wrn-10-1/b4/uiat 21.4 ms, 18.1% of peak, convolution forward 50%, idle 5% (naive 3.38×)"
    )
    failed = {"profile": None, "profile_error": "no CUPTI"}
    assert "of peak, no profile: no CUPTI" in results.figures([RECORD | failed])
    row = RECORD | {"suite": "table2", "row": "uiat", "epoch_s": 9.66}
    assert results.figures([row, row | {"row": "hat", "epoch_s": 11.22}]) == (
        "wrn-10-1 uiat 0.161, hat 0.187 min/epoch"
    )
    assert "1 records, not understood (KeyError: 'row')" in results.figures(
        [RECORD | {"suite": "table5"}]
    )
    by_way = [
        RECORD | {"suite": "autoattack", "provider": provider, "config": CONFIG | {"compile": on}}
        for provider, on in (("package b512", True), ("fastuiat", True), ("fastuiat", False))
    ]
    assert results.figures(by_way) == (
        "package b512 21.4 ms, fastuiat compiled 21.4 ms, fastuiat eager 21.4 ms"
    )


def test_what_a_stage_lacks(tmp_path):
    """Of an installed package, without CIFAR-10, without FFCV."""
    (tmp_path / "data").mkdir()
    place = Place(tmp_path, tmp_path / "data", tmp_path, "x", 100.0)
    stage = {stage.name: stage for stage in STAGES}
    assert "no tests: call it from a checkout" in stage["cuda"].obstacle(place)
    assert "no CIFAR-10 in" in stage["train"].obstacle(place)
    (tmp_path / "data" / "cifar-10-python.tar.gz").touch()
    assert stage["train"].obstacle(place) is None and stage["step"].obstacle(place) is None
    checkout = dataclasses.replace(place, root=Path(__file__).parents[2])
    assert stage["cuda"].obstacle(checkout) is None


def test_the_stages_are_the_ones_that_are_promised(tmp_path):
    """In order of worth; and every bench that they call takes what it is told."""
    assert [stage.name for stage in STAGES] == [
        "kernels",
        "cuda",
        "step",
        "train",
        "table2-resnet-18",
        "operations",
        "table2-wrn",
        "table5",
        "autoattack",
        "loader",
    ]
    root = Path(__file__).parents[2]
    for stage in STAGES:
        place = Place(root, tmp_path, tmp_path, stage.name, 100.0)
        assert not stage.tests or (root / stage.tests).is_dir()
        for make in stage.commands:
            python, m, _, *words = make(place)
            assert (python, m) == (sys.executable, "-m")
            if words[0] == "bench":
                suite, *flags = [word for word in words[1:] if word != "--profile"]
                options = parse(SUITES[suite][0], flags, prog="fastuiat bench")
                assert options.json == place.records and options.device == "cuda"
                assert 0 < options.budget <= 100
    without_train = [stage for stage in STAGES if stage.name != "train"]
    first = sum(stage.share for stage in without_train[:4])
    assert first / sum(stage.share for stage in without_train) > 0.8


def test_reports_are_kept_and_shown(out, tmp_path):
    kept = tmp_path / "results"
    kept.mkdir()
    assert recorded.table_of(kept) == "None yet.\n"
    call(out, [shell("step", said(line())), shell("cuda", "exit 1"), shell("far", "", least=1e4)])
    state = state_of(out)
    tests = {"total": 9, "passed": 4, "failed": 2, "skipped": 0}
    state["stages"]["cuda"]["tests"] = tests | {"failed_tests": ["t.py::a", "t.py::b"]}
    (out / "state.json").write_text(json.dumps(state))
    for _ in range(2):  # what is there already stays once
        files = recorded.add(out, kept)
    assert [file.name for file in files] == ["gpu-nvidia-test-80gb-abcdef0123.json", "step.jsonl"]
    assert (kept / "step.jsonl").read_text() == line() + "\n"
    text = recorded.table_of(kept)
    assert (
        f"| NVIDIA Test 80GB | torch 9.9, triton 3.9, python 3.12.3 | abcdef0123 | "
        f"{state['time'][:10]} | step | cuda (4 of 9 tests passed, 2 failed, 3 not ended) | far |"
        in text
    )
    named = "- abcdef0123 on NVIDIA Test 80GB, failed in cuda: `t.py::a`, `t.py::b`; exit code 1."
    assert text.endswith(f"\n\n{named}\n")
    with pytest.raises(UserError, match="name a folder that bench gpu has filled"):
        recorded.add(tmp_path, kept)
