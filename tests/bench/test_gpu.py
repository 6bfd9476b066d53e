"""`fastuiat bench gpu`: what it keeps, whatever happens to its stages."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastuiat.bench.gpu import report
from fastuiat.bench.gpu.stages import Place, Stage
from fastuiat.config import UserError

sys.path.insert(0, str(Path(__file__).parent))
from quick_stages import (
    AT_ONCE,
    HARDWARE,
    call,
    line,
    machine,
    members,
    out,
    said,
    shell,
    state_of,
    verdicts,
)

pytestmark = pytest.mark.slow

__all__ = ["machine", "out"]  # fixtures


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
    stage = Stage("s", 0.03, (*hangs.commands, *passes.commands), least=2.0, **AT_ONCE)
    call(out, [stage, shell("rest", "")])
    entry = state_of(out)["stages"]["s"]
    assert entry["codes"] == [None, 0] and entry["verdict"] == "cut off"
    assert "21.4 ms" in entry["figures"] and entry["seconds"] < 2.0


DRIVER = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from quick_stages import call, line, said, shell

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
    state = {"format": "fastuiat-gpu-1", "id": 12 * "a", "time": "", "device": "a", "sources": "s"}
    whole = state | {"stages": {}, "calls": []}
    changed = ({"stages": {"a": []}}, {"stages": {"a": {}}}, {"calls": [5]}, {"device": 5})
    impossible = [json.dumps(whole | change) for change in changed]
    for broken in ("{", "[]", '{"format": "fastuiat-gpu-1", "id": "../../etc"}', *impossible):
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
        (["--only", "kernels", "nope"], "unknown stage 'nope': choose from kernels, cuda, conv"),
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


def test_what_had_failed_comes_behind_what_was_not_tried(out):
    stages = [shell("bad", "exit 1"), shell("never", "exit 0", least=1000.0)]
    call(out, stages)
    assert verdicts(out) == {"bad": "failed", "never": "not run"}
    call(out, [shell("bad", "exit 0"), shell("never", f"{said(line(case='tried'))}")])
    tried = [json.loads(text)["case"] for text in (out / "records.jsonl").read_text().splitlines()]
    assert verdicts(out) == {"bad": "passed", "never": "passed"} and tried == ["tried"]
    times = {name: entry["time"] for name, entry in state_of(out)["stages"].items()}
    assert times["never"] <= times["bad"]


def test_a_row_without_what_it_is_for_is_no_pass(out):
    lost = line(profile=None, profile_error="no CUPTI")
    replay = line(case="sign_step", provider="triton", replay_error="it waits")
    calls = line(case="sign_step", provider="eager", replay_error="it waits")
    again = f"{said(line())}; {said(line(profile={'rows': []}))}"
    call(
        out,
        [
            shell("step", f"{said(line())}; {said(lost)}"),
            shell("operations", said(replay)),
            shell("eager", said(calls)),
            shell("profiled", again),
            shell("warned", "echo out of memory; seq 100; exit 1"),
            Stage(
                "both",
                0.03,
                (*shell("s", "sleep 50").commands, *shell("s", "echo so; exit 4").commands),
                least=2.0,
                **AT_ONCE,
            ),
            shell("rest", ""),
        ],
    )
    assert verdicts(out) == {
        "step": "failed",
        "operations": "failed",
        "eager": "passed",
        "profiled": "passed",
        "warned": "failed",
        "both": "failed",
        "rest": "passed",
    }
    entries = state_of(out)["stages"]
    assert entries["step"]["note"] == "no CUPTI" and entries["operations"]["note"] == "it waits"
    assert entries["both"]["note"] == "exit code 4: so"


def test_a_bench_is_asked_to_stop_before_it_is_killed(out):
    """SIGINT, and time to write down what it has."""
    tell = said(line(case="kept")).replace("$1", "$records")
    script = f"records=$1; stop() {{ {tell}; exit 130; }}; trap stop INT; sleep 50 & wait"
    asked = {"stop": signal.SIGINT, "grace": 3.0}
    call(out, [shell("step", script, 0.05, least=3.0, **asked), shell("rest", "")])
    assert verdicts(out) == {"step": "cut off", "rest": "passed"}
    assert json.loads((out / "records.jsonl").read_text())["case"] == "kept"
