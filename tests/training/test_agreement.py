"""What ranks of a run are refused for, told by two of them: threads that speak as ranks do."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fastuiat.config import UserError
from fastuiat.distributed import ALONE, Ranks
from fastuiat.training import agreement
from fastuiat.training.agreement import refuse_unlike_data, refuse_unlike_ranks, refuse_unseen
from fastuiat.training.config import TrainConfig
from fastuiat.writer import only_writer

CONFIG = TrainConfig(dataset="digits", arch="wrn-10-1", settings={"attack": {"steps": 3}})


@dataclasses.dataclass(frozen=True)
class Speaking(Ranks):
    """A rank of two that are threads."""

    said: Any = None
    both: Any = None

    def of_all(self, value: Any) -> list[Any]:
        self.said[self.rank] = value
        self.both.wait(timeout=10)
        everyone = list(self.said)
        self.both.wait(timeout=10)
        return everyone


def refused(work: Callable[[Ranks], None]) -> list[str | None]:
    """What each of two ranks is told at `work`; None of one that may go on."""
    told: list[str | None] = [None, None]
    said, both = [None, None], threading.Barrier(2)

    def run(rank: int) -> None:
        try:
            work(Speaking(rank, 2, said=said, both=both))
        except UserError as error:
            told[rank] = str(error)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, None),
        ({"workers": 7, "loader": "resident", "data_dir": Path("elsewhere")}, None),
        ({"batch_size": 64}, "rank 1 has another --batch-size than rank 0 (64, not 128)"),
        ({"settings": {"attack": {"steps": 4}}}, "another --steps than rank 0 (4, not 3)"),
        ({"settings": {"attack": {"steps": 3}, "lam": 2.0}}, "another --lam than rank 0 (2.0, not"),
        ({"method": "sat", "settings": {}}, "rank 1 has another --method than rank 0 (sat, not"),
    ],
)
def test_settings(changes, said):
    other = dataclasses.replace(CONFIG, **changes)
    first, second = refused(lambda ranks: refuse_unlike_ranks((CONFIG, other)[ranks.rank], ranks))
    assert first == second
    assert first is None if said is None else said in (first or "")


def test_data():
    known = {"train": {"sha256": "a" * 64}, "extra": None, "split": {"sha256": "b" * 64}}
    assert refused(lambda ranks: refuse_unlike_data(known, ranks)) == [None, None]
    for part, said in (
        ("train", "another training set than rank 0 (cccccccccccc, not aaaaaaaaaaaa)"),
        ("extra", "another --extra-data than rank 0 (cccccccccccc, not None)"),
        ("split", "another split of the training set than rank 0"),
    ):
        other = known | {part: {"sha256": "c" * 64}}
        for line in refused(
            lambda ranks, other=other: refuse_unlike_data((known, other)[ranks.rank], ranks)
        ):
            assert line and said in line


def test_a_folder_that_only_one_sees(tmp_path, monkeypatch):
    monkeypatch.setattr(agreement, "SEEN_WITHIN", 0.3)
    refuse_unseen(tmp_path / "none", ALONE)
    with only_writer(tmp_path / "a", advice=""):
        assert refused(lambda ranks: refuse_unseen(tmp_path / "a", ranks)) == [None, None]
        lines = refused(lambda ranks: refuse_unseen(tmp_path / "ab"[ranks.rank], ranks))
        assert lines[0] and lines[0].startswith(
            f"rank 1 cannot see the run folder {tmp_path / 'a'}"
        )
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / ".lock").write_text("another machine's")
        assert refused(lambda ranks: refuse_unseen(tmp_path / "ab"[ranks.rank], ranks))[0]
