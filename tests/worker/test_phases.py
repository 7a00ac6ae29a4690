"""The order in which a partition asks Kafka and Redis, question by question.

The order is the promise, so each test writes a phase's whole conversation down: what is asked, what
is answered, and what the partition decides. Pure: worker/answers.py and worker/saver.py carry the
same questions out in the tests of owner and saver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from keyfold.worker import phases
from keyfold.worker.errors import NotOwner, StartUnset
from keyfold.worker.handover.ownership import Handovers
from keyfold.worker.partition import NEVER, Partition, Rules
from keyfold.worker.phases import (
    AskBegin,
    AskGroupOffset,
    AskHandovers,
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
    SetHandovers,
    SkipLost,
    TakeFence,
)
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
    Topic,
    outputs_metadata,
)

FENCE = Fence(7, "me", "bundle")
TOPIC = Topic(4, "id")
LAST = Fingerprint(19, 5, 1)
MISSING = Refused("missing", "a watermark", "none")
BEGUN = GroupOffset(4, INIT_METADATA)
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
        TOPIC, None, LogBounds(0, 30), Acquired(FENCE, 20, LAST), None,
    )  # fmt: skip
    assert asked == [AskTopic(), CheckTopic(TOPIC), AskLog(), TakeFence(None), Seek(19)]
    assert (partition.phase, partition.fence) == (Phase.SEEK, FENCE)


def test_exactly_once_fences_the_former_producer_before_it_reads_c_and_the_log_s_end() -> None:
    # Until then a transaction of the former owner may still move both.
    partition = acquiring(exactly_once=True)
    asked = talk(
        phases.acquire(partition),
        TOPIC, None, None, LogBounds(0, 30), Acquired(FENCE, 20, LAST, committed=20),
        GroupOffset(25, outputs_metadata(0)), LogBounds(0, 31), None,
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
        TOPIC, None, None, LogBounds(0, 30), Acquired(FENCE, 20, LAST, committed=25), None,
        LogBounds(0, 30),
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
        TOPIC, None, None, LogBounds(0, end), Acquired(FENCE, 20, LAST),
        GroupOffset(15, outputs_metadata(1)), LogBounds(0, end), *([] if end > 20 else [None]),
    )  # fmt: skip
    assert partition.phase is phase  # nothing is lost where nothing waits to be emitted


def test_exactly_once_group_offset_is_held_against_the_log_s_end_as_it_is_by_then() -> None:
    partition = acquiring(exactly_once=True)
    talk(
        phases.acquire(partition),
        TOPIC, None, None, LogBounds(0, 23), Acquired(FENCE, 20, LAST, committed=20),
        GroupOffset(29, outputs_metadata(0)), LogBounds(0, 29), None,
    )  # fmt: skip
    assert (partition.phase, partition.emit_from) == (Phase.SEEK, 29)


def test_exactly_once_group_offset_beyond_the_log_halts() -> None:
    """Or every prediction below it would stay out without a word."""
    partition = acquiring(exactly_once=True)
    talk(
        phases.acquire(partition),
        TOPIC, None, None, LogBounds(0, 23), Acquired(FENCE, 20, LAST, committed=20),
        GroupOffset(29, outputs_metadata(0)), LogBounds(0, 23),
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
        TOPIC, None, LogBounds(4, 30), MISSING, None, Beginning(4), None,
        Acquired(FENCE, 4, None), None,
    )  # fmt: skip
    assert asked[3:] == [
        TakeFence(None), AskGroupOffset(), AskBegin(), SetGroupOffset(BEGUN),
        TakeFence(Beginning(4)), Seek(4),
    ]  # fmt: skip


def test_emit_floor_of_a_new_group_is_noted_in_kafka_and_then_in_redis() -> None:
    partition, begin = acquiring(), Beginning(4, floor=20)
    asked = talk(
        phases.acquire(partition),
        TOPIC, None, LogBounds(4, 30), MISSING, None, begin, None,
        Acquired(FENCE, 4, None, floor=20), None,
    )  # fmt: skip
    assert asked[6:8] == [SetGroupOffset(GroupOffset(4, "keyfold:init:f20")), TakeFence(begin)]
    assert partition.emit_from == 20


def test_group_that_died_before_its_first_save_begins_where_kafka_says() -> None:
    partition = acquiring()
    asked = talk(
        phases.acquire(partition),
        TOPIC, None, LogBounds(0, 30), MISSING, BEGUN, None, Acquired(FENCE, 4, None), None,
    )  # fmt: skip
    assert AskBegin() not in asked  # the settings, and the time, may mean something else by now
    assert asked[-3:] == [SetGroupOffset(BEGUN), TakeFence(Beginning(4)), Seek(4)]


def test_emit_floor_that_kafka_remembers_is_not_resolved_again() -> None:
    partition, noted = acquiring(), GroupOffset(4, "keyfold:init:f20")
    asked = talk(
        phases.acquire(partition),
        TOPIC, None, LogBounds(0, 30), MISSING, noted, None, Acquired(FENCE, 4, None, floor=20),
        None,
    )  # fmt: skip
    assert asked[4:] == [
        AskGroupOffset(),
        SetGroupOffset(noted),
        TakeFence(Beginning(4, 20)),
        Seek(4),
    ]


def test_new_group_without_a_start_writes_nothing() -> None:
    partition = acquiring()
    questions = phases.acquire(partition)
    with pytest.raises(StartUnset):
        talk(questions, TOPIC, None, LogBounds(0, 30), MISSING, None, None)


@pytest.mark.parametrize("metadata", ["", "keyfold:r0", "anything"])
def test_missing_state_under_a_group_offset_halts_and_writes_nothing(metadata: str) -> None:
    partition = acquiring()
    asked = talk(
        phases.acquire(partition),
        TOPIC, None, LogBounds(0, 30), MISSING, GroupOffset(9, metadata), MISSING,
    )  # fmt: skip
    assert asked[3:] == [TakeFence(None), AskGroupOffset(), TakeFence(None)]
    assert (partition.phase, partition.halted) == (Phase.HALT, partition.halts.refused(MISSING))


def test_state_that_another_owner_began_meanwhile_is_not_called_gone() -> None:
    partition = acquiring()
    talk(
        phases.acquire(partition),
        TOPIC, None, LogBounds(0, 30), MISSING, GroupOffset(9, ""), Acquired(FENCE, 9, None),
        None,
    )  # fmt: skip
    assert partition.phase is Phase.SEEK


def test_exactly_once_new_group_reads_c_again_after_it_began() -> None:
    """The first word may be of a topic that was deleted meanwhile: it must not silence this one."""
    partition = acquiring(exactly_once=True)
    asked = talk(
        phases.acquire(partition),
        TOPIC, None, None, LogBounds(0, 30), MISSING, None, Beginning(0), None,
        Acquired(FENCE, 0, None), GroupOffset(0, INIT_METADATA), LogBounds(0, 30), None,
    )  # fmt: skip
    assert asked[4:] == [
        TakeFence(None), AskGroupOffset(), AskBegin(),
        SetGroupOffset(GroupOffset(0, INIT_METADATA)), TakeFence(Beginning(0)), AskGroupOffset(),
        AskLog(), Seek(0),
    ]  # fmt: skip


OTHER_BUNDLE = Refused("bundle", "bundle", "old", watermark=20, base=2)


def test_other_bundle_halts_unless_the_operator_decided_otherwise() -> None:
    partition = acquiring()
    asked = talk(phases.acquire(partition), TOPIC, None, LogBounds(0, 30), OTHER_BUNDLE)
    assert asked[-1] == TakeFence(None)
    assert partition.halted == partition.halts.refused(OTHER_BUNDLE)


@pytest.mark.parametrize(("change", "begin"), [("rebuild", 2), ("reset", 20)])
def test_other_bundle_s_states_begin_anew_and_nothing_is_emitted_again(
    change: str, begin: int
) -> None:
    partition = acquiring(bundle_change=change)
    asked = talk(
        phases.acquire(partition),
        TOPIC, None, LogBounds(2, 30), OTHER_BUNDLE, Acquired(FENCE, begin, None, floor=20),
        None,
    )  # fmt: skip
    assert asked[3:] == [TakeFence(None), BeginAnew(OTHER_BUNDLE, begin, 20), Seek(begin)]
    assert partition.emit_from == 20


def test_other_bundle_s_states_are_left_alone_where_retention_took_their_first_events() -> None:
    partition = acquiring(bundle_change="rebuild")
    asked = talk(phases.acquire(partition), TOPIC, None, LogBounds(3, 30), OTHER_BUNDLE)
    assert asked[-1] == TakeFence(None)  # nothing is dropped
    assert partition.halted == partition.halts.refused(OTHER_BUNDLE)


def test_refused_position_is_held_against_the_log_by_the_acquire_that_follows() -> None:
    partition = running()
    partition.out_of_range(10)
    asked = talk(phases.acquire(partition), TOPIC, None, LogBounds(0, 5), Acquired(FENCE, 10, None))
    assert asked[-1] == TakeFence(None)  # and no seek
    assert (partition.phase, partition.halted) == (
        Phase.HALT, partition.halts.log_too_short(10),
    )  # fmt: skip


def test_exactly_once_group_offset_below_the_one_that_redis_knows_halts() -> None:
    partition = acquiring(exactly_once=True)
    talk(
        phases.acquire(partition),
        TOPIC, None, None, LogBounds(0, 30), Acquired(FENCE, 20, LAST, committed=25),
        GroupOffset(24, outputs_metadata(0)), LogBounds(0, 30),
    )  # fmt: skip
    assert partition.halted == partition.halts.outputs_unknown(20, 25, 30)


def test_adopt_ends_the_halt_of_a_reset_that_redis_forgot() -> None:
    c, log = GroupOffset(15, outputs_metadata(1)), LogBounds(0, 30)
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
        phases.acquire(partition), TOPIC, None, LogBounds(0, 30), OTHER_BUNDLE, OTHER_BUNDLE
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
    asked = talk(phases.acquire(partition), TOPIC, None, LogBounds(0, 30), refused)
    assert asked[-1] == TakeFence(None)
    assert partition.halted == partition.halts.refused(refused)


def test_lost_range_halts_unless_the_operator_decided_otherwise() -> None:
    partition = acquiring()
    held = Acquired(FENCE, 20, LAST)
    asked = talk(phases.acquire(partition), TOPIC, None, LogBounds(25, 30), held)
    assert asked[-1] == TakeFence(None)
    assert partition.halted == partition.halts.events_lost(20, 25)


def test_lost_range_is_remembered_in_redis_before_anything_behind_it_is_read() -> None:
    partition = acquiring(mark_lost=True)
    held = Acquired(FENCE, 20, LAST)
    after = Acquired(FENCE, 25, None, lost=((20, 25),))
    asked = talk(phases.acquire(partition), TOPIC, None, LogBounds(25, 30), held, after, None)
    assert asked[3:] == [TakeFence(None), SkipLost(held, 25), Seek(25)]
    assert (partition.saved, partition.lost_upto) == (25, 25)


def test_nothing_is_skipped_where_nothing_was_lost() -> None:
    partition = acquiring(mark_lost=True)
    held = Acquired(FENCE, 20, LAST)
    asked = talk(phases.acquire(partition), TOPIC, None, LogBounds(20, 30), held, None)
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


# -- whose predictions they are --------------------------------------------------------------------

WAITS = Handovers().wait("new")
PROPOSED = WAITS.propose("group", "new", 10)


def test_first_word_on_the_outputs_is_asked_for_after_the_log_s_end_as_it_is_under_our_fence() -> (
    None
):
    partition = running()
    assert partition.voice.upto(10) == 10  # nothing may be taken yet
    asked = talk(phases.listen(partition), LogBounds(0, 40), Handovers())
    assert asked == [AskLog(), AskHandovers()]
    assert partition.out == 40  # a former owner may have put out so much without saving it
    assert partition.voice.upto(10) is None
    assert talk(phases.listen(partition), Handovers()) == [AskHandovers()]


def test_exactly_once_outputs_of_a_former_owner_end_at_c() -> None:
    partition = acquiring(exactly_once=True)
    partition.acquired(Acquired(FENCE, 10, None), 0, 100, GroupOffset(30, outputs_metadata(0)))
    partition.sought()
    talk(phases.listen(partition), LogBounds(0, 100), Handovers())
    assert partition.out == 30


def test_proposal_is_answered_only_by_who_is_still_the_owner_after_hearing_it() -> None:
    partition = running()
    talk(phases.listen(partition), LogBounds(0, 10), WAITS)
    ready = PROPOSED.ready("group")
    asked = talk(phases.listen(partition), PROPOSED, replace(HELD, watermark=10), ready)
    assert asked == [AskHandovers(), AskHeld(), SetHandovers(PROPOSED, ready)]
    assert partition.voice.record == ready


def test_owner_that_was_replaced_answers_no_proposal() -> None:
    partition = running()
    talk(phases.listen(partition), LogBounds(0, 10), WAITS)
    other = replace(HELD, watermark=10, number=8, nonce="you")
    with pytest.raises(NotOwner):
        talk(phases.listen(partition), PROPOSED, other)


def test_owner_whose_redis_lost_writes_rewinds_instead_of_answering() -> None:
    partition = running()
    talk(phases.listen(partition), LogBounds(0, 10), WAITS)
    assert talk(phases.listen(partition), PROPOSED, replace(HELD, watermark=9)) == [
        AskHandovers(), AskHeld(),
    ]  # fmt: skip
    assert partition.phase is Phase.REWIND


def test_redis_that_does_not_answer_leaves_the_outputs_as_they_are() -> None:
    partition = running()
    talk(phases.listen(partition), LogBounds(0, 10), WAITS)
    talk(phases.listen(partition), None)
    talk(phases.listen(partition), PROPOSED, None)
    talk(phases.listen(partition), PROPOSED, replace(HELD, watermark=10), None)
    assert partition.voice.record == PROPOSED


def test_owner_beyond_a_proposal_says_how_far_it_may_be() -> None:
    partition = running()
    beyond = PROPOSED.beyond(40)
    asked = talk(
        phases.listen(partition), LogBounds(0, 40), PROPOSED, replace(HELD, watermark=10), beyond
    )
    assert asked[-1] == SetHandovers(PROPOSED, beyond)


def test_micro_batch_under_way_counts_as_begun() -> None:
    partition = running()
    talk(phases.listen(partition), LogBounds(0, 10), WAITS)
    partition.begin(10, 14)
    partition.hear(PROPOSED)
    assert partition.answer(0.0) == PROPOSED.beyond(14)


def test_new_acquire_takes_nothing_before_it_has_heard_again() -> None:
    partition = running()
    talk(phases.listen(partition), LogBounds(0, 10), WAITS)
    partition.acquire()
    partition.acquired(Acquired(FENCE, 10, None), 0, 100)
    partition.sought()
    assert partition.voice.upto(10) == 10


def test_micro_batch_is_emitted_or_folded_silently_as_a_whole() -> None:
    partition = running()
    partition.acquired(Acquired(FENCE, 10, None, floor=13), 0, 100)
    partition.sought()
    agreed = PROPOSED.ready("group").ready("new").decide(PROPOSED.revision)
    assert agreed is not None
    talk(phases.listen(partition), LogBounds(0, 10), agreed)
    partition.begin(9, 10)
    assert partition.emit_from == 13
    partition.begin(10, 20)
    assert partition.emit_from == NEVER


def test_offset_without_a_record_is_stood_at_all_the_same() -> None:
    partition = running()
    talk(phases.listen(partition), LogBounds(0, 10), WAITS)
    partition.hear(replace_offset(PROPOSED, 15))
    partition.stand_before(20)  # the next record: there is none from 10 to 19
    assert partition.applied == 15
    partition.stand_before(30)
    assert partition.applied == 15


def test_position_is_not_passed_beyond_a_proposal() -> None:
    partition = running()
    talk(phases.listen(partition), LogBounds(0, 10), WAITS)
    partition.hear(replace_offset(PROPOSED, 15))
    assert partition.pass_to(20)
    assert partition.applied == 15
    assert not partition.pass_to(20)


def replace_offset(record: Handovers, offset: int) -> Handovers:
    """Return a proposal at another offset."""
    assert record.proposal is not None
    return replace(record, proposal=replace(record.proposal, offset=offset))
