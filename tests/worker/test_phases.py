"""The order in which a partition asks Kafka and Redis, question by question.

The order is the promise, so each test writes a phase's whole conversation down: what is asked, what
is answered, and what the partition decides. Pure: worker/answers.py and worker/saver.py carry the
same questions out in the tests of owner and saver.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from keyfold.worker import phases
from keyfold.worker.errors import NotOwner, StartUnset
from keyfold.worker.partition import Partition, Rules
from keyfold.worker.phases import (
    AskGroupOffset,
    AskHeld,
    AskLog,
    AskTopic,
    BeginAnew,
    CheckTopic,
    Emit,
    LogBounds,
    OpenOutputs,
    Question,
    Questions,
    Save,
    Seek,
    SetGroupOffset,
    SkipLost,
    TakeFence,
)
from keyfold.worker.protocol import (
    INIT_METADATA,
    Acquired,
    Fence,
    Fingerprint,
    GroupOffset,
    Held,
    Phase,
    Refused,
    Topic,
    outputs_metadata,
)

FENCE = Fence(7, "me", "bundle")
TOPIC = Topic(4, "id")
LAST = Fingerprint(19, 5, 1)
MISSING = Refused("missing", "a watermark", "none")
HELD = Held(20, 7, "me", "bundle", 5, 5)


def acquiring(**rules: Any) -> Partition:
    """Return a partition in ACQUIRE."""
    partition = Partition("in", 3, "group", rules=Rules(**rules))
    partition.acquire()
    return partition


def running(**rules: Any) -> Partition:
    """Return a partition in RUN at watermark 10."""
    partition = acquiring(**rules)
    partition.acquired(Acquired(FENCE, 10, None), 0, 100)
    partition.sought()
    assert partition.phase is Phase.RUN
    return partition


def talk(questions: Questions, *answers: Any) -> list[Question]:
    """Answer a phase's questions in order; return them all. Every answer must be asked for."""
    asked: list[Question] = []
    left, answer = list(answers), None
    while True:
        try:
            question = questions.send(answer)
        except StopIteration:
            assert left == [], f"never asked for {left}"
            return asked
        asked.append(question)
        assert left, f"no answer to {question}"
        answer = left.pop(0)


def phase_of(partition: Partition) -> Phase:
    """Return the phase, which every answer may have changed."""
    return partition.phase


# -- ACQUIRE ---------------------------------------------------------------------------------------


def test_acquire_checks_the_topic_then_the_log_then_takes_the_fence_and_seeks() -> None:
    partition = acquiring()
    asked = talk(
        phases.acquire(partition),
        TOPIC, None, LogBounds(0, 30, 0), Acquired(FENCE, 20, LAST), None,
    )  # fmt: skip
    assert asked == [AskTopic(), CheckTopic(TOPIC), AskLog(), TakeFence(None), Seek(19)]
    assert (partition.phase, partition.fence) == (Phase.SEEK, FENCE)


def test_exactly_once_fences_the_former_producer_before_it_reads_c_and_the_log_s_end() -> None:
    # Until then a transaction of the former owner may still move both.
    partition = acquiring(exactly_once=True)
    asked = talk(
        phases.acquire(partition),
        TOPIC, None, None, LogBounds(0, 30, 0), Acquired(FENCE, 20, LAST, committed=20),
        GroupOffset(25, outputs_metadata(0)), LogBounds(0, 31, 0), None,
    )  # fmt: skip
    assert asked == [
        AskTopic(), CheckTopic(TOPIC), OpenOutputs(), AskLog(), TakeFence(None), AskGroupOffset(),
        AskLog(), Seek(19),
    ]  # fmt: skip
    assert partition.emit_from == 25


def test_exactly_once_without_the_group_offset_that_transactions_had_set_halts() -> None:
    partition = acquiring(exactly_once=True)
    asked = talk(
        phases.acquire(partition),
        TOPIC, None, None, LogBounds(0, 30, 0), Acquired(FENCE, 20, LAST, committed=25), None,
        LogBounds(0, 30, 0),
    )  # fmt: skip
    assert asked[-1] == AskLog()  # and no seek
    assert partition.phase is Phase.HALT


@pytest.mark.parametrize(("end", "phase"), [(30, Phase.HALT), (20, Phase.SEEK)])
def test_exactly_once_group_offset_of_a_reset_that_redis_forgot_halts(
    end: int, phase: Phase
) -> None:
    partition = acquiring(exactly_once=True)
    talk(
        phases.acquire(partition),
        TOPIC, None, None, LogBounds(0, end, 0), Acquired(FENCE, 20, LAST),
        GroupOffset(15, outputs_metadata(1)), LogBounds(0, end, 0), *([] if end > 20 else [None]),
    )  # fmt: skip
    assert partition.phase is phase  # nothing is lost where nothing waits to be emitted


def test_exactly_once_group_offset_is_held_against_the_log_s_end_as_it_is_by_then() -> None:
    partition = acquiring(exactly_once=True)
    talk(
        phases.acquire(partition),
        TOPIC, None, None, LogBounds(0, 23, 0), Acquired(FENCE, 20, LAST, committed=20),
        GroupOffset(29, outputs_metadata(0)), LogBounds(0, 29, 0), None,
    )  # fmt: skip
    assert (partition.phase, partition.emit_from) == (Phase.SEEK, 29)


def test_exactly_once_group_offset_beyond_the_log_halts() -> None:
    """Or every prediction below it would stay out without a word."""
    partition = acquiring(exactly_once=True)
    talk(
        phases.acquire(partition),
        TOPIC, None, None, LogBounds(0, 23, 0), Acquired(FENCE, 20, LAST, committed=20),
        GroupOffset(29, outputs_metadata(0)), LogBounds(0, 23, 0),
    )  # fmt: skip
    assert "the log ends before offset 29" in partition.halted


@pytest.mark.parametrize("what", ["partitions", "topic"])
def test_topic_that_is_not_the_one_folded_halts_before_any_fence_is_taken(what: Any) -> None:
    for exactly_once in (False, True):
        partition = acquiring(exactly_once=exactly_once)
        asked = talk(phases.acquire(partition), TOPIC, Refused(what, "a", "b"))
        assert asked == [AskTopic(), CheckTopic(TOPIC)]
        assert partition.phase is Phase.HALT


def test_new_group_tells_kafka_where_it_begins_before_redis() -> None:
    partition = acquiring()
    asked = talk(
        phases.acquire(partition),
        TOPIC, None, LogBounds(4, 30, 4), MISSING, None, None, Acquired(FENCE, 4, None), None,
    )  # fmt: skip
    assert asked[3:] == [
        TakeFence(None), AskGroupOffset(), SetGroupOffset(GroupOffset(4, INIT_METADATA)),
        TakeFence(4), Seek(4),
    ]  # fmt: skip


def test_group_that_died_before_its_first_save_begins_where_kafka_says() -> None:
    partition = acquiring()
    asked = talk(
        phases.acquire(partition),
        TOPIC, None, LogBounds(0, 30, 30), MISSING, GroupOffset(4, INIT_METADATA), None,
        Acquired(FENCE, 4, None), None,
    )  # fmt: skip
    assert asked[-3:] == [SetGroupOffset(GroupOffset(4, INIT_METADATA)), TakeFence(4), Seek(4)]


def test_new_group_without_a_start_writes_nothing() -> None:
    partition = acquiring()
    questions = phases.acquire(partition)
    with pytest.raises(StartUnset):
        talk(questions, TOPIC, None, LogBounds(0, 30, None), MISSING, None)


@pytest.mark.parametrize("metadata", ["", "keyfold:r0", "anything"])
def test_missing_state_under_a_group_offset_halts_and_writes_nothing(metadata: str) -> None:
    partition = acquiring()
    asked = talk(
        phases.acquire(partition),
        TOPIC, None, LogBounds(0, 30, 0), MISSING, GroupOffset(9, metadata), MISSING,
    )  # fmt: skip
    assert asked[3:] == [TakeFence(None), AskGroupOffset(), TakeFence(None)]
    assert (partition.phase, partition.halted) == (Phase.HALT, partition.halts.refused(MISSING))


def test_state_that_another_owner_began_meanwhile_is_not_called_gone() -> None:
    partition = acquiring()
    talk(
        phases.acquire(partition),
        TOPIC, None, LogBounds(0, 30, 0), MISSING, GroupOffset(9, ""), Acquired(FENCE, 9, None),
        None,
    )  # fmt: skip
    assert partition.phase is Phase.SEEK


def test_exactly_once_new_group_reads_c_again_after_it_began() -> None:
    """The first word may be of a topic that was deleted meanwhile: it must not silence this one."""
    partition = acquiring(exactly_once=True)
    asked = talk(
        phases.acquire(partition),
        TOPIC, None, None, LogBounds(0, 30, 0), MISSING, None, None,
        Acquired(FENCE, 0, None), GroupOffset(0, INIT_METADATA), LogBounds(0, 30, 0), None,
    )  # fmt: skip
    assert asked[4:] == [
        TakeFence(None), AskGroupOffset(), SetGroupOffset(GroupOffset(0, INIT_METADATA)),
        TakeFence(0), AskGroupOffset(), AskLog(), Seek(0),
    ]  # fmt: skip


OTHER_BUNDLE = Refused("bundle", "bundle", "old", watermark=20, base=2)


def test_other_bundle_halts_unless_the_operator_decided_otherwise() -> None:
    partition = acquiring()
    asked = talk(phases.acquire(partition), TOPIC, None, LogBounds(0, 30, 0), OTHER_BUNDLE)
    assert asked[-1] == TakeFence(None)
    assert partition.halted == partition.halts.refused(OTHER_BUNDLE)


@pytest.mark.parametrize(("change", "begin"), [("rebuild", 2), ("reset", 20)])
def test_other_bundle_s_states_begin_anew_and_nothing_is_emitted_again(
    change: str, begin: int
) -> None:
    partition = acquiring(bundle_change=change)
    asked = talk(
        phases.acquire(partition),
        TOPIC, None, LogBounds(2, 30, 2), OTHER_BUNDLE, Acquired(FENCE, begin, None, floor=20),
        None,
    )  # fmt: skip
    assert asked[3:] == [TakeFence(None), BeginAnew(OTHER_BUNDLE, begin, 20), Seek(begin)]
    assert partition.emit_from == 20


def test_other_bundle_s_states_are_left_alone_where_retention_took_their_first_events() -> None:
    partition = acquiring(bundle_change="rebuild")
    asked = talk(phases.acquire(partition), TOPIC, None, LogBounds(3, 30, 3), OTHER_BUNDLE)
    assert asked[-1] == TakeFence(None)  # nothing is dropped
    assert partition.halted == partition.halts.refused(OTHER_BUNDLE)


def test_refused_position_is_held_against_the_log_by_the_acquire_that_follows() -> None:
    partition = running()
    partition.out_of_range(10)
    asked = talk(
        phases.acquire(partition), TOPIC, None, LogBounds(0, 5, 0), Acquired(FENCE, 10, None)
    )
    assert asked[-1] == TakeFence(None)  # and no seek
    assert (partition.phase, partition.halted) == (
        Phase.HALT, partition.halts.log_too_short(10),
    )  # fmt: skip


def test_exactly_once_group_offset_below_the_one_that_redis_knows_halts() -> None:
    partition = acquiring(exactly_once=True)
    talk(
        phases.acquire(partition),
        TOPIC, None, None, LogBounds(0, 30, 0), Acquired(FENCE, 20, LAST, committed=25),
        GroupOffset(24, outputs_metadata(0)), LogBounds(0, 30, 0),
    )  # fmt: skip
    assert partition.halted == partition.halts.outputs_unknown(20, 25, 30)


def test_adopt_ends_the_halt_of_a_reset_that_redis_forgot() -> None:
    c, log = GroupOffset(15, outputs_metadata(1)), LogBounds(0, 30, 0)
    partition = acquiring(exactly_once=True)
    talk(phases.acquire(partition), TOPIC, None, None, log, Acquired(FENCE, 20, LAST), c, log)
    assert phase_of(partition) is Phase.HALT
    partition.acquire()
    adopted = Acquired(FENCE, 20, None, resets=1)  # adopt counts what the group offset tells
    talk(phases.acquire(partition), TOPIC, None, None, log, adopted, c, log, None)
    assert (phase_of(partition), partition.emit_from) == (Phase.SEEK, 20)


def test_other_bundle_s_states_that_changed_meanwhile_halt_and_are_judged_anew_later() -> None:
    partition = acquiring(bundle_change="rebuild")
    asked = talk(
        phases.acquire(partition), TOPIC, None, LogBounds(0, 30, 0), OTHER_BUNDLE, OTHER_BUNDLE
    )
    assert isinstance(asked[-1], BeginAnew)
    assert partition.phase is Phase.HALT


@pytest.mark.parametrize("what", ["layout", "states"])
@pytest.mark.parametrize("change", ["halt", "rebuild", "reset"])
def test_state_refused_for_another_cause_halts_whatever_was_decided_for_bundles(
    change: str, what: Any
) -> None:
    partition = acquiring(bundle_change=change)
    refused = Refused(what, "e", "g")
    asked = talk(phases.acquire(partition), TOPIC, None, LogBounds(0, 30, 0), refused)
    assert asked[-1] == TakeFence(None)
    assert partition.halted == partition.halts.refused(refused)


def test_lost_range_halts_unless_the_operator_decided_otherwise() -> None:
    partition = acquiring()
    held = Acquired(FENCE, 20, LAST)
    asked = talk(phases.acquire(partition), TOPIC, None, LogBounds(25, 30, 25), held)
    assert asked[-1] == TakeFence(None)
    assert partition.halted == partition.halts.events_lost(20, 25)


def test_lost_range_is_remembered_in_redis_before_anything_behind_it_is_read() -> None:
    partition = acquiring(mark_lost=True)
    held = Acquired(FENCE, 20, LAST)
    after = Acquired(FENCE, 25, None, lost=((20, 25),))
    asked = talk(phases.acquire(partition), TOPIC, None, LogBounds(25, 30, 25), held, after, None)
    assert asked[3:] == [TakeFence(None), SkipLost(held, 25), Seek(25)]
    assert (partition.saved, partition.lost_upto) == (25, 25)


def test_nothing_is_skipped_where_nothing_was_lost() -> None:
    partition = acquiring(mark_lost=True)
    held = Acquired(FENCE, 20, LAST)
    asked = talk(phases.acquire(partition), TOPIC, None, LogBounds(20, 30, 20), held, None)
    assert asked[3:] == [TakeFence(None), Seek(20)]


# -- the turn --------------------------------------------------------------------------------------


def test_turn_emits_then_saves() -> None:
    partition = running()
    partition.apply(20, LAST, 77)
    plan = partition.plan_save()
    assert plan is not None
    questions = phases.turn(partition, plan)
    assert questions.send(None) == Emit(GroupOffset(20, outputs_metadata(0)))
    assert partition.acked == 10  # not before the outputs are acked
    assert questions.send(None) == Save(plan)
    assert (partition.acked, partition.saved) == (20, 10)
    with pytest.raises(StopIteration):
        questions.send(HELD)
    assert partition.saved == 20


def test_silent_replay_saves_without_emitting() -> None:
    partition = acquiring(exactly_once=True)
    partition.acquired(
        Acquired(FENCE, 10, None, committed=10), 0, 100, GroupOffset(20, outputs_metadata(0))
    )
    partition.sought()
    partition.apply(15, Fingerprint(14, 5, 1))
    plan = partition.plan_save()
    assert plan is not None
    assert talk(phases.turn(partition, plan), Held(15, 7, "me", "bundle")) == [Save(plan)]
    assert (partition.acked, partition.saved) == (15, 15)
    partition.apply(20, LAST)
    plan = partition.plan_save()
    assert plan is not None
    assert talk(phases.turn(partition, plan), HELD) == [Save(plan)]
    partition.apply(21, Fingerprint(20, 5, 1))
    assert talk(phases.emit(partition, 21), None) == [Emit(GroupOffset(21, outputs_metadata(0)))]


def test_outputs_that_were_emitted_before_the_save_was_due_are_not_emitted_again() -> None:
    partition = running()
    partition.apply(20, LAST)
    assert talk(phases.emit(partition, 20), None) == [Emit(GroupOffset(20, outputs_metadata(0)))]
    plan = partition.plan_save()
    assert plan is not None
    assert talk(phases.turn(partition, plan), HELD) == [Save(plan)]


def test_turn_whose_phase_was_left_before_redis_answered_decides_nothing() -> None:
    partition = running()
    partition.apply(20, LAST)
    plan = partition.plan_save()
    assert plan is not None
    talk(phases.turn(partition, plan), None, None)
    assert (partition.saved, partition.phase) == (10, Phase.RUN)


def test_turn_that_finds_another_owner_stops() -> None:
    partition = running()
    partition.apply(20, LAST)
    plan = partition.plan_save()
    assert plan is not None
    with pytest.raises(NotOwner):
        talk(phases.turn(partition, plan), None, Held(20, 8, "other", "bundle"))
    assert partition.saved == 10


# -- the audit -------------------------------------------------------------------------------------


def audit(partition: Partition, *answers: Any) -> Sequence[Question]:
    return talk(phases.audit(partition, TOPIC), *answers)


def test_audit_compares_redis_then_the_topic() -> None:
    partition = running()
    asked = audit(partition, Held(10, 7, "me", "bundle"), TOPIC, None)
    assert asked == [AskHeld(), AskTopic(), CheckTopic(TOPIC)]
    assert partition.phase is Phase.RUN


def test_audit_tells_redis_again_which_topic_the_states_are_of_and_heeds_its_word() -> None:
    """Else a topic that grows after Redis forgot the count would not be noticed."""
    partition = running()
    audit(partition, Held(10, 7, "me", "bundle"), TOPIC, Refused("partitions", "4", "8"))
    assert partition.phase is Phase.ACQUIRE


def test_audit_that_finds_lost_writes_rewinds_and_asks_no_more() -> None:
    partition = running()
    assert audit(partition, Held(9, 7, "me", "bundle")) == [AskHeld()]
    assert partition.phase is Phase.REWIND


def test_audit_that_finds_a_vanished_state_halts() -> None:
    partition = running()
    audit(partition, Held(10, 7, "me", "bundle", keys=5, found=4))
    assert partition.phase is Phase.HALT


def test_audit_that_finds_another_owner_stops() -> None:
    with pytest.raises(NotOwner):
        audit(running(), Held(10, 8, "other", "bundle"))


@pytest.mark.parametrize("now", [Topic(5, "id"), Topic(4, "another")])
def test_audit_that_finds_another_topic_acquires_anew(now: Topic) -> None:
    partition = running()
    audit(partition, Held(10, 7, "me", "bundle"), now)
    assert phase_of(partition) is Phase.ACQUIRE
    partition = running()
    assert talk(phases.look_at_topic(partition, TOPIC), now) == [AskTopic()]  # between two turns
    assert phase_of(partition) is Phase.ACQUIRE


def test_audit_judges_against_the_watermark_as_it_was_when_it_asked() -> None:
    partition = running()
    questions = phases.audit(partition, TOPIC)
    assert questions.send(None) == AskHeld()
    partition.apply(20, LAST)
    partition.ack(20)
    plan = partition.plan_save()
    assert plan is not None
    partition.judge_save(plan, HELD)
    assert questions.send(Held(10, 7, "me", "bundle")) == AskTopic()  # an older word, no loss
    assert partition.phase is Phase.RUN


def test_broker_or_redis_that_does_not_answer_an_audit_changes_nothing() -> None:
    partition = running()
    assert audit(partition, None) == [AskHeld()]
    asked = audit(partition, Held(10, 7, "me", "bundle"), None, None)
    assert asked == [AskHeld(), AskTopic(), CheckTopic(TOPIC)]
    assert partition.phase is Phase.RUN
