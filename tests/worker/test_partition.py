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
from keyfold.worker.partition import Partition, Rules
from keyfold.worker.protocol import (
    INIT_METADATA,
    Acquired,
    Beginning,
    Fence,
    Fingerprint,
    GroupOffset,
    Held,
    Phase,
    Refused,
    SavePlan,
    Topic,
    outputs_metadata,
)


@dataclass(slots=True)
class Rec:
    """A record."""

    offset: int
    timestamp: int = 5
    key: bytes | None = b"k"
    value: bytes | None = b"v"


FENCE = Fence(7, "me", "bundle")
LOG_END = 1000


def acquired(watermark: int = 100, fingerprint: Fingerprint | None = None, **more: Any) -> Acquired:
    return Acquired(FENCE, watermark, fingerprint, **more)


def judge(partition: Partition, reply: Acquired, log_start: int = 0, **more: Any) -> int | None:
    """Hand Redis's word to a partition, with the log's bounds."""
    return partition.acquired(reply, log_start, **({"log_end": LOG_END} | more))


def held(watermark: int | None, fence: Fence = FENCE, keys: int = 5, found: int = 5) -> Held:
    return Held(watermark, fence.number, fence.nonce, fence.bundle, keys, found)


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
    judge(partition, acquired())
    partition.sought()
    assert partition.phase is Phase.RUN
    return partition


# -- where Redis may begin -------------------------------------------------------------------------


def test_without_state_and_start_the_worker_refuses_and_says_what_to_set(
    partition: Partition,
) -> None:
    with pytest.raises(StartUnset) as caught:
        partition.begins_at(None)
    assert str(caught.value) == (
        "in:3: no saved state and no group offset in group 'group', and worker.start is not set: "
        "set it to 'earliest' or 'latest', or to a time or -7d, to say where this group begins"
    )


def test_new_group_begins_where_it_was_told(partition: Partition) -> None:
    assert partition.begins_at(Beginning(42, 50)) == Beginning(42, 50)


@pytest.mark.parametrize("begin", [Beginning(9), Beginning(9, floor=12)])
def test_start_that_was_noted_but_never_saved_is_begun_again(
    partition: Partition, begin: Beginning
) -> None:
    assert partition.begins_again_at(begin.noted()) == begin


@pytest.mark.parametrize(
    "metadata",
    ["", "something", "keyfold:r0", "keyfold:init:", "keyfold:init:fx", "keyfold:init:f-1"],
)
def test_lost_state_never_begins_again_whatever_start_says(
    partition: Partition, metadata: str
) -> None:
    assert partition.begins_again_at(GroupOffset(9, metadata)) is None


def test_beginning_without_a_floor_is_noted_as_ever() -> None:
    assert Beginning(9).noted() == GroupOffset(9, INIT_METADATA)


# -- ACQUIRE ---------------------------------------------------------------------------------------


def test_acquired_without_fingerprint_seeks_to_the_watermark(partition: Partition) -> None:
    assert judge(partition, acquired(), log_start=100) == 100
    assert phase_of(partition) is Phase.SEEK
    assert (partition.saved, partition.acked, partition.applied) == (100, 100, 100)
    partition.sought()
    assert phase_of(partition) is Phase.RUN


@pytest.mark.parametrize("what", ["missing", "partitions", "topic", "bundle", "layout", "states"])
def test_refused_state_halts_with_the_words_of_its_cause(partition: Partition, what: Any) -> None:
    refused = Refused(what, "E", "G")
    partition.refuse(refused)
    assert partition.phase is Phase.HALT
    assert partition.halted == partition.halts.refused(refused)


def test_events_lost_to_retention_halt(partition: Partition) -> None:
    assert judge(partition, acquired(100), log_start=101) is None
    assert partition.phase is Phase.HALT
    assert partition.halted == partition.halts.events_lost(100, 101)


def test_halted_partition_may_acquire_again(partition: Partition) -> None:
    partition.halt("why")
    partition.acquire()
    assert (partition.phase, partition.fence) == (Phase.ACQUIRE, None)
    assert judge(partition, acquired()) == 100


# -- where emitting begins -------------------------------------------------------------------------


def once() -> Partition:
    """Return a partition in ACQUIRE that emits in transactions."""
    made = Partition("in", 3, "group", rules=Rules(exactly_once=True))
    made.acquire()
    return made


C_OF_2 = outputs_metadata(2)


@pytest.mark.parametrize(
    ("floor", "group_offset", "emit_from"),
    [
        (0, None, 100),  # W
        (0, GroupOffset(90, C_OF_2), 100),
        (0, GroupOffset(120, C_OF_2), 120),  # C
        (130, GroupOffset(120, C_OF_2), 130),  # F
        (110, GroupOffset(120, C_OF_2), 120),
        (110, GroupOffset(120, outputs_metadata(1)), 110),  # of before a reset
        (0, GroupOffset(120, ""), 100),  # another program's, or a hint
        (0, GroupOffset(120, INIT_METADATA), 100),
    ],
)
def test_exactly_once_emits_from_the_largest_of_watermark_floor_and_group_offset(
    floor: int, group_offset: GroupOffset | None, emit_from: int
) -> None:
    partition = once()
    judge(partition, acquired(floor=floor, resets=2), group_offset=group_offset)
    assert (partition.phase, partition.emit_from) == (Phase.SEEK, emit_from)


def test_at_least_once_emits_from_watermark_or_floor_and_looks_at_no_group_offset(
    partition: Partition,
) -> None:
    judge(
        partition, acquired(floor=110, committed=150), group_offset=GroupOffset(120, "keyfold:r0")
    )
    assert partition.emit_from == 110
    partition.acquire()
    judge(partition, acquired(floor=90))
    assert partition.emit_from == 100


@pytest.mark.parametrize(
    "found", [None, GroupOffset(120, ""), GroupOffset(120, outputs_metadata(1))]
)
def test_group_offset_that_transactions_had_set_and_that_is_gone_halts(
    found: GroupOffset | None,
) -> None:
    partition = once()
    assert judge(partition, acquired(committed=110, resets=2), group_offset=found) is None
    assert partition.phase is Phase.HALT
    assert partition.halted == partition.halts.outputs_unknown(100, 110, LOG_END)
    assert "keyfold-state adopt worker.toml --partition 3" in partition.halted


def test_group_offset_of_another_log_halts_instead_of_silencing_this_one() -> None:
    partition = once()
    of_another_log = GroupOffset(LOG_END + 1, outputs_metadata(0))
    assert judge(partition, acquired(committed=100), group_offset=of_another_log) is None
    assert partition.phase is Phase.HALT
    assert partition.halted == partition.halts.log_too_short(LOG_END + 1)
    partition.acquire()
    at_the_end = GroupOffset(LOG_END, outputs_metadata(0))
    assert judge(partition, acquired(committed=100), group_offset=at_the_end) == 100
    assert partition.emit_from == LOG_END


def test_group_offset_of_another_log_stays_so_though_this_log_grows_beyond_it() -> None:
    # Or the events that came meanwhile would never be emitted, because a HALT is tried again.
    partition = once()
    c = GroupOffset(LOG_END + 1, outputs_metadata(0))
    for log_end in (LOG_END, LOG_END + 1, LOG_END + 500):
        assert judge(partition, acquired(committed=100), log_end=log_end, group_offset=c) is None
        assert partition.phase is Phase.HALT
        assert partition.halted == partition.halts.log_too_short(LOG_END + 1)
        partition.acquire()
    # The operator's reset: that group offset is of before it.
    reply = acquired(0, resets=1)
    assert judge(partition, reply, log_end=LOG_END + 500, group_offset=c) == 0
    assert partition.emit_from == 0


def test_group_offset_beyond_the_log_is_not_held_against_later_ones() -> None:
    partition = once()
    c = GroupOffset(LOG_END + 1, outputs_metadata(0))
    assert judge(partition, acquired(committed=100), group_offset=c) is None
    partition.acquire()
    later = GroupOffset(LOG_END + 2, outputs_metadata(0))
    reply = acquired(committed=100)
    assert judge(partition, reply, log_end=LOG_END + 2, group_offset=later) == 100
    assert partition.emit_from == LOG_END + 2


def test_group_offset_that_went_back_is_lost_and_halts() -> None:
    """Kafka lost writes: predictions from there on may be out, nobody knows how many."""
    partition = once()
    back, reply = GroupOffset(109, C_OF_2), acquired(committed=110, resets=2)
    assert judge(partition, reply, group_offset=back) is None
    assert partition.halted == partition.halts.outputs_unknown(100, 110, LOG_END)
    partition.acquire()
    assert judge(partition, reply, group_offset=GroupOffset(110, C_OF_2)) == 100
    assert partition.emit_from == 110
    partition.acquire()
    assert judge(partition, reply, log_end=100, group_offset=back) == 100  # nothing to emit


def test_group_offset_that_is_gone_matters_to_nobody_at_the_log_s_end() -> None:
    partition = once()
    assert judge(partition, acquired(committed=100), log_end=100) == 100
    assert partition.emit_from == 100


def test_group_offset_that_redis_knows_nothing_of_may_be_missing() -> None:
    partition = once()
    assert judge(partition, acquired(committed=None)) == 100


def test_group_offset_moves_with_each_transaction_and_never_back() -> None:
    partition = once()
    judge(partition, acquired(resets=2), group_offset=GroupOffset(120, C_OF_2))
    partition.sought()
    partition.apply(110, fingerprint(109))
    assert partition.outputs_upto(110) is None  # a silent replay
    partition.apply(120, fingerprint(119))
    assert partition.outputs_upto(120) is None
    partition.apply(125, fingerprint(124))
    assert partition.outputs_upto(125) == GroupOffset(125, C_OF_2)
    partition.ack(125)
    assert partition.outputs_upto(125) is None
    partition.acquire()
    judge(partition, acquired(resets=2), group_offset=GroupOffset(110, C_OF_2))
    assert partition.outputs_upto(111) == GroupOffset(111, C_OF_2)  # Kafka's word counts


# -- what may begin anew or go on ------------------------------------------------------------------

OTHER_BUNDLE = Refused("bundle", "new", "old", watermark=100, base=40)


@pytest.mark.parametrize(
    ("change", "log_start", "begin"),
    [
        ("halt", 0, None),
        ("rebuild", 0, 40),
        ("rebuild", 40, 40),
        # A part of what they were made of is gone: all keys would start cold without a word.
        ("rebuild", 41, None),
        ("reset", 60, 100),
    ],
)
def test_states_of_another_bundle_are_folded_anew_only_as_the_operator_decided(
    change: str, log_start: int, begin: int | None
) -> None:
    partition = Partition("in", 3, "group", rules=Rules(bundle_change=change))
    assert partition.begin_anew_at(OTHER_BUNDLE, log_start) == begin


@pytest.mark.parametrize("what", ["missing", "partitions", "topic", "layout", "states"])
def test_nothing_but_another_bundle_begins_anew(what: Any) -> None:
    partition = Partition("in", 3, "group", rules=Rules(bundle_change="rebuild"))
    assert partition.begin_anew_at(replace(OTHER_BUNDLE, what=what), 0) is None


@pytest.mark.parametrize(
    ("mark_lost", "log_start", "may"), [(False, 101, False), (True, 101, True), (True, 100, False)]
)
def test_lost_events_are_skipped_only_if_told_and_only_if_there_are_any(
    mark_lost: bool, log_start: int, may: bool
) -> None:
    partition = Partition("in", 3, "group", rules=Rules(mark_lost=mark_lost))
    assert partition.may_skip(acquired(100), log_start) is may


def test_acquired_partition_knows_stream_time_and_lost_ranges(partition: Partition) -> None:
    judge(partition, acquired(stream_ms=77, lost=((3, 5), (20, 90))))
    assert (partition.stream_ms, partition.lost_upto) == (77, 90)
    partition.acquire()
    judge(partition, acquired())
    assert (partition.stream_ms, partition.lost_upto) == (None, 0)


# -- the fingerprint -------------------------------------------------------------------------------


def at_fingerprint(partition: Partition, record: Rec, watermark: int = 100) -> None:
    offset = judge(partition, acquired(watermark, Fingerprint.of(record)))
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
    assert partition.halted == partition.halts.another_record(Fingerprint.of(Rec(99)))


def test_record_of_the_fingerprint_compacted_away_is_noted(partition: Partition) -> None:
    at_fingerprint(partition, Rec(99))
    assert [r.offset for r in partition.offer([Rec(102)])] == [102]
    assert partition.phase is Phase.RUN
    assert partition.unverified


def test_record_of_the_fingerprint_below_the_log_start_is_noted(partition: Partition) -> None:
    assert judge(partition, acquired(100, Fingerprint.of(Rec(97))), log_start=98) == 100
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


def test_position_beyond_the_last_record_moves_the_watermark_without_events(
    running: Partition,
) -> None:
    running.apply(107, fingerprint(106), 70)
    running.offer([Rec(100), Rec(106)])
    assert running.pass_to(109)  # 107 and 108 are markers, or records of an aborted transaction
    assert (running.applied, running.next_offset) == (109, 109)
    # The last record stays the one to be found again.
    assert running.plan_save() == SavePlan(100, 109, fingerprint(106), 70)


def test_position_never_jumps_over_records_that_wait(running: Partition) -> None:
    running.offer([Rec(100), Rec(104)])
    for position in (103, 105, 200):
        assert not running.pass_to(position)
    assert (running.applied, running.next_offset) == (100, 105)


def test_position_at_or_below_what_was_applied_moves_nothing(running: Partition) -> None:
    for position in (100, 99, 0):
        assert not running.pass_to(position)
    assert (running.applied, running.next_offset) == (100, 100)


@pytest.mark.parametrize("phase", [p for p in Phase if p is not Phase.RUN])
def test_position_moves_no_partition_outside_run(running: Partition, phase: Phase) -> None:
    running.phase = phase
    assert not running.pass_to(200)
    assert (running.applied, running.next_offset) == (100, 100)


def test_refused_position_is_judged_by_a_new_acquire(running: Partition) -> None:
    running.out_of_range(100)
    assert (running.phase, running.fence) == (Phase.ACQUIRE, None)


def test_refused_position_below_the_log_start_is_one_of_lost_events(running: Partition) -> None:
    running.out_of_range(100)
    assert judge(running, acquired(100), log_start=120) is None
    assert running.halted == running.halts.events_lost(100, 120)


def test_position_refused_where_it_would_be_again_is_beyond_the_log_end(running: Partition) -> None:
    running.out_of_range(100)
    assert judge(running, acquired(100)) is None
    assert phase_of(running) is Phase.HALT
    assert running.halted == running.halts.log_too_short(100)
    # Only a fetch can tell whether it still is: the log may have grown, or have been put back.
    running.acquire()
    assert judge(running, acquired(100)) == 100
    assert phase_of(running) is Phase.SEEK


def test_position_refused_at_the_last_record_is_beyond_the_log_end(partition: Partition) -> None:
    at_fingerprint(partition, Rec(99))
    partition.out_of_range(99)
    assert judge(partition, acquired(100, Fingerprint.of(Rec(99)))) is None
    assert partition.halted == partition.halts.log_too_short(99)


def test_refused_position_that_is_left_anyway_halts_nobody(running: Partition) -> None:
    running.out_of_range(104)  # fetched beyond W when retention, or a new leader, cut the log
    assert judge(running, acquired(100)) == 100
    assert phase_of(running) is Phase.SEEK
    # Nor does a later ACQUIRE that leads there: that was another fetch.
    running.acquire()
    assert judge(running, acquired(104)) == 104


@pytest.mark.parametrize(
    "phase", [Phase.UNASSIGNED, Phase.DRAIN, Phase.ACQUIRE, Phase.REWIND, Phase.HALT]
)
def test_late_word_about_the_position_moves_no_partition_that_has_left_it(
    running: Partition, phase: Phase
) -> None:
    running.phase = phase
    running.out_of_range(100)
    assert running.phase is phase
    running.acquire()
    assert judge(running, acquired(100)) == 100  # nor is it held against the next position


# -- cursors and saves -----------------------------------------------------------------------------


def fingerprint(offset: int) -> Fingerprint:
    return Fingerprint(offset, 5, 1)


def test_save_covers_all_that_was_applied_and_carries_the_last_record(running: Partition) -> None:
    assert running.plan_save() is None
    running.apply(103, fingerprint(102))
    running.apply(107, fingerprint(106), 70)
    assert running.plan_save() == SavePlan(100, 107, fingerprint(106), 70)


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
    with pytest.raises(NotOwner, match="another worker, or an operator"):
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
    judge(partition, acquired(10))
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


# -- key states that vanished ----------------------------------------------------------------------


@pytest.mark.parametrize("found", [4, 6])
def test_key_states_missing_or_too_many_halt_instead_of_saving(
    running: Partition, found: int
) -> None:
    running.apply(107, fingerprint(106))
    running.ack(107)
    plan = running.plan_save()
    assert plan is not None
    running.judge_save(plan, held(100, found=found))
    assert (running.phase, running.saved) == (Phase.HALT, 100)
    assert running.halted == running.halts.states_missing(held(100, found=found))


@pytest.mark.parametrize("found", [4, 6])
def test_key_states_missing_or_too_many_are_seen_while_loading_or_idle(
    running: Partition, found: int
) -> None:
    assert not running.judge_held(held(100, found=found), since=100)
    assert running.phase is Phase.HALT


def test_another_owner_s_number_of_states_is_its_own_business(running: Partition) -> None:
    with pytest.raises(NotOwner):
        running.judge_held(held(100, Fence(8, "other", "bundle"), found=4), since=100)


# -- the topic under a partition -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (Topic(4, "a"), Topic(4, "a")),
        (Topic(4, "a"), Topic(0, "")),  # a broker that does not know it just now
        (Topic(4, "a"), Topic(4, "")),  # one that tells no ids
        (Topic(4, ""), Topic(4, "b")),
        (Topic(4, ""), Topic(4, "")),
    ],
)
def test_topic_that_is_the_same_as_far_as_anyone_knows_is_left_alone(
    running: Partition, before: Topic, now: Topic
) -> None:
    running.judge_topic(before, now)
    assert running.phase is Phase.RUN


@pytest.mark.parametrize("now", [Topic(5, "a"), Topic(3, "a"), Topic(4, "b")])
def test_topic_that_grew_or_was_created_anew_is_judged_anew(running: Partition, now: Topic) -> None:
    running.judge_topic(Topic(4, "a"), now)
    assert running.phase is Phase.ACQUIRE
    assert running.fence is None  # nothing more is saved under it


@pytest.mark.parametrize("phase", [p for p in Phase if p is not Phase.RUN])
def test_word_about_the_topic_moves_no_partition_that_has_left_run(
    running: Partition, phase: Phase
) -> None:
    running.phase = phase
    running.judge_topic(Topic(4, "a"), Topic(5, "b"))
    assert running.phase is phase


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


@pytest.mark.parametrize("what", ["damage", "states"])
def test_halt_while_draining_gives_the_partition_up(running: Partition, what: str) -> None:
    # In HALT it would keep a partition that is another worker's next.
    running.apply(107, fingerprint(106))
    running.ack(107)
    running.drain()
    plan = running.plan_save()
    assert plan is not None
    if what == "damage":
        running.halt("a stored state is damaged")
    else:
        running.judge_save(plan, held(100, found=4))
    assert phase_of(running) is Phase.UNASSIGNED


def test_halt_of_a_partition_given_up_changes_nothing(running: Partition) -> None:
    running.release()
    running.halt("late")
    assert phase_of(running) is Phase.UNASSIGNED
