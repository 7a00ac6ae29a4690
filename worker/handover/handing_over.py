"""PURE: how keyfold-state hands one partition's outputs over, question by question.

Owns the order: choose an offset, propose it, wait until both groups stand there, decide; and what
becomes of a proposal that nobody can reach. The command may die after any question: what it leaves
is a proposal, which the owners withdraw by themselves. worker/state/handover.py answers with Kafka
and Redis, the simulator with models. No I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, cast

from keyfold.worker.handover.ownership import Handovers, Proposal, Seam

AHEAD = 3  # times the events that came between a proposal and its hearing
# Pauses before a proposal that was found is withdrawn: by then each owner that is alive has looked
# at the record, and has put back what Redis may have lost in a failover.
LOOKS = 30


@dataclass(frozen=True, slots=True)
class AskWhere:
    """Kafka and Redis: how far everything is -> Where."""


@dataclass(frozen=True, slots=True)
class Where:
    """The answer to AskWhere; the record was read first."""

    record: Handovers  # of the partition
    end: int  # of the log
    furthest: int  # of both groups' watermarks
    slowest: int = 0  # of both groups' watermarks


@dataclass(frozen=True, slots=True)
class AskRecord:
    """Redis: the record -> Handovers."""


@dataclass(frozen=True, slots=True)
class Change:
    """Redis: replace the record, if it is still `before` -> Handovers: what it is then."""

    before: Handovers  # as it must be
    after: Handovers  # as it shall be


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait a moment -> bool: whether there is time left."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it."""

    seam: Seam | None  # from where on the taker has the outputs; None: the giver keeps them
    proposal: Proposal | None = None  # the last one, as it was withdrawn


Asked = AskWhere | AskRecord | Change | Pause
Answered = Generator[Asked, Any, Outcome]


def hand_over(giver: str, taker: str) -> Answered:
    """Hand a partition's outputs from one group to another. Raises HandoverRefused."""
    ahead = 0
    while True:
        where = cast(Where, (yield AskWhere()))
        record = where.record
        if record.proposal is not None:  # of a command that died, or one that Redis remembers
            yield from _clear(record, record.proposal)
            continue
        if record.seams and record.last == taker:
            return Outcome(record.seams[-1])
        latest = record.seams[-1].offset if record.seams else 0
        offset = max(where.end, where.furthest, latest) + ahead
        made = record.propose(giver, taker, offset)
        held = cast(Handovers, (yield Change(record, made)))
        proposal = cast(Proposal, made.proposal)
        seam, left, in_time = yield from _decide(held, proposal)
        if seam is not None:
            return Outcome(seam)
        if not in_time or not (yield Pause()):
            return Outcome(None, left)
        # Fast input: so many came before the owner heard of it.
        ahead = AHEAD * (left.beyond - where.end) if left.beyond > offset else 0


def cancel(record: Handovers) -> Answered:
    """Withdraw whatever is proposed."""
    while record.proposal is not None:
        proposal = record.proposal
        record = yield from _clear(record, proposal)
        seam = record.agreed(proposal.number)
        if seam is not None:
            return Outcome(seam)
    return Outcome(None)


def _decide(
    held: Handovers, proposal: Proposal
) -> Generator[Asked, Any, tuple[Seam | None, Proposal, bool]]:
    """Wait for both groups and decide; return the seam, the proposal as it was last, and whether
    there was time left.
    """
    number, last = proposal.number, proposal
    while True:
        seam, now = held.agreed(number), held.proposal
        if seam is not None or now is None or not _same(now, proposal):
            return seam, last, True
        last = now
        if now.beyond > now.offset:
            held = yield from _withdraw(held, now)
            continue
        agreed = held.decide(number)
        if agreed is not None:
            held = cast(Handovers, (yield Change(held, agreed)))
        elif (yield Pause()):
            held = cast(Handovers, (yield AskRecord()))
        else:
            held = yield from _withdraw(held, now)
            return held.agreed(number), last, False


def _clear(held: Handovers, proposal: Proposal) -> Generator[Asked, Any, Handovers]:
    """Withdraw a proposal that was found, once the owners have had their say about it."""
    for _ in range(LOOKS):
        if held.proposal is None or held.decide(proposal.number) is not None:
            break  # nobody can object to an agreement of both
        if not (yield Pause()):
            break
        held = cast(Handovers, (yield AskRecord()))
    return (yield from _withdraw(held, proposal))


def _withdraw(held: Handovers, proposal: Proposal) -> Generator[Asked, Any, Handovers]:
    """Withdraw a proposal, unless it is decided meanwhile; return the record without it."""
    while True:
        after = held.withdraw(proposal.number)
        if after is None:
            return held
        held = cast(Handovers, (yield Change(held, after)))


def _same(one: Proposal, other: Proposal) -> bool:
    return (one.number, one.giver, one.taker, one.offset) == (
        other.number, other.giver, other.taker, other.offset,
    )  # fmt: skip
