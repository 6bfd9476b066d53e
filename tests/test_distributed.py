"""What ranks exchange, and how they end together: real processes over gloo."""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import sys
import time
from pathlib import Path

import pytest
import torch

from fastuiat import distributed
from fastuiat.config import UserError
from fastuiat.distributed import ALONE, Ranks, process_group
from fastuiat.torchrun import RankFailed

CPU = torch.device("cpu")
WORLD = 3


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def environment(rank: int, world: int, port: str) -> dict[str, str]:
    """What torchrun tells a rank."""
    here = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": world}
    return {k: str(v) for k, v in here.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}


@pytest.fixture
def said_by(start, tmp_path):
    """said_by(JOB): the lines of each rank at a job of this file, in tmp_path."""

    def run(job: str) -> list[list[str]]:
        port = free_port()
        processes = [
            start(
                job, tmp_path, module=__file__,
                environment={**os.environ, **environment(rank, WORLD, port)},
            )
            for rank in range(WORLD)
        ]  # fmt: skip
        for process in processes:
            process.wait(120)
        return [process.stdout.splitlines() for process in processes]

    return run


@pytest.mark.slow
def test_exchanges(said_by, tmp_path):
    assert said_by("exchange") == [
        [
            "sum [3, 30]",
            "rows [[0], [0], [1], [1], [2], [2]]",
            "of all [{'rank': 0}, {'rank': 1}, {'rank': 2}]",
            "from first made by 0",
            f"after first {rank}",
        ]
        for rank in range(WORLD)
    ]
    began = [float((tmp_path / str(rank)).read_text()) for rank in range(WORLD)]
    assert min(began[1:]) > began[0] + 0.2  # the others began when the first had ended


@pytest.mark.slow
def test_what_one_rank_raises_all_raise(said_by):
    *others, own = said_by("raise")
    for said in others:
        assert said == [
            "UserError rank 2: no such net",
            f"OSError [Errno {errno.ENOSPC}] No space left on device: 'full'",
            "RankFailed rank 2 failed: ZeroDivisionError: division by zero",
            "UserError rank 1 has another net than rank 0 (1, not 0): all ranks need the same",
            "UserError first alone",
            "sum 3",
        ]
    assert own[:3] == [
        "UserError no such net",
        f"OSError [Errno {errno.ENOSPC}] No space left on device: 'full'",
        "ZeroDivisionError division by zero",
    ]
    assert own[3:] == others[0][3:]


@pytest.mark.slow
def test_a_killed_rank_ends_the_others(said_by):
    began = time.monotonic()
    first, second, killed = said_by("killed")
    assert time.monotonic() - began < 60
    assert killed == []
    assert len(first) == 1 and first[0].startswith("RankFailed rank 2 has ended or hangs")
    assert len(second) == 1  # the store may be gone with rank 0
    assert re.match("RankFailed (rank 2|a rank) has ended or hangs", second[0])


@pytest.mark.slow
def test_a_rank_that_hangs(said_by):
    first, second, _ = said_by("hang")
    assert len(first) == 1
    assert first[0].startswith("RankFailed rank 2 has ended or hangs: it did not come to step 7, ")
    assert len(second) == 1  # the store may be gone with rank 0
    assert re.match("RankFailed (rank 2|a rank) has ended or hangs", second[0])


@pytest.mark.slow
def test_unlike_devices(said_by):
    for said in said_by("unlike"):
        (line,) = said
        assert "unlike devices (rank 0 cpu, rank 1 meta, rank 2 cpu)" in line


def test_alone_nothing_is_exchanged():
    with process_group(CPU) as ranks:
        assert ranks is ALONE and ranks.is_first
    values = torch.ones(2)
    ranks.add_up(values)
    assert values.tolist() == [1, 1] and ranks.gathered(values) is values
    assert ranks.of_all("a") == ["a"]
    assert ranks.from_first(lambda: 3) == ranks.after_first(lambda: 3) == 3
    ranks.refuse_differences({"net": 1})
    with pytest.raises(ZeroDivisionError), ranks.agreed():
        _ = 1 / 0


def test_fewer_cards_than_ranks(monkeypatch):
    for name, value in environment(0, 4, "1").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(UserError, match=r"4 ranks on this machine.*--nproc-per-node 2"),
        process_group(torch.device("cuda")),
    ):
        pass


def test_nobody_comes(monkeypatch):
    monkeypatch.setattr(distributed, "MEETING", 0.3)
    for rank in (0, 1):
        for name, value in environment(rank, 2, free_port()).items():
            monkeypatch.setenv(name, value)
        with (
            pytest.raises(UserError, match="not all of the 2 ranks came within"),
            process_group(CPU),
        ):
            pass


def exchange(ranks: Ranks, folder: Path) -> None:
    values = torch.tensor([ranks.rank, 10 * ranks.rank])
    ranks.add_up(values)
    print("sum", values.tolist())
    print("rows", ranks.gathered(torch.full((2, 1), ranks.rank)).tolist())
    print("of all", ranks.of_all({"rank": ranks.rank}))
    print("from first", ranks.from_first(lambda: f"made by {ranks.rank}"))

    def make() -> int:
        (folder / str(ranks.rank)).write_text(str(time.time()))
        time.sleep(0.3)
        return ranks.rank

    print("after first", ranks.after_first(make))


def raise_each(ranks: Ranks, folder: Path) -> None:
    def refuse() -> None:
        raise UserError("first alone")

    last = ranks.rank == WORLD - 1
    for error in (
        UserError("no such net"),
        OSError(errno.ENOSPC, "No space left on device", "full"),
        ZeroDivisionError("division by zero"),
    ):
        try:
            with ranks.agreed():
                if last:
                    raise error
        except Exception as found:
            print(type(found).__name__, found)
    for call in (
        lambda: ranks.refuse_differences({"PyTorch": 2, "net": ranks.rank}),
        lambda: ranks.from_first(refuse),
    ):
        try:
            call()
        except UserError as found:
            print(type(found).__name__, found)
    rank = torch.tensor(ranks.rank)
    ranks.add_up(rank)  # they are still together
    print("sum", rank.item())


def leave(ranks: Ranks, folder: Path) -> None:
    ranks.of_all(0)
    if ranks.rank == WORLD - 1:
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.of_all(1)


def hang(ranks: Ranks, folder: Path) -> None:
    ranks.of_all(0)
    ranks.at_step(7)
    if ranks.rank == WORLD - 1:
        time.sleep(8)
        return
    ranks.add_up(torch.zeros(1))


if __name__ == "__main__":
    job, name = sys.argv[1:]
    jobs = {"exchange": exchange, "raise": raise_each, "killed": leave, "hang": hang}
    unlike = job == "unlike" and os.environ["RANK"] == "1"
    patience = 3 if job == "hang" else 60  # a busy machine starts one rank later than another
    try:
        with process_group(torch.device("meta" if unlike else "cpu"), patience=patience) as ranks:
            jobs[job](ranks, Path(name))
    except (RankFailed, UserError) as error:
        print(type(error).__name__, error)
