"""What a step exchanges, counted without one, and the model of steps on H100s, by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fastuiat.bench import predicted, predicted_table
from fastuiat.bench.exchanges import Exchanged, counted
from fastuiat.bench.predicted import SingleCard, exchange_s, predict
from fastuiat.bench.workload import Case, Phase

sys.path.insert(0, str(Path(__file__).parent))
from scaling_by_hand import PIXELS, B, K, by_hand, h100_record, metrics_of

# --- what is exchanged, counted without a step


@pytest.mark.parametrize("arch", ["wrn-10-1", "resnet-18"])
def test_counted_exchanges_of_uiat(arch):
    metrics = metrics_of(Case(arch="wrn-10-1", batch_size=B))
    assert counted(Case(arch=arch, batch_size=B)).bytes == by_hand(arch, metrics)


def test_counted_exchanges_follow_the_method():
    """Natural training has neither z nor P; of a one-off run z moves in its epoch alone."""
    natural = counted(Case(arch="wrn-10-1", method="natural", batch_size=B))
    assert natural.gathered == 0 and natural.calls == {"summed": 1, "flag": 1}
    assert natural.bytes["z and metrics"] < 100
    oneoff = Case(arch="wrn-10-1", method="uiat-oneoff", batch_size=B, phase=Phase("at", 80, 0.01))
    assert counted(oneoff).bytes["z and metrics"] > 4 * K * PIXELS


# --- the model


def test_an_exchange_by_hand():
    """450 GB/s and 3.4 µs a hop inside, 50 GB/s and 14 µs between, 8.4 µs a call."""
    inside = 8.4e-6 + 2 * 7 * 3.4e-6 + 1.75 * 800e6 / 450e9
    assert inside == pytest.approx(3.167e-3, rel=1e-4)
    assert exchange_s(800e6, 1, 1, ways=2) == pytest.approx(inside)
    between = 2 * 3 * 14e-6 + 1.5 * 100e6 / 50e9
    assert exchange_s(800e6, 1, 4, ways=2) == pytest.approx(inside + between)
    rows = 2 * (8.4e-6 + 7 * 3.4e-6 + 3 * 14e-6) + 0.875 * 8e6 / 450e9 + 0.75 * 1e6 / 50e9
    assert exchange_s(8e6, 2, 4, ways=1) == pytest.approx(rows)


def test_a_card_s_step_between_and_beyond_what_was_measured():
    single = SingleCard({128: 1.8, 64: 1.0}, "")
    expected = {0: 0.2, 32: 0.6, 64: 1.0, 96: 1.4, 128: 1.8, 256: 3.4}
    for batch, seconds in expected.items():
        assert single.at(batch, 0.2) == pytest.approx(seconds)


def test_a_predicted_step_by_hand():
    """16.75 M parameters: 0.1 ms of traffic at 3,350 GB/s; 8 and 32 cards, strong and weak."""
    case, single = Case(batch_size=128), SingleCard({128: 0.1281}, "")
    sizes = {"gradients": 67_000_000, "statistics": 0, "z and metrics": 0, "rows of P": 0}
    what = Exchanged(sizes, {"summed": 1})
    strong = predict(case, single, what, weak=False, ladder=(8, 32, 256))
    compute, exchange = 0.0001 + 0.128 / 8, exchange_s(67e6, 1, 1, ways=2)
    assert strong[0]["compute_s"] == pytest.approx(compute)
    assert strong[0]["step_s"] == pytest.approx(compute + exchange)
    assert strong[0]["efficiency"] == pytest.approx(0.1281 / 8 / (compute + exchange))
    assert strong[1]["batch_each"] == 4
    assert strong[1]["exchange_s"] == pytest.approx(exchange_s(67e6, 1, 4, ways=2))
    assert strong[2]["step_s"] is None and strong[2]["batch_each"] == 0.5
    weak = predict(case, single, what, weak=True, ladder=(32,))[0]
    assert weak["compute_s"] == pytest.approx(0.1281) and weak["batch_each"] == 128
    assert weak["images_per_s"] == pytest.approx(32 * 128 / weak["step_s"])


def test_which_records_are_one_card_s_step():
    mine = h100_record("wrn-10-1", 128, 0.02)
    others = [
        mine | {"provider": "convolutions"},
        mine | {"device": "NVIDIA H200"},
        mine | {"error": "out of memory", "median_s": None},
        mine | {"config": mine["config"] | {"precision": "fp32"}},
        mine | {"suite": "table2", "median_s": 0.5, "time": "2027-01-01T00:00:00+00:00"},
    ]
    case = Case(arch="wrn-10-1", batch_size=512)
    found = predicted.single_card([others[-1], mine, *others], case, "bf16")
    assert found is not None and found.seconds == {128: 0.02}
    assert predicted.single_card(others[:-1], case, "bf16") is None
    newer = mine | {"median_s": 0.01, "time": "2026-02-01T00:00:00+00:00"}
    more = h100_record("wrn-10-1", 16, 0.004)
    found = predicted.single_card([newer, mine, more], case, "bf16")
    assert found is not None and found.seconds == {128: 0.01, 16: 0.004}


def test_links_name_their_sources():
    for link in predicted.links().values():
        assert link.rate > 0 and "NVIDIA" in link.source and "NCCL" in link.source
    assert predicted_table.page([]) == ""
