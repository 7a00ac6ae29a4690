"""What a worker's log says of a handover: a line for a person, never the record as it is stored."""

from __future__ import annotations

from dataclasses import replace

from keyfold.worker.handover.ownership import Handovers
from keyfold.worker.handover.words import told

NOTHING = Handovers()
WAITING = NOTHING.wait("new")
PROPOSED = WAITING.propose("old", "new", 40)
READY = PROPOSED.ready("old")


def agreed() -> Handovers:
    both = READY.ready("new")
    assert both.proposal is not None
    after = both.decide(both.proposal.number)
    assert after is not None
    return after


def test_each_step_of_a_handover_is_a_line() -> None:
    assert told(NOTHING, WAITING) == "group 'new' has begun and waits to be given the outputs"
    assert told(WAITING, PROPOSED) == (
        "it is proposed that group 'new' has the outputs from offset 40 on, in place of 'old'"
    )
    assert told(PROPOSED, READY) == "group 'old' stands ready at offset 40"
    assert told(READY, agreed()) == "group 'new' has the outputs from offset 40 on"


def test_several_steps_at_once_are_one_line() -> None:
    assert told(NOTHING, READY) == (
        "group 'new' has begun and waits to be given the outputs; it is proposed that group 'new' "
        "has the outputs from offset 40 on, in place of 'old'"
    )


def test_a_proposal_that_is_withdrawn_is_told() -> None:
    assert PROPOSED.proposal is not None
    after = PROPOSED.withdraw(PROPOSED.proposal.number)
    assert after is not None
    assert told(PROPOSED, after) == "the proposal to give group 'new' the outputs is withdrawn"


def test_offsets_that_begin_anew_are_told() -> None:
    assert told(agreed(), agreed().of_another_log()) == (
        "the log's offsets begin anew: handovers before that count no more"
    )


def test_what_nobody_need_know_is_not_told() -> None:
    assert told(READY, READY.beyond(50)) == ""
    assert told(NOTHING, replace(NOTHING, revision=3)) == ""
