"""Who has the outputs, offset by offset; what a proposal becomes; what each side answers. Pure."""

from __future__ import annotations

from typing import Any

import pytest

from keyfold.worker.handover.handing_over import (
    LOOKS,
    AskRecord,
    AskWhere,
    Change,
    Outcome,
    Pause,
    Where,
    cancel,
    hand_over,
)
from keyfold.worker.handover.ownership import (
    GIVE_UP_S,
    Cursors,
    HandoverRefused,
    Handovers,
    Seam,
    Voice,
)

WAITING = Handovers().wait("new")
PROPOSED = WAITING.propose("old", "new", 100)
READY = PROPOSED.ready("old").ready("new")
NUMBER = PROPOSED.revision


def agreed(record: Handovers = READY) -> Handovers:
    after = record.decide(NUMBER)
    assert after is not None
    return after


def withdrawn(record: Handovers) -> Handovers:
    after = record.withdraw(NUMBER)
    assert after is not None
    return after


def at(applied: int, saved: int | None = None, begun: int | None = None, **more: Any) -> Cursors:
    saved = applied if saved is None else saved
    values = {"out": 0, "stood_s": 0.0} | more
    return Cursors(applied if begun is None else begun, applied, saved, **values)


def voice(group: str, record: Handovers) -> Voice:
    made = Voice(group)
    made.hear(record)
    return made


# -- the record ------------------------------------------------------------------------------------


def test_without_a_handover_every_group_emits_but_those_that_wait_for_one() -> None:
    assert Handovers().emits("any", 5)
    assert WAITING.emits("old", 5)
    assert not WAITING.emits("new", 5)


def test_proposal_changes_nothing_before_it_is_agreed() -> None:
    assert READY.emits("old", 1000)
    assert not READY.emits("new", 1000)


def test_below_the_agreed_offset_the_old_group_emits_and_from_it_on_the_new_one() -> None:
    after = agreed()
    assert [after.emits("old", o) for o in (0, 99, 100, 101)] == [True, True, False, False]
    assert [after.emits("new", o) for o in (0, 99, 100, 101)] == [False, False, True, True]
    assert [*after.ranges("old")] == [(0, 100)]
    assert [*after.ranges("new")] == [(100, None)]
    assert after.last == "new"
    assert after.agreed(NUMBER) == Seam(100, "new", NUMBER)


def test_outputs_go_back_the_same_way() -> None:
    there = agreed()
    back = there.propose("new", "old", 100).ready("new").ready("old")
    again = back.decide(there.revision + 1)
    assert again is not None
    assert [again.emits("old", o) for o in (99, 100)] == [True, True]
    assert [*again.ranges("new")] == []
    assert [*again.ranges("old")] == [(0, 100), (100, None)]


@pytest.mark.parametrize("record", [PROPOSED, PROPOSED.ready("old"), PROPOSED.ready("new")])
def test_nothing_is_agreed_before_both_groups_are_ready(record: Handovers) -> None:
    assert record.decide(NUMBER) is None


def test_proposal_that_is_withdrawn_can_no_more_be_agreed_nor_the_other_way_round() -> None:
    without = PROPOSED.ready("old").withdraw(NUMBER)
    assert without is not None
    assert without.decide(NUMBER) is None
    assert agreed().withdraw(NUMBER) is None
    assert without.emits("old", 1000)


def test_proposal_that_both_are_ready_for_can_only_be_agreed() -> None:
    assert READY.withdraw(NUMBER) == agreed()


def test_proposal_that_somebody_is_beyond_can_only_be_withdrawn() -> None:
    late = READY.beyond(101)
    assert late.decide(NUMBER) is None
    after = late.withdraw(NUMBER)
    assert after is not None
    assert (after.proposal, after.seams) == (None, ())


@pytest.mark.parametrize(
    ("record", "giver", "taker", "offset", "why"),
    [
        (PROPOSED, "old", "new", 100, "another proposal stands"),
        (WAITING, "new", "old", 100, "expected group 'new' to emit"),
        (WAITING, "old", "third", 100, "group 'third' emits already"),
        (agreed(), "new", "old", 99, "expected an offset from 100 on"),
    ],
)
def test_what_cannot_be_proposed_says_why(
    record: Handovers, giver: str, taker: str, offset: int, why: str
) -> None:
    with pytest.raises(HandoverRefused, match=why):
        record.propose(giver, taker, offset)


@pytest.mark.parametrize("record", [Handovers(), WAITING, PROPOSED, READY, agreed()])
def test_record_survives_its_text(record: Handovers) -> None:
    assert Handovers.parse(str(record)) == record
    assert Handovers.parse("") == Handovers()


@pytest.mark.parametrize("text", ["[]", "{", '{"revision":1}', "7"])
def test_text_that_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # JSON's own message, or ours
        Handovers.parse(text)


def test_every_change_makes_a_new_revision() -> None:
    steps = [Handovers(), WAITING, PROPOSED, PROPOSED.ready("old"), READY, agreed()]
    assert [step.revision for step in steps] == [0, 1, 2, 3, 4, 5]


def test_another_log_keeps_who_has_the_outputs_and_forgets_where_from() -> None:
    after = agreed().of_another_log()
    assert after.emits("new", 0)
    assert not after.emits("old", 0)


# -- what an owner does ----------------------------------------------------------------------------


def test_nothing_is_taken_before_the_record_was_heard() -> None:
    fresh = Voice("any")
    assert fresh.upto(7) == 7
    fresh.hear(Handovers())
    assert fresh.upto(7) is None
    fresh.forget()  # a new ACQUIRE
    assert fresh.upto(7) == 7


@pytest.mark.parametrize("group", ["old", "new"])
def test_micro_batch_stops_at_a_proposed_offset_and_nothing_is_taken_there(group: str) -> None:
    one = voice(group, PROPOSED)
    assert (one.upto(40), one.upto(100), one.upto(130)) == (100, 100, 130)
    one.hear(agreed())
    assert (one.upto(40), one.upto(100)) == (100, None)


def test_proposal_between_others_stops_nobody() -> None:
    assert voice("third", PROPOSED).upto(100) is None


def test_ready_is_who_stands_there_with_everything_saved() -> None:
    one = voice("old", PROPOSED)
    assert one.answer(at(100)) == PROPOSED.ready("old")
    assert one.answer(at(99)) is None  # events below are still to come
    assert one.answer(at(100, saved=99)) is None
    assert one.answer(at(99, begun=100)) is None
    assert voice("old", PROPOSED.ready("old")).answer(at(100)) is None


@pytest.mark.parametrize("beyond", [at(101), at(99, begun=101), at(100, out=101)])
def test_who_may_be_beyond_the_offset_says_so_once_and_is_never_ready(beyond: Cursors) -> None:
    one = voice("old", PROPOSED)
    after = one.answer(beyond)
    assert after == PROPOSED.beyond(101)
    one.hear(after)
    assert one.answer(beyond) is None


def test_who_promised_to_stop_and_is_beyond_all_the_same_says_so() -> None:
    one = voice("old", READY)  # it had heard of a withdrawal that Redis has forgotten
    assert one.answer(at(101, stood_s=GIVE_UP_S)) == READY.beyond(101)
    # What a former owner may have put out it had put out before it promised.
    assert one.answer(at(100, out=101)) is None


def test_who_has_stood_there_too_long_withdraws() -> None:
    one = voice("old", PROPOSED.ready("old"))
    assert one.answer(at(100, stood_s=GIVE_UP_S)) == PROPOSED.ready("old").withdraw(NUMBER)
    assert voice("old", READY).answer(at(100, stood_s=GIVE_UP_S)) == agreed()
    one.hear(agreed())
    assert one.answer(at(100, stood_s=GIVE_UP_S)) is None


def test_group_that_waits_emits_nothing_and_has_nothing_to_say() -> None:
    one = voice("new", WAITING)
    assert not one.emits(0)
    assert one.answer(at(0)) is None


def test_what_redis_has_lost_is_put_back_by_who_remembers_it() -> None:
    one = voice("new", agreed())
    one.hear(PROPOSED)
    assert one.emits(100)
    assert one.answer(at(150)) == agreed()


def other_history(offset: int, more: int = 0) -> Handovers:
    """Return a record of which Redis forgot the first proposal: others were made since."""
    record = WAITING
    for _ in range(more):
        record = record.propose("old", "new", offset)
        after = record.withdraw(record.revision)
        assert after is not None
        record = after
    return record.propose("old", "new", offset)


@pytest.mark.parametrize("more", [0, 1, 2])
def test_agreement_is_put_back_also_where_redis_went_on_without_it(more: int) -> None:
    held = other_history(200, more)
    assert (held.revision < agreed().revision) == (more < 2)
    one = voice("new", agreed())
    one.hear(held)
    assert one.emits(100)
    assert one.upto(150) is None  # nor is the other proposal stood at
    after = one.answer(at(150))
    assert after is not None
    assert (after.seams, after.first, after.proposal) == (agreed().seams, "old", None)
    assert after.revision > held.revision
    one.hear(after)
    assert one.answer(at(150)) is None


def test_later_history_that_holds_what_was_agreed_is_taken() -> None:
    later = agreed().propose("new", "old", 300)
    one = voice("new", agreed())
    one.hear(later)
    assert one.record == later
    # An owner that remembers a later revision does not undo what was agreed without it.
    one = voice("old", other_history(200, 3))
    one.hear(agreed())
    assert one.record.seams == agreed().seams
    assert one.record.revision > other_history(200, 3).revision


def test_group_that_waits_is_put_back_too() -> None:
    one = voice("new", WAITING)
    one.hear(Handovers().wait("third"))
    assert not one.emits(0)
    after = one.answer(at(0))
    assert after is not None
    assert set(after.waiting) == {"new", "third"}


def test_another_agreement_instead_of_the_one_heard_of_is_a_contradiction() -> None:
    other = other_history(200).ready("old").ready("new")
    held = other.decide(other.proposal.number if other.proposal is not None else 0)
    assert held is not None
    one = voice("new", agreed())
    one.hear(held)
    assert one.contradicted
    assert one.record == agreed()
    assert one.answer(at(150)) is None
    one.hear(agreed())
    assert not one.contradicted


def test_of_another_log_nothing_is_remembered() -> None:
    after = agreed().of_another_log()
    one = voice("new", agreed())
    one.hear(after)
    assert one.record == after
    one.hear(agreed())  # Redis forgot the reset
    assert one.answer(at(0)) == after
    assert voice("new", after).record.parse(str(after)) == after
    assert "logs" not in str(agreed())  # as former workers wrote it: the text is compared


# -- the command -----------------------------------------------------------------------------------


def play(command: Any, *answers: Any) -> tuple[list[Any], Outcome | None]:
    """Answer a command's questions in order; return them, and its outcome if it came to one."""
    asked, answer = [], None
    for following in (*answers, None):
        try:
            asked.append(command.send(answer))
        except StopIteration as end:
            return asked, end.value
        answer = following
    return asked, None


def test_command_proposes_the_log_s_end_and_decides_once_both_are_ready() -> None:
    where = Where(WAITING, 100, 80)
    asked, outcome = play(
        hand_over("old", "new"),
        where, PROPOSED, True, READY, agreed(),
    )  # fmt: skip
    assert asked == [
        AskWhere(), Change(WAITING, PROPOSED), Pause(), AskRecord(), Change(READY, agreed()),
    ]  # fmt: skip
    assert outcome == Outcome(Seam(100, "new", NUMBER))


def test_offset_is_ahead_of_both_groups_and_of_the_last_handover() -> None:
    asked, _ = play(hand_over("old", "new"), Where(WAITING, 100, 120))
    assert asked[1].after.proposal.offset == 120
    asked, _ = play(hand_over("new", "old"), Where(agreed(), 50, 60))
    assert asked[1].after.proposal.offset == 100


def test_fast_input_is_met_further_ahead() -> None:
    where, late = Where(WAITING, 100, 80), PROPOSED.beyond(130)
    without = withdrawn(late)
    asked, _ = play(
        hand_over("old", "new"),
        where, PROPOSED, True, late, without, True, Where(without, 140, 140),
    )  # fmt: skip
    assert asked[4:7] == [Change(late, without), Pause(), AskWhere()]
    assert asked[7].after.proposal.offset == 140 + 3 * 30


def test_proposal_of_a_killed_command_is_withdrawn_once_every_owner_has_looked() -> None:
    half = PROPOSED.ready("old")
    looks = [True, half] * LOOKS
    asked, _ = play(hand_over("old", "new"), Where(half, 100, 80), *looks, withdrawn(half))
    assert asked == [
        AskWhere(), *[Pause(), AskRecord()] * LOOKS, Change(half, withdrawn(half)), AskWhere(),
    ]  # fmt: skip


def test_agreement_that_an_owner_puts_back_meanwhile_counts() -> None:
    half = PROPOSED.ready("old")
    asked, outcome = play(
        hand_over("old", "new"), Where(half, 100, 80), True, agreed(), Where(agreed(), 100, 80)
    )
    assert asked == [AskWhere(), Pause(), AskRecord(), AskWhere()]
    assert outcome == Outcome(Seam(100, "new", NUMBER))


def test_proposal_of_a_killed_command_that_both_are_ready_for_is_agreed() -> None:
    asked, outcome = play(
        hand_over("old", "new"), Where(READY, 100, 80), agreed(), Where(agreed(), 150, 150)
    )
    assert asked == [AskWhere(), Change(READY, agreed()), AskWhere()]
    assert outcome == Outcome(Seam(100, "new", NUMBER))


def test_agreement_whose_reply_was_lost_counts() -> None:
    where = Where(WAITING, 100, 80)
    _, outcome = play(hand_over("old", "new"), where, PROPOSED, True, agreed())
    assert outcome == Outcome(Seam(100, "new", NUMBER))


def test_when_the_time_is_up_the_proposal_is_withdrawn_and_told() -> None:
    half = PROPOSED.ready("new")
    asked, outcome = play(
        hand_over("old", "new"), Where(WAITING, 100, 80), half, False, withdrawn(half)
    )
    assert asked[3] == Change(half, withdrawn(half))
    assert outcome == Outcome(None, half.proposal)


def test_command_that_comes_second_finds_the_outputs_handed_over() -> None:
    asked, outcome = play(hand_over("old", "new"), Where(agreed(), 150, 150))
    assert asked == [AskWhere()]
    assert outcome == Outcome(Seam(100, "new", NUMBER))


def test_cancelling_finds_out_that_it_was_agreed_meanwhile() -> None:
    asked, outcome = play(cancel(PROPOSED), True, agreed())
    assert asked == [Pause(), AskRecord()]
    assert outcome == Outcome(Seam(100, "new", NUMBER))
    asked, outcome = play(cancel(READY), agreed())  # too late: one of them may have gone on
    assert asked == [Change(READY, agreed())]
    assert outcome == Outcome(Seam(100, "new", NUMBER))
    assert play(cancel(agreed())) == ([], Outcome(None))
