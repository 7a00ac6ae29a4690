"""The campaign's schedules and traffic follow from their seeds; its measures say what happened."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import fatal_worker
import pytest
from campaign.faults import STRIKES
from campaign.kinds import KINDS, POINTS, TRANSACTION_POINTS, Outcome
from campaign.measure import Emitted, percentile, recoveries
from campaign.schedule import Allowed, Schedule, make_schedule
from campaign.stage import Strike
from campaign.traffic import chunks

SEEDS = range(300)
EVERYTHING = Allowed()


def drawn(allowed: Allowed = EVERYTHING) -> list[Schedule]:
    return [make_schedule(seed, allowed) for seed in SEEDS]


def test_a_schedule_and_its_traffic_follow_from_the_seed_alone() -> None:
    assert drawn() == drawn()
    plan = make_schedule(7, EVERYTHING)
    assert list(chunks(plan.traffic, 7)) == list(chunks(plan.traffic, 7))
    assert list(chunks(plan.traffic, 7)) != list(chunks(plan.traffic, 8))
    assert len({schedule.faults for schedule in drawn()}) > 250


def test_every_kind_of_fault_store_and_mode_is_drawn_soon() -> None:
    schedules = drawn()
    kinds = Counter(fault.kind for schedule in schedules for fault in schedule.faults)
    assert set(kinds) == set(KINDS)
    assert {s.store for s in schedules} == {"plain", "replicated", "cluster"}
    assert {s.outputs for s in schedules} == {"at-least-once", "exactly-once"}
    assert {s.workers for s in schedules} == {2, 3, 4}
    assert {s.expected for s in schedules} == set(Outcome)


def test_every_point_is_drawn_on_both_sides_and_transactions_only_where_there_are_some() -> None:
    everything = [make_schedule(seed, EVERYTHING) for seed in range(2000)]
    points = {
        (schedule.outputs, *fault.point.split(":")[:2])
        for schedule in everything
        for fault in schedule.faults
        if fault.kind == "kill-at-point"
    }
    sides = ("before", "after")
    assert {p[1:] for p in points if p[0] == "at-least-once"} == {
        (point, side) for point in POINTS for side in sides
    }
    assert {p[1:] for p in points if p[0] == "exactly-once"} == {
        (point, side) for point in POINTS + TRANSACTION_POINTS for side in sides
    }


def test_faults_stand_in_order_of_time_and_strike_only_what_is_there() -> None:
    for schedule in drawn():
        times = [fault.at_s for fault in schedule.faults]
        assert times == sorted(times)
        last = [fault for fault in schedule.faults if KINDS[fault.kind].last]
        assert len(last) <= 1
        assert not last or schedule.faults[-1] == last[0]
        for fault in schedule.faults:
            assert schedule.store in KINDS[fault.kind].stores
            assert fault.worker < schedule.workers


def test_a_halt_has_its_operators_command_and_nothing_else_has_one() -> None:
    for schedule in drawn():
        assert bool(schedule.cure) == (schedule.expected is not Outcome.HEALED)


def test_kinds_and_services_can_be_restricted() -> None:
    for schedule in drawn(replace(EVERYTHING, kinds=("kill", "failover"), stores=("plain",))):
        assert {fault.kind for fault in schedule.faults} == {"kill"}
    for schedule in drawn(replace(EVERYTHING, kinds=("flushall",))):
        assert [fault.kind for fault in schedule.faults] == ["flushall"]
    with pytest.raises(ValueError, match="none of these faults can strike here: failover"):
        make_schedule(1, replace(EVERYTHING, kinds=("failover",), stores=("plain",)))


def test_every_kind_has_a_function_that_carries_it_out() -> None:
    assert set(STRIKES) == set(KINDS)


def test_the_traffic_holds_what_its_shape_says() -> None:
    plan = make_schedule(3, EVERYTHING)
    shape = replace(
        plan.traffic,
        events=4000,
        poison=0.1,
        tombstones=0.1,
        null_keys=0.05,
        aborted=0.5,
        bursts=2,
        key_bytes=1,
        future=0.0,
    )
    made = list(chunks(shape, 1))
    records = [record for chunk in made for record in chunk.records]
    assert len(records) == 4000
    assert 300 < sum(value is None for _, value in records) < 500
    assert 130 < sum(key is None for key, _ in records) < 270
    assert 15 < sum(chunk.aborted for chunk in made) < 45
    sizes = sorted(len(chunk.records) for chunk in made)
    assert sizes[-2] > 5 * sizes[0]


def test_recovery_lasts_from_the_strike_to_the_slowest_partitions_next_new_prediction() -> None:
    strike = Strike("kill", 1000, (0, 1), "")
    emitted = {
        0: [Emitted(5, 900), Emitted(4, 1200), Emitted(5, 1300), Emitted(6, 1400)],
        1: [Emitted(9, 990), Emitted(10, 3000)],
        2: [Emitted(1, 999), Emitted(2, 9000)],  # not this worker's
    }
    arrived = {0: {6: 1100}, 1: {10: 1000}, 2: {2: 1000}}
    (recovery,) = recoveries([strike], emitted, arrived)
    assert (recovery.kind, recovery.seconds) == ("kill", 2.0)


def test_a_partition_without_waiting_events_says_nothing_about_recovery() -> None:
    strike = Strike("kill", 1000, (0,), "")
    assert recoveries([strike], {0: [Emitted(5, 9000)]}, {0: {5: 8990}}) == []
    assert recoveries([strike], {}, {}) == []


def test_percentiles_are_values_that_were_measured() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([], 0.5) is None


def test_every_point_is_a_method_of_the_product() -> None:
    assert set(fatal_worker.POINTS) == set(POINTS)
    assert set(fatal_worker.TRANSACTION_POINTS) == set(TRANSACTION_POINTS)
    for where in (fatal_worker.POINTS | fatal_worker.TRANSACTION_POINTS).values():
        fatal_worker.find(where)
