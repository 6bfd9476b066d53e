"""An evaluation shared out by torchrun gives the numbers of one process, to the last sample."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn

import fastuiat
from fastuiat.children import end_with_parent
from fastuiat.config import UserError
from fastuiat.data import ImageSet
from fastuiat.distributed import ALONE, Ranks, process_group
from fastuiat.evaluation import accuracy, evaluate, run_autoattack
from fastuiat.evaluation.attacks import Evaluation
from fastuiat.evaluation.sharing import refuse_other_work
from fastuiat.evaluation.tape import Tapes
from fastuiat.training import run
from fastuiat.training.config import TrainConfig
from tests.processes import Process

sys.path.insert(0, str(Path(__file__).parent))
from test_autoattack import EPS, Flat, Noisy, few_steps, points, small_net

CPU = torch.device("cpu")
N, BATCH = 29, 4  # eight batches, the last one of a single point


def test_every_batch_has_one_rank():
    images = ImageSet("noise", np.zeros((N, 2, 2, 3), np.uint8), np.arange(N), N)
    rows = np.arange(N)[::-1].copy()
    alone = list(accuracy.padded_batches(images, rows, BATCH, CPU))
    for world in (1, 2, 3, 12):
        shared = [
            list(accuracy.padded_batches(images, rows, BATCH, CPU, Ranks(rank, world)))
            for rank in range(world)
        ]
        assert sum(map(len, shared)) == len(alone)
        for number, (_, y, index, count) in enumerate(alone):
            _, own_y, own_index, own_count = shared[number % world][number // world]
            assert torch.equal(y, own_y) and torch.equal(index, own_index) and count == own_count


def test_the_tape_of_a_batch_is_found_by_whoever_takes_it_up(tmp_path):
    state = tmp_path / "a[1].state"
    alone, two = Tapes(state, ALONE), [Tapes(state, Ranks(rank, 2)) for rank in range(2)]
    (tmp_path / "a[1].state.answers").write_text("of place 3")
    for tapes in two:
        tapes.adopt(3)
    assert two[1].path(3).read_text() == "of place 3" and not two[0].path(2).exists()
    assert alone.path(3) == two[1].path(3) and alone.path(2).name == "a[1].state.answers"
    two[0].path(2).write_text("of place 2")
    two[0].remove(range(2, 4))
    assert not two[0].path(2).exists() and two[1].path(3).exists()
    alone.remove(range(3, 4))
    (tmp_path / "a[1].state.answers-7").touch()
    (tmp_path / "a[1].state").touch()
    two[1].clear()
    two[0].clear()
    assert os.listdir(tmp_path) == ["a[1].state"]
    assert Tapes(None, ALONE).path(0) is None


@pytest.fixture
def torchrun(start):
    """torchrun(WORLD, *WORDS): a launcher with the ranks that it starts."""

    def run(world: int, *words: str | Path) -> Process:
        launcher = ("--standalone", f"--nproc-per-node={world}")
        return start(*launcher, *words, module="torch.distributed.run")

    return run


def ended(process: Process) -> str:
    """What it printed; it has gone well."""
    assert process.wait() == 0, process.stderr
    return process.stdout


def run_alone(job: str, folder: Path) -> None:
    folder.mkdir()
    JOBS[job](folder, ALONE)


def written(folder: Path) -> dict[str, Any]:
    """What lies in a folder, but for times, checksums of them, and who took part."""
    return {
        str(path.relative_to(folder)): without_times(json.loads(path.read_text()))
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        timed = ("seconds", "compile_seconds", "part_seconds", "time", "checksum", "ranks")
        return {k: without_times(v) for k, v in value.items() if k not in timed}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def measured(folder: Path, ranks: Ranks) -> None:
    """Records of clean, PGD with restarts, CW, both inverse, and the accuracies of a validation."""
    net = small_net()
    x, y = points(net, N)
    images = ImageSet("noise", (255 * x).byte().permute(0, 2, 3, 1).numpy(), y.numpy(), 4)
    evaluate(
        net, images, attacks=["clean", "pgd", "cw"], eps=(-2 * EPS, 2 * EPS), n=None, seed=3,
        batch_size=BATCH, device=CPU, out=folder, info={"path": "net"}, ranks=ranks,
        settings={"restarts": 4, "steps": 2, "alpha": EPS / 2},
    )  # fmt: skip
    settings = {"attack": {"eps": EPS}}
    config = TrainConfig(dataset="digits", arch="wrn-10-1", settings=settings)
    with mock.patch.object(run, "EVALUATION_BATCH", BATCH):
        shares = run.evaluation_on(images, config, CPU, ranks)(net)
    (folder / f"validation-{ranks.rank}").write_text(json.dumps(shares))


def autoattacked(folder: Path, ranks: Ranks) -> None:
    """The states of several AutoAttacks at their end: all that they go by."""
    for name, version, kind in (
        ("standard", "standard", None), ("plus", "plus", None), ("rand", "rand", Noisy),
        ("flat", "standard", Flat),
    ):  # fmt: skip
        plain = small_net()
        net = kind(*plain).eval() if kind else plain
        result = run_autoattack(
            net, *points(plain, N), eps=EPS, version=version, batch_size=BATCH, device=CPU,
            state_path=folder / name, adjust=few_steps, ranks=ranks,
        )  # fmt: skip
        told = [result.robust.tolist(), result.accuracy, result.points, result.warnings]
        (folder / f"{name}-{ranks.rank}").write_text(json.dumps(told))


class Slow(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.002)
        return super().forward(x)


def slowly(folder: Path, ranks: Ranks) -> None:
    """One AutoAttack that takes its time; each process says who it is."""
    (folder / f"process-{ranks.rank}").write_text(str(os.getpid()))
    net = Slow(*small_net()).eval()
    run_autoattack(
        net, *points(net, N), eps=EPS, version="plus", batch_size=BATCH, device=CPU,
        state_path=folder / "state", adjust=few_steps, ranks=ranks,
    )  # fmt: skip


JOBS = {"measured": measured, "autoattacked": autoattacked, "slowly": slowly}


@pytest.mark.slow
@pytest.mark.parametrize(("job", "world"), [("measured", 2), ("measured", 3), ("autoattacked", 3)])
def test_the_numbers_of_one_process(torchrun, tmp_path, job, world):
    run_alone(job, tmp_path / "alone")
    (tmp_path / "shared").mkdir()
    ended(torchrun(world, __file__, job, tmp_path / "shared"))
    expected, found = written(tmp_path / "alone"), written(tmp_path / "shared")
    of_each = [name for name in expected if name.endswith("-0")]
    for name in of_each:  # every rank has the whole result
        for rank in range(1, world):
            assert found.pop(f"{name[:-1]}{rank}") == expected[name]
    assert found == expected and len(of_each) == (1 if job == "measured" else 4)
    if job == "autoattacked":
        assert found["flat"]["zero_gradients"] and found["plus"]["parts"][-1]["fallen"] >= 0
        assert len({part["points"] for part in found["plus"]["parts"]}) > 2
    else:
        records = [record for name, record in found.items() if name.startswith("eval")]
        assert len(records) == 5 and len({record["accuracy"] for record in records}) > 2
        assert any(len(set(record.get("restart_accuracy", []))) > 1 for record in records)


def wait_for_states(path: Path, count: int, process: Process) -> None:
    """Until so many states have been written since."""
    seen = {path.read_text()} if path.exists() else {""}
    while len(seen) <= count:
        assert process.poll() is None
        with contextlib.suppress(FileNotFoundError):
            seen.add(path.read_text())
        time.sleep(0.001)


@pytest.mark.slow
def test_killed_and_gone_on_with_by_other_worlds(torchrun, tmp_path):
    run_alone("slowly", tmp_path / "alone")
    folder = tmp_path / "shared"
    folder.mkdir()
    done = []
    for world, killed in ((2, 1), (1, "launcher"), (3, "launcher"), (2, 0)):
        process = torchrun(world, __file__, "slowly", folder)
        wait_for_states(folder / "state", 3, process)
        if killed == "launcher":
            process.send_signal(signal.SIGKILL)  # and all ranks end with it
        else:
            os.kill(int((folder / f"process-{killed}").read_text()), signal.SIGKILL)
        assert process.wait(60) != 0
        state = json.loads((folder / "state").read_text())
        done.append((state["run"], sum(part["points"] for part in state["parts"])))
        assert done == sorted(set(done))  # each went further than the one before
    ended(torchrun(2, __file__, "slowly", folder))
    for name in ("alone", "shared"):
        for path in (tmp_path / name).glob("process-*"):
            path.unlink()
    for path in folder.glob(".state-*"):
        path.unlink()  # a kill may leave what was not yet renamed
    assert written(folder) == written(tmp_path / "alone")


@contextlib.contextmanager
def checkpoint(folder: Path) -> Iterator[Path]:
    torch.manual_seed(0)
    torch.save(fastuiat.build_model("wrn-10-1").state_dict(), folder / "net.pt")
    yield folder / "net.pt"


@pytest.mark.slow
def test_the_command(tmp_path, fastuiat, torchrun):
    with checkpoint(tmp_path) as net:
        words = [
            "eval", net, "--arch", "wrn-10-1", "--dataset", "digits", "--attacks", "clean", "pgd",
            "cw", "--n", "70", "--batch-size", "16", "--steps", "2", "--eps", "-4/255", "1/255",
            "--device", "cpu", "--out",
        ]  # fmt: skip
        alone = fastuiat(*words, "alone")
        assert alone.returncode == 0, alone.stderr
        out = ended(torchrun(2, "-m", "--", "fastuiat", *words, tmp_path / "shared"))
        records = written(tmp_path / "alone")
        assert written(tmp_path / "shared") == records and len(records) == 5
        assert out.count("taken:") == out.count("seed 0; records:") == 1
        assert out.count("70 of 70") == 5
        record = json.loads((tmp_path / "shared/eval/clean_n70.json").read_text())
        assert record["ranks"] == 2 and all("ranks" not in r for r in records.values())


@pytest.mark.slow
def test_an_error_is_said_once(tmp_path, torchrun):
    with checkpoint(tmp_path) as net:
        (tmp_path / "eval").write_text("a file where the folder should be")
        words = ["eval", net, "--arch", "wrn-10-1", "--dataset", "digits", "--n", "8"]
        process = torchrun(2, "-m", "--", "fastuiat", *words)
        process.wait(120)
        err = process.stderr
        said = [line for line in err.splitlines() if line.startswith("fastuiat: ")]
        assert len(said) == 1 and "eval cannot be written" in said[0]
        assert err.count("exitcode  : 2") == 2  # of both ranks, as torchrun tells


class Told(Ranks):
    """Two ranks, of which the other one has told what it has."""

    def of_all(self, value: Any) -> list[Any]:
        return [value, value | {"weights": "of another net"}]


def test_another_net_on_another_rank():
    images = ImageSet("noise", np.zeros((3, 8, 8, 3), np.uint8), np.arange(3), 4)
    ranks = Told(0, 2)
    evaluation = Evaluation(
        model=small_net(), images=images, seed=0, batch_size=2, device=CPU, ranks=ranks
    )
    with pytest.raises(UserError, match="rank 1 has another weights than rank 0"):
        refuse_other_work(evaluation, [], [])


if __name__ == "__main__":
    end_with_parent()
    with process_group(CPU) as ranks:
        JOBS[sys.argv[1]](Path(sys.argv[2]), ranks)
