"""PURE: whose predictions an output topic holds, offset by offset, and how that changes hands.

Owns the record of one (input, output, partition), what may become of it, and what a group's owner
of that partition does about it: where it has to stop, what it may put out, what it answers. The
record is one value, replaced by compare-and-set only (store.py). No I/O, no clock.
Called by worker/partition.py, worker/state/handover.py and keyfold-verify. Prose: PROTOCOL.md.

    (nothing) -> proposed -> agreed: a seam | withdrawn: as before

Redis may lose the last changes in a failover, and others may be made instead: revisions alone do
not tell one history from another. What was agreed does: seams are only ever added.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

GIVE_UP_S = 10.0  # an owner that has stood at a proposal's offset for so long withdraws it


class HandoverRefused(Exception):
    """What was asked does not go with the record; the text says why."""


@dataclass(frozen=True, slots=True)
class Seam:
    """Where the outputs changed hands."""

    offset: int  # of the first event whose prediction is this group's
    group: str  # who has them from there on
    number: int  # of the proposal that was agreed


@dataclass(frozen=True, slots=True)
class Proposal:
    """A seam that is not decided yet: both groups stop there until it is."""

    number: int  # the record's revision when it was made: no other proposal has it
    giver: str  # who has the outputs
    taker: str  # who is to have them
    offset: int  # of the first event whose prediction would be the taker's
    # Who stands there: everything below it is out and saved, nothing from it on was begun.
    ready: tuple[str, ...] = ()
    beyond: int = 0  # a group may be this far already, so that it never stands at `offset`; 0: none


@dataclass(frozen=True, slots=True)
class Handovers:
    """The record: what was agreed, and what is proposed."""

    revision: int = 0  # increased by every change: no content comes twice
    first: str = ""  # who had the outputs below the first seam; "": there is no seam
    seams: tuple[Seam, ...] = ()  # ascending
    waiting: tuple[str, ...] = ()  # groups that began with worker.emit_from = handover
    proposal: Proposal | None = None  # None: nothing is undecided
    logs: int = 0  # how often offsets began anew: of other logs nothing is remembered

    # -- what it says ------------------------------------------------------------------------------

    def emits(self, group: str, offset: int) -> bool:
        """Say whether an event's prediction is this group's."""
        if not self.seams:
            return group not in self.waiting
        return self._at(offset) == group

    def _at(self, offset: int) -> str:
        of = self.first
        for seam in self.seams:
            if seam.offset > offset:
                break
            of = seam.group
        return of

    @property
    def last(self) -> str:
        """Return who has the outputs now, "" when nobody was ever named."""
        return self.seams[-1].group if self.seams else ""

    def agreed(self, number: int) -> Seam | None:
        """Return the seam that a proposal became, None when it did not."""
        return next((seam for seam in self.seams if seam.number == number), None)

    def ranges(self, group: str) -> Iterator[tuple[int, int | None]]:
        """Yield the ranges [from, to) of offsets whose predictions are a group's; None: no end."""
        if not self.seams:
            if self.emits(group, 0):
                yield 0, None
            return
        begins = [(0, self.first), *((seam.offset, seam.group) for seam in self.seams)]
        ends: list[int | None] = [*(seam.offset for seam in self.seams), None]
        for (begin, of), end in zip(begins, ends, strict=True):
            if of == group and (end is None or begin < end):
                yield begin, end

    # -- what may become of it ---------------------------------------------------------------------

    def propose(self, giver: str, taker: str, offset: int) -> Handovers:
        """Propose that `taker` has the outputs from `offset` on. Raises HandoverRefused."""
        if self.proposal is not None:
            raise HandoverRefused(f"another proposal stands: {self.proposal}")
        if self.seams and offset < self.seams[-1].offset:
            raise HandoverRefused(f"expected an offset from {self.seams[-1].offset} on")
        if not self.emits(giver, offset):
            raise HandoverRefused(
                f"expected group {giver!r} to emit, got {self.last or 'others'!r}"
            )
        if self.emits(taker, offset):
            raise HandoverRefused(f"group {taker!r} emits already")
        number = self.revision + 1
        return self._next(proposal=Proposal(number, giver, taker, offset))

    def decide(self, number: int) -> Handovers | None:
        """Agree to a proposal; None: it is not there any more, or not everybody is ready."""
        proposal = self.proposal
        if proposal is None or proposal.number != number or proposal.beyond > proposal.offset:
            return None
        if not {proposal.giver, proposal.taker} <= set(proposal.ready):
            return None
        seam = Seam(proposal.offset, proposal.taker, number)
        return self._next(
            first=self.first or proposal.giver, seams=(*self.seams, seam), proposal=None
        )

    def withdraw(self, number: int) -> Handovers | None:
        """Withdraw a proposal; None: it is not there any more.

        Where both are ready it is agreed instead: Redis may have forgotten that it was, and one of
        them may have gone on.
        """
        if self.proposal is None or self.proposal.number != number:
            return None
        return self.decide(number) or self._next(proposal=None)

    def wait(self, group: str) -> Handovers:
        """Note a group that is to emit nothing before it was handed the outputs."""
        return self._next(waiting=(*self.waiting, group))

    def ready(self, group: str) -> Handovers:
        """Note that a group stands at the proposal's offset."""
        proposal = self._proposal()
        return self._next(proposal=replace(proposal, ready=(*proposal.ready, group)))

    def beyond(self, position: int) -> Handovers:
        """Note that a group may be beyond the proposal's offset."""
        return self._next(proposal=replace(self._proposal(), beyond=position))

    def of_another_log(self) -> Handovers:
        """Forget the seams, not who has the outputs: offsets begin anew."""
        return Handovers(self.revision + 1, waiting=self._silent(), logs=self.logs + 1)

    def remembered(self, held: Handovers) -> Handovers | None:
        """Return what holds for who remembers this and reads `held`, which may have lost a part.

        A later revision than held.revision: it is to be put back. None: they contradict each other.
        """
        if held.logs != self.logs:
            later = self.revision > held.revision
            mine = self if later else replace(self, revision=held.revision + 1)
            return mine if self.logs > held.logs else held
        newer, older = (self, held) if self.revision > held.revision else (held, self)
        known = min(len(newer.seams), len(older.seams))
        if newer.seams[:known] != older.seams[:known] or (known and newer.first != older.first):
            return None
        seams = older.seams[len(newer.seams) :]
        waiting = tuple(group for group in older.waiting if group not in newer.waiting)
        if not (seams or waiting):
            return newer
        return newer._next(
            first=newer.first or older.first,
            seams=newer.seams + seams,
            waiting=newer.waiting + waiting,
            proposal=None if seams else newer.proposal,
        )

    def _silent(self) -> tuple[str, ...]:
        known = {self.first, *self.waiting, *(seam.group for seam in self.seams)} - {""}
        return tuple(sorted(group for group in known if not self.emits(group, 1 << 62)))

    def _proposal(self) -> Proposal:
        if self.proposal is None:
            raise HandoverRefused("expected a proposal, got none")
        return self.proposal

    def _next(self, **changes: Any) -> Handovers:
        return replace(self, revision=self.revision + 1, **changes)

    # -- as text -----------------------------------------------------------------------------------

    def __str__(self) -> str:
        told = asdict(self)
        if not self.logs:
            del told["logs"]  # the text of a record is compared: it must stay what it was
        return json.dumps(told, separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Handovers:
        """Read str() back; "": nothing was ever noted. Raises ValueError."""
        if not text:
            return cls()
        try:
            read = json.loads(text)
            proposal = read["proposal"]
            return cls(
                read["revision"],
                read["first"],
                tuple(Seam(**seam) for seam in read["seams"]),
                tuple(read["waiting"]),
                proposal and Proposal(**{**proposal, "ready": tuple(proposal["ready"])}),
                read.get("logs", 0),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"expected a record of handovers, got {text[:200]!r}") from error


@dataclass(frozen=True, slots=True)
class Cursors:
    """Where an owner is, when it answers a proposal."""

    begun: int  # end of the last micro-batch taken, applied or not
    applied: int  # P
    saved: int  # W
    out: int  # outputs below it may be out by a former owner
    stood_s: float  # for so long nothing has moved at the proposal's offset


class Voice:
    """One group's owner of a partition: what it has heard, and what follows from that."""

    def __init__(self, group: str) -> None:
        self.group = group
        self.record = Handovers()  # as it was last heard, also before the last ACQUIRE
        self.held = Handovers()  # what Redis said last: older, where it has lost writes
        self.heard = False  # since the last ACQUIRE
        self.contradicted = False  # what Redis holds cannot be what became of what was heard

    def forget(self) -> None:
        """Take nothing for granted any more, but remember what Redis may have lost."""
        self.heard = False

    def hear(self, record: Handovers) -> None:
        """Take what Redis holds."""
        self.held, self.heard = record, True
        known = self.record.remembered(record)
        self.contradicted = known is None
        self.record = known or self.record

    @property
    def proposal(self) -> Proposal | None:
        """Return the proposal that stands and concerns this group."""
        proposal = self.record.proposal
        mine = proposal is not None and self.group in (proposal.giver, proposal.taker)
        return proposal if mine else None

    def emits(self, offset: int) -> bool:
        """Say whether an event's prediction is this group's."""
        return self.record.emits(self.group, offset)

    def upto(self, first: int) -> int | None:
        """Return where a micro-batch that begins with this record must end; None: anywhere.

        It is `first` itself where nothing may be taken. A micro-batch never spans a seam, be it
        agreed or proposed.
        """
        if not self.heard:
            return first
        ends = [seam.offset for seam in self.record.seams if seam.offset > first]
        if self.proposal is not None:
            ends.append(max(self.proposal.offset, first))
        return min(ends) if ends else None

    def answer(self, at: Cursors) -> Handovers | None:
        """Return what the record should be instead; None: nothing is to be said."""
        if self.contradicted:
            return None
        if self.record.revision > self.held.revision:
            return self.record  # Redis lost it
        proposal = self.proposal
        if proposal is None:
            return None
        # Ready is said once all that a former owner may have put out lies below the offset. Who is
        # beyond it all the same has heard that it was withdrawn, which Redis then forgot.
        ready = self.group in proposal.ready
        position = at.begun if ready else max(at.begun, at.out)
        if position > max(proposal.offset, proposal.beyond):
            return self.record.beyond(position)
        if at.stood_s >= GIVE_UP_S:
            return self.record.withdraw(proposal.number)
        if ready or position > proposal.offset:
            return None
        stands = at.applied == at.saved == proposal.offset
        return self.record.ready(self.group) if stands else None
