"""Pairs of groups that each lack one safeguard of a handover: the simulator must catch every one.

As in controls.py, each replaces one part of the worlds. Run by test_pair.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from keyfold.worker.handover.handing_over import Answered, AskWhere, Change, Outcome, Where
from keyfold.worker.handover.ownership import Handovers, Voice
from keyfold.worker.partition import Partition
from simulator.controls import Control
from simulator.pair import fail_over
from simulator.world import Parts, Weights, World


def agrees_at_once(giver: str, taker: str) -> Answered:
    """Decide without waiting for anybody."""
    where = cast(Where, (yield AskWhere()))
    record, offset = where.record, max(where.end, where.furthest)
    made = record.propose(giver, taker, offset).ready(giver).ready(taker)
    number = made.proposal.number if made.proposal is not None else 0
    agreed = cast(Handovers, made.decide(number))
    held = cast(Handovers, (yield Change(record, agreed)))
    return Outcome(held.agreed(number))


class _Deaf(Voice):
    """Takes records before it has heard the record."""

    def upto(self, first: int) -> int | None:
        heard, self.heard = self.heard, True
        try:
            return super().upto(first)
        finally:
            self.heard = heard


class _NeverStops(Voice):
    """Goes on behind a proposal's offset."""

    def upto(self, first: int) -> int | None:
        return None if self.heard and not self.record.seams else super().upto(first)


class _Spans(Voice):
    """A micro-batch may span a seam."""

    def upto(self, first: int) -> int | None:
        return super().upto(first) if self.proposal is not None or not self.heard else None


def _with(kind: type[Voice]) -> type[Partition]:
    class WithVoice(Partition):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.voice = kind(self.group)

    return WithVoice


class TrustsFormerOwners(Partition):
    """What a former owner may have put out without saving it is not looked at."""

    def hear(self, record: Handovers, log_end: int | None = None) -> None:
        super().hear(record, None if log_end is None else 0)


def failing_over(world: World, weights: Weights) -> None:
    """A Redis that loses writes: what was folded on both sides of a seam is folded again."""
    weights[fail_over] = 4


class _CanBeWithdrawn(Handovers):
    """A proposal that both are ready for can still be withdrawn."""

    __slots__ = ()

    def withdraw(self, number: int) -> Handovers | None:
        if self.proposal is None or self.proposal.number != number:
            return None
        return replace(self, revision=self.revision + 1, proposal=None)


def withdrawing(world: World, weights: Weights) -> None:
    """Use such a record."""
    if not world.common.handovers.revision:
        world.common.handovers = _CanBeWithdrawn()


CONTROLS = {
    "what both are ready for is agreed": Control(Parts(tune=withdrawing), "seam"),
    "both groups are ready before it is agreed": Control(Parts(command=agrees_at_once), "seam"),
    "nothing is taken at a proposal's offset": Control(Parts(partition=_with(_NeverStops)), "seam"),
    "nothing is taken before the record was heard": Control(Parts(partition=_with(_Deaf)), "seam"),
    "no micro-batch spans a seam": Control(Parts(partition=_with(_Spans), tune=failing_over), ""),
    "outputs of a former owner": Control(Parts(partition=TrustsFormerOwners), "seam"),
}
