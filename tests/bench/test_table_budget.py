"""How a table's rows share the time there is, exact on a fake machine."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from unittest import mock

import pytest

from fastuiat.bench import epochs
from fastuiat.bench.epoch_table import show_table
from fastuiat.bench.epochs import plan_for
from fastuiat.bench.timing import NO_TIME, Plan

sys.path.insert(0, str(Path(__file__).parent))
from table_machine import CPU, SECONDS, TABLE2, FakeMachine, on_fake


@pytest.mark.slow
def test_steps_go_on_until_the_spread_is_calm():
    plan = plan_for(CPU, steps=None, steps_per_epoch=390, now=0.0, deadline=None, nets=1)
    calm = on_fake(FakeMachine(lambda name, call: 2.0), ["natural"], plan)
    assert calm[0]["n"] == 5
    # Call 0 compiles and 1 warms up; three rounds of 4 s, then of 2 s: the 80th percentile of n
    # lies at 0.8·(n − 1), and is 2 s as soon as that is not above n − 4.
    late = on_fake(FakeMachine(lambda name, call: 4.0 if call < 5 else 2.0), ["natural"], plan)
    assert late[0]["n"] == 16 and late[0]["median_s"] == 2.0
    never = on_fake(FakeMachine(lambda name, call: 2.0 + call % 2), ["natural"], plan)
    assert never[0]["n"] == 390 and not never[0]["error"]


def test_the_budget_is_shared_among_the_nets_and_ends_the_rounds():
    plan = plan_for(CPU, steps=None, steps_per_epoch=390, now=100.0, deadline=400.0, nets=3)
    assert plan.until == 200.0
    machine = FakeMachine(lambda name, call: 5.0 + call % 2)  # never calm
    machine.time = 100.0
    (record,) = on_fake(machine, ["natural"], plan)
    # Two calls before the rounds, one round as reserve for the memory's call.
    assert machine.time <= 200.0 and 12 <= record["n"] <= 16
    exact = plan_for(CPU, steps=7, steps_per_epoch=390, now=0.0, deadline=None, nets=1)
    assert exact.rounds == 7 and exact.max_rounds is None and exact.until is None


def test_rows_that_time_leaves_no_room_for_say_so():
    """Built first is what ratios refer to, though it stands last."""
    machine = FakeMachine(lambda name, call: 1.0, build_s=40.0)
    plan = Plan(warmup=0, rounds=5, until=120.0)
    records = on_fake(machine, ["natural", "trades", "iat", "uiat"], plan)
    assert [r["row"] for r in records if r["n"]] == ["natural", "uiat"]
    assert {r["error"] for r in records} == {None, NO_TIME}
    show_table(TABLE2, records)


@pytest.mark.slow
def test_a_short_budget_shortens_all_rows_before_it_leaves_one_out():
    """Table 2 whole: seven rows ready after 8 s each, two phases more after 2 s, rounds of 1 s a
    sample. At 60 s a round of nine is all that fits."""

    class Machine(FakeMachine):
        def ours(self, part):
            shared = part.case.phase and part.case.phase.name != "before"
            self.time -= self.build_s if shared else 0.0
            return super().ours(part)

        naive = ours

    def measured(until):
        machine = Machine(lambda name, call: 1.0, build_s=7.0)
        limits = {"steps_per_epoch": 390, "now": 0.0, "deadline": until, "nets": 1}
        plan = dataclasses.replace(plan_for(CPU, steps=None, **limits), warmup=0)
        return on_fake(machine, plan=plan), machine.time

    records, ended = measured(70.0)
    assert [r["error"] for r in records] == [None] * 10 and {r["n"] for r in records} == {1}
    assert ended == 7 * 8 + 2 * 1 + 9
    records, _ = measured(100.0)
    rows = {r["row"]: r for r in records if "phase_share" not in r}
    # 33 s more: three rounds of seven samples, and nine samples' time kept for the memory.
    assert (rows["uiat"]["n"], rows["uiat-oneoff"]["n"]) == (4, 2)
    assert all(r["ratios"]["uiat"]["median"] == 1 for r in rows.values())
    records, _ = measured(60.0)
    assert [r["row"] for r in records if r["error"]] == ["uiat-oneoff"] * 4


def test_phases_take_turns_and_the_row_counts_whole_ones():
    """A machine twice as slow from round to round: only the same round's ratio is right."""
    rounds = {"natural": [0, 1, 2, 3, 4, 5], "before": [0, 1, 4], "at": [0, 2, 5], "after": [0, 3]}

    def seconds(name, call):
        row = name.rpartition("/")[2]
        return SECONDS[name] * 2 ** (rounds[row][call - 1] if call else 0)

    plan = Plan(warmup=0, rounds=6, turns=True)
    natural, whole, before, at, after = on_fake(
        FakeMachine(seconds), ["natural", "uiat-oneoff"], plan
    )
    assert [r["n"] for r in (natural, whole, before, at, after)] == [6, 2, 3, 3, 2]
    assert before["samples_s"] == [15.0, 30.0, 240.0] and after["samples_s"] == [12.0, 96.0]
    assert whole["samples_s"] == pytest.approx(
        [0.79 * 15 + 0.01 * 17 + 0.2 * 12, 0.79 * 30 + 0.01 * 68 + 0.2 * 96]
    )
    mean = 0.79 * 15.0 + 0.01 * 17.0 + 0.2 * 12.0
    ratio = whole["ratios"]["natural"]
    assert [ratio[key] for key in ("p20", "median", "p80")] == pytest.approx([mean / 2] * 3)
    assert before["ratios"]["natural"]["p80"] == 7.5


def test_phases_share_what_their_trainers_graphs_hold():
    held = iter([0, 10, 10, 300, 300, 320, 320, 320])  # before and after each is built
    with mock.patch.object(epochs, "graph_memory", lambda device: lambda: next(held)):
        machine = FakeMachine(lambda name, call: SECONDS[name])
        natural, whole, *parts = on_fake(machine, ["natural", "uiat-oneoff"])
    assert (natural["peak_bytes"], natural["graph_bytes"]) == (7 + 10, 10)
    assert [r["peak_bytes"] for r in (whole, *parts)] == [7 + 310] * 4
    assert whole["graph_bytes"] == 310
