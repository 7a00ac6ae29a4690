"""PURE: one partition's cursors and decisions. No I/O, no clock, no randomness.

Owns what the state protocol decides (DESIGN section 5): where to start, whether what Redis and the
log say allows going on, which save comes next and what its reply means. What a phase asks for, and
in which order, is in worker/phases.py; the prose is in worker/PROTOCOL.md. It must not know Kafka,
Redis or Faust: worker/owner.py and the simulator carry its decisions out.

    UNASSIGNED -> ACQUIRE -> SEEK -> RUN -> { REWIND -> ACQUIRE | DRAIN -> UNASSIGNED | HALT }

HALT tries ACQUIRE again now and then, so that an operator's command takes effect without a restart.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from keyfold.worker.errors import NotOwner, StartUnset
from keyfold.worker.halts import Halts
from keyfold.worker.handover.ownership import Cursors, Handovers, Voice
from keyfold.worker.protocol import (
    Acquired,
    Beginning,
    Fence,
    Fingerprint,
    GroupOffset,
    Held,
    Phase,
    Record,
    Refused,
    SavePlan,
    Topic,
    outputs_metadata,
    resets_of,
)

R = TypeVar("R", bound=Record)
NEVER = 1 << 62  # no offset is so large


@dataclass(frozen=True, slots=True)
class Rules:
    """What an operator decided beforehand."""

    exactly_once: bool = False  # outputs go out in transactions together with the group offset
    bundle_change: str = "halt"  # or "rebuild", "reset": what becomes of another bundle's states
    mark_lost: bool = False  # go on where retention took events, with marked predictions
    silent: bool = False  # a group that begins emits nothing before it is handed the outputs


class Partition:
    """The protocol's state for one source partition; every method is one event of its life."""

    def __init__(
        self,
        topic: str,
        number: int,
        group: str,
        settings: str = "worker.toml",
        rules: Rules | None = None,
    ) -> None:
        self.topic, self.number, self.group = topic, number, group
        self.rules = rules or Rules()
        self.halts = Halts(settings, number)  # `settings` is a file, for the operator's commands
        self.phase = Phase.UNASSIGNED
        self.halted: str = ""  # why, while in HALT
        self.fence: Fence | None = None
        # W <= A <= P: saved, acked, applied. P is also the end of the last micro-batch.
        self.saved = self.acked = self.applied = 0
        self.next_offset = 0  # the next record to take from the log
        self.emit_from = 0  # outputs about offsets below it are out already, or not wanted
        self.emit_floor = 0  # the same, for the events that are this group's to predict at all
        self.voice = Voice(group)  # which these are
        self.begun = 0  # end of the last micro-batch that was taken; it may be under way
        self.out = 0  # below it outputs may be out that a former owner did not save
        self.lost_upto = 0  # end of the last range that retention took unseen; 0: none
        self.last: Fingerprint | None = None  # of the last applied record
        self.stream_ms: int | None = None  # stream time at P; None: no event yet
        self.unverified = False  # the fingerprint's record was not in the log any more
        self._to_verify: Fingerprint | None = None  # the log must still hold this record
        self._committed = 0  # exactly-once: group offset of the last transaction
        self._resets = 0  # of the outputs; part of the group offset's metadata
        self._of_another_log: GroupOffset | None = None  # C that lay beyond the log's end
        self._refused_at = -1  # offset of a fetch that the broker refused
        self._cut: tuple[int, int] | None = None  # resets then, and an offset beyond the log's end

    def __str__(self) -> str:
        return f"{self.topic}:{self.number}"

    # -- ACQUIRE ---------------------------------------------------------------------------------

    def acquire(self) -> None:
        """Start over: nothing that was in memory counts any more."""
        self.phase = Phase.ACQUIRE
        self.fence = None
        self.voice.forget()

    def begins_at(self, configured: Beginning | None) -> Beginning:
        """Decide where a group begins that never saved anything. Raises StartUnset.

        `configured` is what the settings say, None when worker.start is not set.
        """
        if configured is None:
            raise StartUnset(
                f"{self}: no saved state and no group offset in group {self.group!r}, and "
                "worker.start is not set: set it to 'earliest' or 'latest', or to a time or -7d, "
                "to say where this group begins"
            )
        return configured

    def begins_again_at(self, group_offset: GroupOffset) -> Beginning | None:
        """Decide where Redis may begin if it holds nothing and the group has an offset.

        None: nowhere, saved states existed once (the group offset says so) and are gone. The
        settings are not asked again: what they meant was decided when the group was new.
        """
        return Beginning.read(group_offset)

    def begins_silent(self, record: Handovers) -> Handovers | None:
        """Decide what the record must say before this group begins; None: what it says.

        Only a group that begins waits to be handed the outputs: one that has a state has, or had,
        outputs of its own, and a setting must not end them without a word.
        """
        if not self.rules.silent or self.group in record.waiting:
            return None
        return record.wait(self.group)

    def begin_anew_at(self, refused: Refused, log_start: int) -> int | None:
        """Decide where another bundle's states are folded anew by this one; None: they are not.

        Nothing below the refused state's watermark is emitted again.
        """
        if refused.what != "bundle" or self.rules.bundle_change == "halt":
            return None
        if self.rules.bundle_change == "reset":
            return refused.watermark
        # Retention may have taken a part of what the states were made of: an operator's decision.
        return None if refused.base < log_start else refused.base

    def refuse(self, refused: Refused) -> None:
        """Note that Redis holds what this worker must not use."""
        self.halt(self.halts.refused(refused))

    def may_skip(self, acquired: Acquired, log_start: int) -> bool:
        """Decide whether to go on behind events that retention took before they were folded."""
        return acquired.watermark < log_start and self.rules.mark_lost

    def acquired(
        self, reply: Acquired, log_start: int, log_end: int, group_offset: GroupOffset | None = None
    ) -> int | None:
        """Judge Redis's word against the log's bounds; return the offset to seek to, None: HALT.

        `group_offset` is C, needed with exactly-once outputs only.
        """
        self.fence = reply.fence
        self.saved = self.acked = self.applied = reply.watermark
        self.last = self._to_verify = reply.fingerprint
        self.stream_ms, self.lost_upto = reply.stream_ms, reply.lost_upto
        self.begun, self.out, self._resets = reply.watermark, 0, reply.resets
        if reply.watermark < log_start:
            self.halt(self.halts.events_lost(reply.watermark, log_start))
            return None
        if not self._find_emit_from(reply, log_end, group_offset):
            return None
        self.emit_floor = self.emit_from
        if self._to_verify is not None and self._to_verify.offset < log_start:
            self._to_verify, self.unverified = None, True
        self.next_offset = reply.watermark if self._to_verify is None else self._to_verify.offset
        refused, self._refused_at = self._refused_at, -1
        if refused > max(log_end, self.next_offset):
            # The log was cut behind W: what is out about the offsets in between is of other
            # records than those that will follow there. Only a reset ends this.
            self._cut = (reply.resets, refused)
        if self._cut is not None and self._cut[0] == reply.resets:
            self.halt(self.halts.log_too_short(self._cut[1]))
            return None
        if refused == self.next_offset:
            # Not below the log's start, as was just seen: beyond its end.
            self.halt(self.halts.log_too_short(refused))
            return None
        self.phase = Phase.SEEK
        return self.next_offset

    def _find_emit_from(
        self, reply: Acquired, log_end: int, group_offset: GroupOffset | None
    ) -> bool:
        """Set emit_from; False: HALT, what is out already cannot be told."""
        self.emit_from = max(reply.watermark, reply.floor)
        self._committed = 0
        if not self.rules.exactly_once:
            return True
        said = None if group_offset is None else resets_of(group_offset.metadata)
        known = reply.watermark if reply.committed is None else reply.committed
        if group_offset is not None and said == self._resets and group_offset.offset >= known:
            if group_offset.offset > log_end or group_offset == self._of_another_log:
                # Of another log: up to there nothing would ever be emitted, without a word. Nor
                # does it become true when the log has grown beyond it.
                self._of_another_log = group_offset
                self.halt(self.halts.log_too_short(group_offset.offset))
                return False
            self._committed = group_offset.offset
            self.emit_from = max(self.emit_from, group_offset.offset)
            return True
        forgot_reset = said is not None and said > self._resets  # Redis did, in a failover
        if reply.watermark < log_end and (reply.committed is not None or forgot_reset):
            # Not its own doing: transactions set C, and C is no longer there, or not of this era.
            self.halt(self.halts.outputs_unknown(reply.watermark, known, log_end))
            return False
        return True

    def sought(self) -> None:
        """Note that the position is at next_offset: what is fetched from now on may be offered."""
        if self.phase is Phase.SEEK and self._to_verify is None:
            self.phase = Phase.RUN

    def out_of_range(self, offset: int) -> None:
        """Note that the broker refused a fetch at `offset`: ACQUIRE judges it."""
        if self.phase in (Phase.SEEK, Phase.RUN):  # else it has left that position meanwhile
            self.acquire()
            self._refused_at = offset

    def offer(self, records: Sequence[R]) -> Sequence[R]:
        """Take fetched records in offset order; return those to apply, none when not running.

        In SEEK the first record must be the one of the fingerprint, or the log is another log.
        """
        if self.phase is Phase.SEEK and self._to_verify is not None and records:
            self._verify(records[0])
        if self.phase is not Phase.RUN or not records:
            return ()
        if records[0].offset < self.next_offset:
            records = records[bisect_left(records, self.next_offset, key=lambda r: r.offset) :]
        if records:
            self.next_offset = records[-1].offset + 1
        return records

    def pass_to(self, position: int) -> bool:
        """Note that below `position` there is no further record: markers, aborted transactions.

        Returns whether P moved. Only while nothing waits to be applied, or it would jump events.
        """
        if self.phase is not Phase.RUN or self.next_offset != self.applied:
            return False
        proposal = self.voice.proposal
        if proposal is not None:
            position = min(position, proposal.offset)
        if position <= self.applied:
            return False
        self.next_offset = self.applied = position
        self._check()
        return True

    # -- whose predictions they are ----------------------------------------------------------------

    def hear(self, record: Handovers, log_end: int | None = None) -> None:
        """Take Redis's word on whose predictions the outputs are.

        `log_end`, with the first, was read under our fence: at-least-once outputs of a former owner
        are about records below it.
        """
        if log_end is not None:
            self.out = self.emit_floor if self.rules.exactly_once else log_end
        self.voice.hear(record)
        if self.voice.contradicted:
            self.halt(
                f"handovers: expected {self.voice.record}, as this worker has heard it, and what "
                f"follows from it, got {record}: Redis lost an agreement, and another was made: "
                "outputs may be out twice or missing between the two (keyfold-verify tells); "
                "restart this worker to go on with what Redis holds"
            )

    def begin(self, first: int, upto: int) -> None:
        """Note that a micro-batch of records from `first` to below `upto` begins; set emit_from."""
        self.begun = upto
        self.emit_from = self.emit_floor if self.voice.emits(first) else NEVER

    def stand_before(self, first: int) -> None:
        """Note that the next record to be taken is this one: is a proposal's offset reached?

        The record may lie beyond it: there need not be one at every offset.
        """
        proposal = self.voice.proposal
        if self.phase is Phase.RUN and proposal is not None and self.applied >= self.begun:
            self.applied = max(self.applied, min(first, proposal.offset))
            self._check()

    @property
    def stands(self) -> bool:
        """Whether a proposal's offset is reached: what is applied is to be saved now."""
        proposal = self.voice.proposal
        return proposal is not None and self.applied == proposal.offset

    def answer(self, stood_s: float) -> Handovers | None:
        """Return what the record of handovers should be instead; None: nothing is to be said.

        `stood_s` is for how long nothing moved at a proposal's offset.
        """
        begun = max(self.begun, self.applied)
        return self.voice.answer(Cursors(begun, self.applied, self.saved, self.out, stood_s))

    def _verify(self, first: Record) -> None:
        expected = self._to_verify
        if expected is None:
            return
        if first.offset == expected.offset and Fingerprint.of(first) != expected:
            self.halt(self.halts.another_record(expected))
            return
        # A later first record: the one of the fingerprint was compacted away. Go on, and say so.
        self.unverified = first.offset != expected.offset
        self._to_verify = None
        self.next_offset = self.saved
        self.phase = Phase.RUN

    # -- RUN -------------------------------------------------------------------------------------

    def apply(self, upto: int, last: Fingerprint, stream_ms: int | None = None) -> None:
        """Note that every event below `upto` is in the slots; `last` is the last record's."""
        self.applied, self.last, self.stream_ms = upto, last, stream_ms
        self._check()

    def outputs_upto(self, upto: int) -> GroupOffset | None:
        """Return C for the transaction that emits what is below `upto`; None: all of it is out.

        A silent replay must not move C back. At-least-once outputs do not look at it.
        """
        if upto <= self._committed:
            return None
        return GroupOffset(upto, outputs_metadata(self._resets))

    def ack(self, upto: int) -> None:
        """Note that every output of the events below `upto` is acked."""
        self.acked = max(self.acked, upto)
        self._committed = max(self._committed, upto)
        self._check()

    def plan_save(self) -> SavePlan | None:
        """Plan the next save up to the last micro-batch's end; None: nothing to save."""
        if self.phase not in (Phase.RUN, Phase.DRAIN) or self.applied == self.saved:
            return None
        return SavePlan(self.saved, self.applied, self.last, self.stream_ms)

    def judge_save(self, plan: SavePlan, held: Held) -> None:
        """Judge what Redis holds after a save was sent: OK, or lost writes, or not mine.

        Redis's reply to a save always says what it holds now, so a repeated save whose first reply
        was lost reads as OK. Raises NotOwner.
        """
        if self._mine(held):
            if held.watermark == plan.w1:
                self.saved = plan.w1
                self._check()
            else:
                self._rewind()

    def judge_held(self, held: Held, since: int) -> bool:
        """Judge what Redis held at some instant since W was `since`: True when nothing was lost.

        Only this owner moves W: a later watermark is one that it has set itself. Raises NotOwner.
        """
        if not self._mine(held):
            return False
        if held.watermark is not None and since <= held.watermark <= self.applied:
            return True
        self._rewind()
        return False

    def judge_topic(self, before: Topic, now: Topic) -> None:
        """Judge the topic as it is against what it was when the fence was taken."""
        grown = now.partitions not in (0, before.partitions)  # 0: this broker does not know it now
        replaced = now.identity and before.identity and now.identity != before.identity
        if (grown or replaced) and self.phase is Phase.RUN:
            self.acquire()  # which says what is wrong

    def _mine(self, held: Held) -> bool:
        fence = self.fence
        if fence is None or self.phase not in (Phase.RUN, Phase.DRAIN):
            return False
        if held.watermark is None or held.number < fence.number:
            self._rewind()  # only lost writes can remove the hash or take the fence back
            return False
        if (held.number, held.nonce, held.bundle) != (fence.number, fence.nonce, fence.bundle):
            self.release()
            raise NotOwner(
                f"{self}: expected owner {fence.number}/{fence.nonce} with bundle {fence.bundle}, "
                f"got {held.number}/{held.nonce} with bundle {held.bundle}: another worker, or an "
                "operator's command, took it"
            )
        if held.keys != held.found:
            self.halt(self.halts.states_missing(held))
            return False
        return True

    def _rewind(self) -> None:
        # While draining the next owner may be there already: it will see the loss itself.
        self.phase = Phase.REWIND if self.phase is Phase.RUN else Phase.UNASSIGNED

    # -- the ends --------------------------------------------------------------------------------

    def drain(self) -> None:
        """Stop taking records; what is applied may still be acked and saved."""
        self.phase = Phase.DRAIN if self.phase is Phase.RUN else Phase.UNASSIGNED

    def release(self) -> None:
        """Give the partition up."""
        self.phase = Phase.UNASSIGNED

    def halt(self, why: str) -> None:
        """Stop this partition until an operator resolves it; the message names the command."""
        # While draining there is nothing left to stop, and HALT would keep the partition.
        draining = self.phase in (Phase.DRAIN, Phase.UNASSIGNED)
        self.phase, self.halted = Phase.UNASSIGNED if draining else Phase.HALT, why

    def _check(self) -> None:
        if not self.saved <= self.acked <= self.applied:
            raise RuntimeError(
                f"{self}: expected W <= A <= P, got {self.saved}, {self.acked}, {self.applied}"
            )
