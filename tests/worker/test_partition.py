"""The phases of one partition, decision by decision, messages included.

Pure: no Kafka, no Redis, no clock. What Redis and the log say is written down in each test; the
owner's tests carry the same decisions out against a real Valkey.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyfold.worker.errors import NotOwner, StartUnset
from keyfold.worker.partition import (
    INIT_METADATA,
    Acquired,
    Fence,
    Fingerprint,
    GroupOffset,
    Held,
    Partition,
    Phase,
    Refused,
    SavePlan,
)


@dataclass(slots=True)
class Rec:
    """A record."""

    offset: int
    timestamp: int = 5
    key: bytes | None = b"k"
    value: bytes | None = b"v"


FENCE = Fence(7, "me", "bundle")
RESET = "keyfold-state reset worker.toml --partition 3 --to earliest|latest|OFFSET"
RESET_ALL = "keyfold-state reset worker.toml --all --to earliest"


def acquired(watermark: int = 100, fingerprint: Fingerprint | None = None) -> Acquired:
    return Acquired(FENCE, watermark, fingerprint)


def held(watermark: int | None, fence: Fence = FENCE) -> Held:
    return Held(watermark, fence.number, fence.nonce, fence.bundle)


def phase_of(partition: Partition) -> Phase:
    """Return the phase, which every call may have changed."""
    return partition.phase


@pytest.fixture
def partition() -> Partition:
    """Return a partition in ACQUIRE."""
    made = Partition("in", 3, "group")
    made.acquire()
    return made


@pytest.fixture
def running(partition: Partition) -> Partition:
    """Return a partition in RUN at watermark 100."""
    partition.acquired(acquired(), log_start=0)
    partition.sought()
    assert partition.phase is Phase.RUN
    return partition


# -- where Redis may begin -------------------------------------------------------------------------


def test_without_state_and_start_the_worker_refuses_and_says_what_to_set(
    partition: Partition,
) -> None:
    with pytest.raises(StartUnset) as caught:
        partition.may_start_at(None, None)
    assert str(caught.value) == (
        "in:3: no saved state and no group offset in group 'group', and worker.start is not set: "
        "set it to 'earliest' or 'latest' to say where this group begins"
    )


def test_new_group_begins_where_it_was_told(partition: Partition) -> None:
    assert partition.may_start_at(None, 42) == 42


def test_start_that_was_noted_but_never_saved_is_begun_again(partition: Partition) -> None:
    assert partition.may_start_at(GroupOffset(9, INIT_METADATA), 42) == 9
    assert partition.may_start_at(GroupOffset(9, INIT_METADATA), None) == 9


def test_lost_state_never_begins_again_whatever_start_says(partition: Partition) -> None:
    assert partition.may_start_at(GroupOffset(9, ""), 42) is None
    assert partition.may_start_at(GroupOffset(0, "something"), 0) is None


# -- ACQUIRE ---------------------------------------------------------------------------------------


def test_acquired_without_fingerprint_seeks_to_the_watermark(partition: Partition) -> None:
    assert partition.acquired(acquired(), log_start=100) == 100
    assert phase_of(partition) is Phase.SEEK
    assert (partition.saved, partition.acked, partition.applied) == (100, 100, 100)
    partition.sought()
    assert phase_of(partition) is Phase.RUN


REFUSALS = {
    "missing": f"the state is gone from Redis, yet the group has committed an offset: restore "
    f"Redis, or give the state up: {RESET}",
    "partitions": "the topic's number of partitions changed, keys moved between them: expected E, "
    f"got G in Redis; {RESET_ALL}",
    "bundle": "the state belongs to another bundle (serve this one under a new group?): expected "
    f"E, got G in Redis; {RESET}",
    "layout": f"the state was written in another layout: expected E, got G in Redis; {RESET}",
}


@pytest.mark.parametrize("what", REFUSALS)
def test_refused_state_halts_and_names_the_way_out(partition: Partition, what: str) -> None:
    refused = Refused(what, "E", "G")  # type: ignore[arg-type]
    assert partition.acquired(refused, log_start=0) is None
    assert partition.phase is Phase.HALT
    assert partition.halted == REFUSALS[what]


def test_events_lost_to_retention_halt(partition: Partition) -> None:
    assert partition.acquired(acquired(100), log_start=101) is None
    assert partition.phase is Phase.HALT
    assert partition.halted == (
        "the log starts at offset 101 but the state ends at 100: events in between are lost to "
        f"retention; {RESET}"
    )


def test_halted_partition_may_acquire_again(partition: Partition) -> None:
    partition.halt("why")
    partition.acquire()
    assert (partition.phase, partition.fence) == (Phase.ACQUIRE, None)
    assert partition.acquired(acquired(), 0) == 100


# -- the fingerprint -------------------------------------------------------------------------------


def at_fingerprint(partition: Partition, record: Rec, watermark: int = 100) -> None:
    offset = partition.acquired(acquired(watermark, Fingerprint.of(record)), log_start=0)
    assert offset == record.offset
    partition.sought()
    assert partition.phase is Phase.SEEK  # until the record was seen


def test_record_of_the_fingerprint_is_looked_at_and_not_applied_again(partition: Partition) -> None:
    last = Rec(97)  # 98 and 99 are transaction markers
    at_fingerprint(partition, last)
    given_on = partition.offer([last, Rec(100), Rec(103)])
    assert [record.offset for record in given_on] == [100, 103]
    assert partition.phase is Phase.RUN
    assert not partition.unverified
    assert partition.next_offset == 104


@pytest.mark.parametrize(
    "change",
    [{"timestamp": 6}, {"key": b"other"}, {"value": b"w"}, {"value": None}, {"key": None}],
)
def test_other_record_at_the_fingerprint_s_offset_halts(
    partition: Partition, change: dict[str, Any]
) -> None:
    at_fingerprint(partition, Rec(99))
    assert partition.offer([replace(Rec(99), **change), Rec(100)]) == ()
    assert partition.phase is Phase.HALT
    assert partition.halted == (
        "the record at offset 99 is not the one last applied (topic created anew?); " + RESET
    )


def test_record_of_the_fingerprint_compacted_away_is_noted(partition: Partition) -> None:
    at_fingerprint(partition, Rec(99))
    assert [r.offset for r in partition.offer([Rec(102)])] == [102]
    assert partition.phase is Phase.RUN
    assert partition.unverified


def test_record_of_the_fingerprint_below_the_log_start_is_noted(partition: Partition) -> None:
    assert partition.acquired(acquired(100, Fingerprint.of(Rec(97))), log_start=98) == 100
    assert partition.unverified
    partition.sought()
    assert partition.phase is Phase.RUN


def test_no_records_decide_nothing(partition: Partition) -> None:
    at_fingerprint(partition, Rec(99))
    assert partition.offer([]) == ()
    assert partition.phase is Phase.SEEK


@given(st.integers(0, 2**60), st.integers(-1, 2**60), st.binary(), st.binary())
def test_fingerprint_survives_its_text(offset: int, time_ms: int, key: bytes, value: bytes) -> None:
    fingerprint = Fingerprint.of(Rec(offset, time_ms, key, value))
    assert Fingerprint.parse(str(fingerprint)) == fingerprint
    assert Fingerprint.parse("") is None


# -- records ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [p for p in Phase if p is not Phase.RUN])
def test_records_are_taken_in_run_only(running: Partition, phase: Phase) -> None:
    running.phase = phase
    assert running.offer([Rec(100)]) == ()
    assert running.next_offset == 100


def test_records_fetched_twice_are_taken_once(running: Partition) -> None:
    assert [r.offset for r in running.offer([Rec(99), Rec(100), Rec(102)])] == [100, 102]
    assert [r.offset for r in running.offer([Rec(100), Rec(102), Rec(103)])] == [103]
    assert running.offer([Rec(102), Rec(103)]) == []


def test_position_below_the_log_start_is_judged_anew(running: Partition) -> None:
    running.out_of_range(100, log_start=120)
    assert running.phase is Phase.ACQUIRE


def test_position_beyond_the_log_end_halts(running: Partition) -> None:
    running.out_of_range(100, log_start=0)
    assert running.phase is Phase.HALT
    assert running.halted == (
        "the log ends before offset 100, below the saved state (topic truncated or created "
        f"anew?); {RESET}"
    )


@pytest.mark.parametrize("phase", [Phase.UNASSIGNED, Phase.DRAIN, Phase.ACQUIRE, Phase.REWIND])
def test_late_word_about_the_position_moves_no_partition_that_has_left_it(
    running: Partition, phase: Phase
) -> None:
    # The intake asks the broker for the log's start in between: meanwhile the phase may change.
    for log_start in (0, 120):
        running.phase = phase
        running.out_of_range(100, log_start)
        assert running.phase is phase


# -- cursors and saves -----------------------------------------------------------------------------


def fingerprint(offset: int) -> Fingerprint:
    return Fingerprint(offset, 5, 1)


def test_save_covers_all_that_was_applied_and_carries_the_last_record(running: Partition) -> None:
    assert running.plan_save() is None
    running.apply(103, fingerprint(102))
    running.apply(107, fingerprint(106))
    assert running.plan_save() == SavePlan(100, 107, fingerprint(106))


def test_save_that_redis_confirms_moves_the_watermark(running: Partition) -> None:
    running.apply(107, fingerprint(106))
    plan = running.plan_save()
    running.ack(107)
    assert plan is not None
    running.judge_save(plan, held(107))
    assert (running.saved, running.phase) == (107, Phase.RUN)
    assert running.plan_save() is None


def test_more_applied_while_a_save_is_in_flight_is_saved_by_the_next(running: Partition) -> None:
    running.apply(103, fingerprint(102))
    plan = running.plan_save()
    assert plan is not None
    running.ack(103)
    running.apply(110, fingerprint(109))
    running.judge_save(plan, held(103))
    assert running.plan_save() == SavePlan(103, 110, fingerprint(109))


@pytest.mark.parametrize("watermark", [None, 0, 99, 101, 108])
def test_watermark_that_moved_elsewhere_rewinds(running: Partition, watermark: int | None) -> None:
    running.apply(107, fingerprint(106))
    running.ack(107)
    plan = running.plan_save()
    assert plan is not None
    running.judge_save(plan, held(watermark))
    assert running.phase is Phase.REWIND
    assert running.saved == 100


def test_watermark_still_at_w0_after_a_save_rewinds(running: Partition) -> None:
    # The script sets W whenever it finds w0: a reply with w0 cannot be, so nothing is assumed.
    running.apply(107, fingerprint(106))
    running.ack(107)
    plan = running.plan_save()
    assert plan is not None
    running.judge_save(plan, held(100))
    assert running.phase is Phase.REWIND


@pytest.mark.parametrize(
    "other", [Fence(8, "other", "bundle"), Fence(7, "other", "bundle"), Fence(7, "me", "new")]
)
def test_another_owner_stops_this_one(running: Partition, other: Fence) -> None:
    running.apply(107, fingerprint(106))
    plan = running.plan_save()
    assert plan is not None
    with pytest.raises(NotOwner, match=r"in:3: expected owner 7/me with bundle bundle, got"):
        running.judge_save(plan, held(107, other))
    assert running.saved == 100
    assert phase_of(running) is Phase.UNASSIGNED  # nothing more is applied or emitted


def test_another_owner_found_while_loading_stops_this_one(running: Partition) -> None:
    with pytest.raises(NotOwner, match="another worker owns it"):
        running.judge_held(held(100, Fence(8, "other", "bundle")), since=100)
    assert phase_of(running) is Phase.UNASSIGNED


def test_fence_that_went_back_is_a_loss_and_not_another_owner(running: Partition) -> None:
    assert not running.judge_held(held(100, Fence(6, "other", "bundle")), since=100)
    assert running.phase is Phase.REWIND


def test_acks_never_go_back(running: Partition) -> None:
    running.apply(107, fingerprint(106))
    running.ack(107)
    running.ack(103)
    assert running.acked == 107


def test_cursors_out_of_order_are_a_bug_that_stops_the_worker(running: Partition) -> None:
    with pytest.raises(RuntimeError, match=r"expected W <= A <= P, got 100, 101, 100"):
        running.ack(101)


@given(st.data())
def test_cursors_stay_in_order_through_any_life(data: st.DataObject) -> None:
    partition = Partition("in", 3, "group")
    partition.acquire()
    partition.acquired(acquired(10), 0)
    partition.sought()
    flying: list[SavePlan] = []
    for _ in range(30):
        what = data.draw(st.sampled_from(["apply", "ack", "plan", "save"]))
        if what == "apply":
            upto = partition.applied + data.draw(st.integers(1, 5))
            partition.apply(upto, fingerprint(upto - 1))
        elif what == "ack":
            partition.ack(data.draw(st.integers(partition.saved, partition.applied)))
        elif what == "plan" and not flying:
            plan = partition.plan_save()
            flying = [plan] if plan else []
        elif flying and partition.acked >= flying[0].w1:
            partition.judge_save(flying.pop(), held(flying[0].w1 if flying else partition.acked))
            if partition.phase is not Phase.RUN:
                return
        assert partition.saved <= partition.acked <= partition.applied


# -- what Redis holds while loading or idle --------------------------------------------------------


def test_load_beside_saves_accepts_every_watermark_since_it_was_sent(running: Partition) -> None:
    running.apply(107, fingerprint(106))
    assert running.judge_held(held(100), since=100)
    assert running.judge_held(held(107), since=100)  # a save whose reply is on its way
    plan = running.plan_save()
    assert plan is not None
    running.ack(107)
    running.judge_save(plan, held(107))
    assert running.judge_held(held(100), since=100)  # answered before, arrived after the save
    assert not running.judge_held(held(100), since=107)
    assert phase_of(running) is Phase.REWIND


@pytest.mark.parametrize("watermark", [None, 0, 99])
def test_watermark_that_went_back_while_idle_rewinds(
    running: Partition, watermark: int | None
) -> None:
    assert not running.judge_held(held(watermark), since=100)
    assert running.phase is Phase.REWIND


def test_watermark_beyond_all_that_was_applied_rewinds(running: Partition) -> None:
    # States of events that this owner has not seen: a load would take them for its own.
    running.apply(107, fingerprint(106))
    assert not running.judge_held(held(108), since=100)
    assert running.phase is Phase.REWIND


@pytest.mark.parametrize(
    "phase", [Phase.UNASSIGNED, Phase.ACQUIRE, Phase.SEEK, Phase.REWIND, Phase.HALT]
)
def test_late_replies_move_no_partition_that_has_left_run(running: Partition, phase: Phase) -> None:
    running.apply(107, fingerprint(106))
    plan = running.plan_save()
    assert plan is not None
    running.phase = phase
    running.judge_save(plan, held(50))
    assert not running.judge_held(held(50), since=100)
    running.judge_save(plan, held(50, Fence(9, "other", "bundle")))
    assert running.phase is phase
    assert running.plan_save() is None


# -- the ends --------------------------------------------------------------------------------------


def test_draining_partition_saves_what_is_applied_and_takes_no_more(running: Partition) -> None:
    running.apply(107, fingerprint(106))
    running.drain()
    assert phase_of(running) is Phase.DRAIN
    assert running.offer([Rec(107)]) == ()
    plan = running.plan_save()
    assert plan is not None
    running.ack(107)
    running.judge_save(plan, held(107))
    assert (running.saved, running.phase) == (107, Phase.DRAIN)
    running.release()
    assert phase_of(running) is Phase.UNASSIGNED


@pytest.mark.parametrize("phase", [Phase.ACQUIRE, Phase.SEEK, Phase.REWIND, Phase.HALT])
def test_partition_that_does_not_run_has_nothing_to_drain(running: Partition, phase: Phase) -> None:
    running.phase = phase
    running.drain()
    assert phase_of(running) is Phase.UNASSIGNED


def test_loss_found_out_while_draining_gives_the_partition_up(running: Partition) -> None:
    # Acquiring anew here would take the fence from the next owner.
    running.apply(107, fingerprint(106))
    running.ack(107)
    running.drain()
    plan = running.plan_save()
    assert plan is not None
    running.judge_save(plan, held(50))
    assert phase_of(running) is Phase.UNASSIGNED
