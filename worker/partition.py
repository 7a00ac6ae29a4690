"""PURE: one partition's phases, cursors and decisions. No I/O, no clock, no randomness.

Owns what the state protocol decides (DESIGN section 5): where to start, whether what Redis and the
log say allows going on, which save comes next and what its reply means. It must not know Kafka,
Redis or Faust; worker/owner.py asks it and carries its decisions out, and simulators may do so too.

    UNASSIGNED -> ACQUIRE -> SEEK -> RUN -> { REWIND -> ACQUIRE | DRAIN -> UNASSIGNED | HALT }

HALT tries ACQUIRE again now and then, so that an operator's command takes effect without a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol, TypeVar
from zlib import crc32

from keyfold.worker.errors import NotOwner, StartUnset

# Metadata of the group offset committed before a partition's first save: nothing was folded yet
# beyond what a replay from that very offset folds again, so starting there anew is no loss.
INIT_METADATA = "keyfold:init"


class Phase(Enum):
    """Where a partition is in the protocol."""

    UNASSIGNED = "unassigned"
    ACQUIRE = "acquire"  # reading Kafka's and Redis's word, taking the fence
    SEEK = "seek"  # waiting for the position, then for the record at the fingerprint
    RUN = "run"
    REWIND = "rewind"  # Redis lost writes: drop everything in memory and acquire again
    DRAIN = "drain"
    HALT = "halt"


class Record(Protocol):
    """What the protocol needs of a Kafka record."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Tells one record of a log from another one at the same offset of another log."""

    offset: int  # of the last applied record
    timestamp_ms: int  # the record's own
    crc: int  # of key and value

    @classmethod
    def of(cls, record: Record) -> Fingerprint:
        """Take a record's fingerprint."""
        return cls(
            record.offset,
            record.timestamp,
            crc32(record.value or b"", crc32(record.key or b"")),
        )

    def __str__(self) -> str:
        return f"{self.offset}:{self.timestamp_ms}:{self.crc}"

    @classmethod
    def parse(cls, text: str) -> Fingerprint | None:
        """Read back str(); the empty text means that nothing was applied yet."""
        return cls(*map(int, text.split(":"))) if text else None


@dataclass(frozen=True, slots=True)
class Fence:
    """Proof of ownership that every save must match."""

    number: int  # increased by each ACQUIRE
    nonce: str  # this worker's
    bundle: str  # bundle id


@dataclass(frozen=True, slots=True)
class GroupOffset:
    """C: what the consumer group has committed, a hint."""

    offset: int  # next offset
    metadata: str  # INIT_METADATA before the first save


@dataclass(frozen=True, slots=True)
class Acquired:
    """Redis's word after the fence was taken."""

    fence: Fence  # now mine
    watermark: int  # W
    fingerprint: Fingerprint | None  # of the last applied record; None: none was


@dataclass(frozen=True, slots=True)
class Refused:
    """Redis holds a state that this worker must not use, or none where there should be one."""

    what: Literal["missing", "partitions", "bundle", "layout"]  # which check failed
    expected: str  # by this worker
    got: str  # in Redis


@dataclass(frozen=True, slots=True)
class SavePlan:
    """One compare-and-set to send once every output below w1 is acked."""

    w0: int  # the watermark it expects
    w1: int  # the watermark it sets
    fingerprint: Fingerprint | None  # of the last applied record below w1


@dataclass(frozen=True, slots=True)
class Held:
    """What Redis says of a partition's watermark and owner at one instant."""

    watermark: int | None  # None: the partition's hash is gone
    number: int  # fence number
    nonce: str  # owner
    bundle: str  # bundle id


class Partition:
    """The protocol's state for one source partition; every method is one event of its life."""

    def __init__(self, topic: str, number: int, group: str, settings: str = "worker.toml") -> None:
        self.topic, self.number, self.group = topic, number, group
        self.settings = settings  # file, for the operator's commands
        self.phase = Phase.UNASSIGNED
        self.halted: str = ""  # why, while in HALT
        self.fence: Fence | None = None
        # W <= A <= P: saved, acked, applied. P is also the end of the last micro-batch.
        self.saved = self.acked = self.applied = 0
        self.next_offset = 0  # the next record to take from the log
        self.last: Fingerprint | None = None  # of the last applied record
        self._to_verify: Fingerprint | None = None  # the log must still hold this record
        self.unverified = False  # the fingerprint's record was not in the log any more

    def __str__(self) -> str:
        return f"{self.topic}:{self.number}"

    # -- ACQUIRE ---------------------------------------------------------------------------------

    def acquire(self) -> None:
        """Start over: nothing that was in memory counts any more."""
        self.phase = Phase.ACQUIRE
        self.fence = None

    def may_start_at(self, group_offset: GroupOffset | None, start: int | None) -> int | None:
        """Decide where Redis may begin if it holds nothing for this partition.

        `start` is the configured start as an offset, None when it is not set. Returns None when
        nothing may begin: saved states existed once (the group offset says so) and are gone.
        Raises StartUnset when nothing was ever saved and no start is configured.
        """
        if group_offset is None:
            if start is None:
                raise StartUnset(
                    f"{self}: no saved state and no group offset in group {self.group!r}, and "
                    "worker.start is not set: set it to 'earliest' or 'latest' to say where "
                    "this group begins"
                )
            return start
        return group_offset.offset if group_offset.metadata == INIT_METADATA else None

    def acquired(self, reply: Acquired | Refused, log_start: int) -> int | None:
        """Judge Redis's word against the log's start; return the offset to seek to, None: HALT."""
        if isinstance(reply, Refused):
            self.halt(self._refusal(reply))
            return None
        self.fence = reply.fence
        self.saved = self.acked = self.applied = reply.watermark
        self.last = self._to_verify = reply.fingerprint
        if reply.watermark < log_start:
            self.halt(
                f"the log starts at offset {log_start} but the state ends at {reply.watermark}: "
                f"events in between are lost to retention; {self.reset_command()}"
            )
            return None
        if self._to_verify is not None and self._to_verify.offset < log_start:
            self._to_verify, self.unverified = None, True
        self.next_offset = reply.watermark if self._to_verify is None else self._to_verify.offset
        self.phase = Phase.SEEK
        return self.next_offset

    def sought(self) -> None:
        """Note that the position is at next_offset: what is fetched from now on may be offered."""
        if self.phase is Phase.SEEK and self._to_verify is None:
            self.phase = Phase.RUN

    def out_of_range(self, offset: int, log_start: int) -> None:
        """Judge a fetch at `offset` that the broker refused."""
        if self.phase not in (Phase.SEEK, Phase.RUN):
            return  # it has left that position meanwhile
        if offset < log_start:
            self.acquire()  # retention overtook the position: ACQUIRE will judge it
        else:
            self.halt(
                f"the log ends before offset {offset}, below the saved state "
                f"(topic truncated or created anew?); {self.reset_command()}"
            )

    def offer(self, records: Sequence[R]) -> Sequence[R]:
        """Take fetched records in offset order; return those to apply, none when not running.

        In SEEK the first record must be the one of the fingerprint, or the log is another log.
        """
        if self.phase is Phase.SEEK and self._to_verify is not None and records:
            self._verify(records[0])
        if self.phase is not Phase.RUN or not records:
            return ()
        if records[0].offset < self.next_offset:
            records = [record for record in records if record.offset >= self.next_offset]
        if records:
            self.next_offset = records[-1].offset + 1
        return records

    def _verify(self, first: Record) -> None:
        expected = self._to_verify
        if expected is None:
            return
        if first.offset == expected.offset and Fingerprint.of(first) != expected:
            self.halt(
                f"the record at offset {first.offset} is not the one last applied "
                f"(topic created anew?); {self.reset_command()}"
            )
            return
        # A later first record: the one of the fingerprint was compacted away. Go on, and say so.
        self.unverified = first.offset != expected.offset
        self._to_verify = None
        self.next_offset = self.saved
        self.phase = Phase.RUN

    # -- RUN -------------------------------------------------------------------------------------

    def apply(self, upto: int, last: Fingerprint) -> None:
        """Note that every event below `upto` is in the slots; `last` is the last record's."""
        self.applied, self.last = upto, last
        self._check()

    def ack(self, upto: int) -> None:
        """Note that every output of the events below `upto` is acked."""
        self.acked = max(self.acked, upto)
        self._check()

    def plan_save(self) -> SavePlan | None:
        """Plan the next save up to the last micro-batch's end; None: nothing to save."""
        if self.phase not in (Phase.RUN, Phase.DRAIN) or self.applied == self.saved:
            return None
        return SavePlan(self.saved, self.applied, self.last)

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
                f"got {held.number}/{held.nonce} with bundle {held.bundle}: another worker owns it"
            )
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
        self.phase, self.halted = Phase.HALT, why

    def _refusal(self, refused: Refused) -> str:
        if refused.what == "missing":
            return (
                "the state is gone from Redis, yet the group has committed an offset: restore "
                f"Redis, or give the state up: {self.reset_command()}"
            )
        subject = {
            "partitions": "the topic's number of partitions changed, keys moved between them",
            "bundle": "the state belongs to another bundle (serve this one under a new group?)",
            "layout": "the state was written in another layout",
        }[refused.what]
        command = self.reset_command()
        if refused.what == "partitions":
            command = f"keyfold-state reset {self.settings} --all --to earliest"
        return f"{subject}: expected {refused.expected}, got {refused.got} in Redis; {command}"

    def reset_command(self) -> str:
        """Return the operator's command that gives this partition's state up."""
        return (
            f"keyfold-state reset {self.settings} --partition {self.number} "
            "--to earliest|latest|OFFSET"
        )

    def _check(self) -> None:
        if not self.saved <= self.acked <= self.applied:
            raise RuntimeError(
                f"{self}: expected W <= A <= P, got {self.saved}, {self.acked}, {self.applied}"
            )
