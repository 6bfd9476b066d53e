"""A folder of hundreds of records: each is read once when an evaluation begins."""

from __future__ import annotations

import json

from fastuiat import data
from fastuiat.evaluation import record, test_set
from fastuiat.evaluation.record import file_name, records_begun
from tests.large import write_evaluation


def test_an_evaluation_reads_each_record_once_and_its_own_once_more(tmp_path, monkeypatch):
    images = data.load("digits", tmp_path, "test")
    info = {"path": "x.pt", "sha256": "0" * 64, "weights": "raw"}
    for level in range(1, 61):
        write_evaluation(tmp_path, "pgd", level, [True] * 8)
    named = [file_name("pgd", level / 255, 8) for level in range(1, 31)]
    for level, name in enumerate(named, 1):
        path = tmp_path / "eval" / f"pgd_{level}.json"
        told = json.loads(path.read_text())
        told["checkpoint"] |= {"path": "x.pt"}
        (tmp_path / "eval" / f"{name}.json").write_text(json.dumps(told))
    reads, json_in = [], record.json_in
    for module in (record, test_set):
        monkeypatch.setattr(
            module, "json_in", lambda path: reads.append(path.name) or json_in(path)
        )
    with records_begun(tmp_path, named, info, images, None):
        pass
    assert len(reads) == 90 + 30 and len(set(reads)) == 90
